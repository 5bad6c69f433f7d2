"""DiT: a transformer on patches, conditioned through its normalisations (adaLN-Zero)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, patches, scans, transformer
from diffusers_fn.backbones.sizes import scaled

__all__ = ["Block", "DiT", "Embedding"]


class DiT(ops.Module):
    """Computes a denoiser's output [B, H, W, C] for noisy images x [B, H, W, C] at time labels t [] or [B].

    Patches become tokens with fixed sine and cosine positions. With c an embedding of t and the class, a block is

        h <- h + gate_1(c) attention(norm(h) (1 + scale_1(c)) + shift_1(c))
        h <- h + gate_2(c) mlp(norm(h) (1 + scale_2(c)) + shift_2(c))

    where scale, shift and gate are linear in silu(c) and start at zero (adaLN-Zero), and a last modulated norm and a
    linear layer turn tokens into patches. Peebles and Xie, "Scalable Diffusion Models with Transformers" (2022),
    https://arxiv.org/abs/2212.09748, section 3.2. `DiT.S`, `.B`, `.L` and `.XL` are the published sizes.

    Call with x [B, H, W, C]; t integers or floats; cond integer class labels [] or [B], or None for the null class,
    num_classes; train=True turns on dropout, which draws from the rng collection "dropout". The output is float32, or
    x's dtype if that is wider. It has out_channels channels (C if None), or twice as many with learned_variance: the
    mean's first, the variance's last. The same parameters serve any H and W that the patches divide.

    Fields:
      image_size: the H and W of training. No output depends on it, unless stretch_positions.
      patch_size: pixels along each side of a patch.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of blocks, heads of every attention, and
        the hidden units of every mlp as a multiple of hidden_size.
      in_channels: C, or None for any.
      num_classes: None, or the number of classes without the null class.
      null_class: whether the class table has a last row for the null class.
      zero_init_output: start as the zero function, and every block as the identity.
      stretch_positions: spread the positions of every H and W over those of image_size, instead of counting patches.
      time_freq_shift: see `embeddings.sinusoidal_features`.
      shared_embedding: one embedding of t and class for all blocks; otherwise one per block, and the last layer uses
        that of the first block.
      qkv_bias, gelu_approximate, mlp_norm_eps, mlp_norm_affine: details in which implementations differ. The last two
        belong to the normalisation before each mlp.
      remat: the backward pass computes every block again instead of keeping its activations.
      scan_blocks: apply the blocks in a scan, which compiles in a time that does not grow with depth. Their parameters
        are stacked in `blocks`; `backbones.stack_blocks` changes parameters of block_0, block_1, ... into these.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, L, heads, head_dim].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax and the label
        embedding stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> dit = DiT(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    >>> x, t = jnp.zeros([2, 8, 12, 4]), jnp.array([0, 999])
    >>> out, variables = jax.eval_shape(dit.init_with_output, jax.random.key(0), x, t)
    >>> out.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((2, 8, 12, 4), 15344)
    """

    image_size: int = 32
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    in_channels: int | None = None
    out_channels: int | None = None
    num_classes: int | None = None
    null_class: bool = True
    dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    stretch_positions: bool = False
    time_freq_shift: float = 0.0
    shared_embedding: bool = True
    qkv_bias: bool = True
    gelu_approximate: bool = True
    mlp_norm_eps: float = 1e-6
    mlp_norm_affine: bool = False
    remat: bool = False
    scan_blocks: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def S(cls, **fields: Any) -> DiT:
        """Returns DiT-S: 12 blocks of hidden size 384, 1000 classes, learned variance. Fields replace these.

        >>> net = DiT.S(patch_size=4, num_classes=10)
        >>> net.depth, net.hidden_size, net.num_classes, net.learned_variance
        (12, 384, 10, True)
        """
        return cls(**{**_PUBLISHED, "hidden_size": 384, "depth": 12, "num_heads": 6, **fields})

    @classmethod
    def B(cls, **fields: Any) -> DiT:
        """Returns DiT-B: 12 blocks of hidden size 768."""
        return cls(**{**_PUBLISHED, "hidden_size": 768, "depth": 12, "num_heads": 12, **fields})

    @classmethod
    def L(cls, **fields: Any) -> DiT:
        """Returns DiT-L: 24 blocks of hidden size 1024."""
        return cls(**{**_PUBLISHED, "hidden_size": 1024, "depth": 24, "num_heads": 16, **fields})

    @classmethod
    def XL(cls, **fields: Any) -> DiT:
        """Returns DiT-XL: 28 blocks of hidden size 1152; with patches of 2 it has 674,834,720 parameters."""
        return cls(**{**_PUBLISHED, "hidden_size": 1152, "depth": 28, "num_heads": 16, **fields})

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        out_channels = (x.shape[-1] if self.out_channels is None else self.out_channels) * (1 + self.learned_variance)
        zero_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        conditions = self._embed(x, t, cond)

        h = patches.PatchEmbed(
            self.hidden_size, patch_size=self.patch_size, kernel_init=embeddings.dense_init, name="patch", **self.types
        )(x)
        h = h + self._positions(x)[None]
        h = self._apply_blocks(h, conditions, train=train)

        modulation = ops.Dense(2 * self.hidden_size, kernel_init=zero_init, name="modulation_out", **self.types)
        shift, scale = jnp.split(modulation(ops.silu(conditions[0]))[:, None], 2, axis=-1)
        h = ops.modulate(ops.LayerNorm(use_bias=False, use_scale=False, **self.types)(h), scale, shift)
        h = ops.Dense(self.patch_size**2 * out_channels, kernel_init=zero_init, name="dense_out", **self.types)(h)
        image = patches.unpatchify(h, self.patch_size, x.shape[1], x.shape[2])
        return image.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _apply_blocks(self, h: jax.Array, conditions: list[jax.Array], *, train: bool) -> jax.Array:
        if self.scan_blocks:
            split = len(conditions) > 1
            c = jnp.stack(conditions) if split else conditions[0]
            return scans.scanned(self._block("blocks"), self.depth, self.remat)(h, c, split=split, train=train)[0]
        for i in range(self.depth):
            block = blocks.rematerialised(self._block(f"block_{i}"), self.remat)
            h = block(h, conditions[i % len(conditions)], train=train)
        return h

    def _block(self, name: str) -> Block:
        return Block(
            num_heads=self.num_heads,
            mlp_hidden_size=scaled(self.hidden_size, self.mlp_ratio),
            dropout=self.dropout,
            qkv_bias=self.qkv_bias,
            gelu_approximate=self.gelu_approximate,
            mlp_norm_eps=self.mlp_norm_eps,
            mlp_norm_affine=self.mlp_norm_affine,
            modulation_init=nn.initializers.zeros if self.zero_init_output else embeddings.dense_init,
            attention_fn=self.attention_fn,
            name=name,
            **self.types,
        )

    def _embed(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> list[jax.Array]:
        """Returns the embedding [B, hidden_size] that all blocks receive, or one for each block."""
        labels = embeddings.class_labels(cond, self.num_classes, x.shape[0], null_class=self.null_class)
        rows = None if self.num_classes is None else self.num_classes + self.null_class
        times = embeddings.time_labels(t, x.shape[0], self.precise_dtype)
        features = embeddings.sinusoidal_features(times, 256, freq_shift=self.time_freq_shift, cos_first=True)
        names = ["embedding"] if self.shared_embedding else [f"embedding_{i}" for i in range(self.depth)]
        return [Embedding(self.hidden_size, rows, name=name, **self.precise_types)(features, labels) for name in names]

    def _positions(self, x: jax.Array) -> jax.Array:
        """Returns the position features [L, hidden_size] of x's patches."""
        rows, columns = (size // self.patch_size for size in x.shape[1:3])
        base = self.image_size // self.patch_size
        stretch_to = (base, base) if self.stretch_positions else None
        return jnp.asarray(patches.sincos_positions(rows, columns, self.hidden_size, stretch_to), self.dtype)

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.depth < 1 or self.image_size < self.patch_size:
            raise ValueError(
                "depth must be at least 1 and image_size at least patch_size; got "
                f"depth={self.depth}, image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if x.ndim != 4:
            raise ValueError(f"x must have shape [B, H, W, C]; got {list(x.shape)}")
        if self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have in_channels={self.in_channels} channels; got {x.shape[-1]}")


_PUBLISHED = {"num_classes": 1000, "learned_variance": True}


class Block(ops.Module):
    """Computes one block of `DiT` from tokens h [B, L, D] and an embedding c [B, E]. Fields as there.

    Figure 3 of the paper, "DiT Block with adaLN-Zero", from the bottom to the top. Its gamma is 1 + scale here, its
    beta is shift, its alpha is gate:

        h -> Layer Norm -> Scale, Shift (gamma_1, beta_1) -> Multi-Head Self-Attention -> Scale (alpha_1) -> + h
        h -> Layer Norm -> Scale, Shift (gamma_2, beta_2) -> Pointwise Feedforward     -> Scale (alpha_2) -> + h

    >>> block = Block(num_heads=2, mlp_hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 6])
    >>> jax.eval_shape(block.init, *args)["params"]["modulation"]["kernel"].shape
    (6, 48)
    """

    num_heads: int
    mlp_hidden_size: int
    dropout: float = 0.0
    qkv_bias: bool = True
    gelu_approximate: bool = True
    mlp_norm_eps: float = 1e-6
    mlp_norm_affine: bool = False
    modulation_init: Callable[..., Any] = nn.initializers.zeros
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, h: jax.Array, c: jax.Array, *, train: bool = False) -> jax.Array:
        modulation = ops.Dense(6 * h.shape[-1], kernel_init=self.modulation_init, name="modulation", **self.types)
        norm_1 = ops.LayerNorm(use_bias=False, use_scale=False, **self.types)
        affine: dict[str, Any] = {"use_bias": self.mlp_norm_affine, "use_scale": self.mlp_norm_affine}
        norm_2 = ops.LayerNorm(self.mlp_norm_eps, **affine, name="mlp_norm", **self.types)
        attention = transformer.Attention(
            self.num_heads, self.qkv_bias, attention_fn=self.attention_fn, name="attention", **self.types
        )
        mlp = transformer.FeedForward(self.mlp_hidden_size, self.gelu_approximate, name="mlp", **self.types)
        drop = ops.Dropout(self.dropout, deterministic=not train)

        parts = jnp.split(modulation(ops.silu(c))[:, None], 6, axis=-1)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts

        r = attention(ops.modulate(norm_1(h), scale_1, shift_1))
        h = h + gate_1 * drop(r)

        r = mlp(ops.modulate(norm_2(h), scale_2, shift_2))
        return h + gate_2 * drop(r)


class Embedding(ops.Module):
    """Computes Dense(silu(Dense(features))) + table[labels], [B, dim], from time features [B, F].

    rows is the number of rows of the table, None for no table. Everything is drawn with a standard deviation of 0.02.

    >>> embed = Embedding(dim=16, rows=11)
    >>> params = jax.eval_shape(embed.init, jax.random.key(0), jnp.zeros([3, 8]), jnp.zeros([3], int))["params"]
    >>> params["class_table"]["embedding"].shape
    (11, 16)
    """

    dim: int
    rows: int | None = None

    @nn.compact
    def __call__(self, features: jax.Array, labels: jax.Array | None) -> jax.Array:
        init = nn.initializers.normal(0.02)
        emb = ops.Dense(self.dim, kernel_init=init, name="time_0", **self.types)(features)
        emb = ops.Dense(self.dim, kernel_init=init, name="time_1", **self.types)(ops.silu(emb))
        if labels is None or self.rows is None:
            return emb
        return emb + ops.Embed(self.rows, self.dim, embedding_init=init, name="class_table", **self.types)(labels)
