"""U-ViT: a transformer with time, condition and patches as tokens, and with long skip connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import blocks, embeddings, ops, patches, scans, transformer
from diffusers_fn.backbones.sizes import scaled

__all__ = ["Block", "UViT"]


class UViT(ops.ConvNetwork):
    """Computes a denoiser's output [B, H, W, C] for noisy images x [B, H, W, C] at time labels t [] or [B].

    The tokens are [class, time, patches], or [time, text, patches], with learned positions. The blocks are ordinary
    pre-norm transformer blocks: depth // 2 on the way in, one in the middle, depth // 2 on the way out, each of which
    first joins the output of its mirror image on the way in, h <- Dense([h, skip]). A 3x3 convolution ends the network.
    Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models" (2022), https://arxiv.org/abs/2209.12152,
    section 3. `UViT.S`, `.M`, `.L` and `.H` are the published sizes.

    Call with x [B, H, W, C], where (H, W) is image_size; t integers or floats; cond integer class labels [] or [B], or
    None for the null class, num_classes; with text_shape = (N, F) instead, cond is text features [B, N, F], which must
    be given. train=True turns on dropout, which draws from the rng collection "dropout". The output is float32,
    or x's dtype if that is wider, and has x's shape; with learned_variance it has twice the channels, the mean's first.

    Fields:
      image_size: H and W, or one number for both. The learned positions are for this size alone.
      patch_size: pixels along each side of a patch.
      hidden_size, depth, num_heads, mlp_ratio: features of a token, number of blocks but for the middle one, heads of
        every attention, and the hidden units of every mlp as a multiple of hidden_size.
      num_classes: None, or the number of classes without the null class.
      null_class: whether the class table has a last row for the null class.
      text_shape: None, or the number of text tokens and that of their features; excludes num_classes.
      in_channels: C, or None for any.
      qkv_bias: whether query, key and value have biases.
      time_mlp: whether a small MLP computes the time token from its sinusoids.
      long_skips: whether blocks on the way out receive activations from the way in.
      conv_out: whether a 3x3 convolution ends the network.
      zero_init_output: start as the zero function. The published networks do not.
      remat: the backward pass computes every block again instead of keeping its activations.
      scan_blocks: as in `DiT`; the parameters of the blocks are stacked in `in_blocks` and `out_blocks`.
      native_conv: as in `UNet`.
      attention_fn: as `jax.nn.dot_product_attention`, on [B, L, heads, head_dim].
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics, the softmax and the time
        token stay in float32 or wider.

    Raises ValueError for fields that contradict each other and inputs that do not fit; the message names them.

    >>> uvit = UViT(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    >>> x, t = jnp.zeros([2, 8, 8, 3]), jnp.array([0, 999])
    >>> out, variables = jax.eval_shape(uvit.init_with_output, jax.random.key(0), x, t)
    >>> out.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((2, 8, 8, 3), 11216)
    """

    image_size: int | tuple[int, int] = 32
    patch_size: int = 2
    hidden_size: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    null_class: bool = True
    text_shape: tuple[int, int] | None = None
    in_channels: int | None = None
    dropout: float = 0.0
    learned_variance: bool = False
    qkv_bias: bool = False
    time_mlp: bool = False
    long_skips: bool = True
    conv_out: bool = True
    zero_init_output: bool = False
    remat: bool = False
    scan_blocks: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @classmethod
    def S(cls, **fields: Any) -> UViT:
        """Returns U-ViT-S: 12 + 1 blocks of hidden size 512. Fields replace these.

        >>> net = UViT.S(image_size=64, patch_size=4, num_classes=10)
        >>> net.depth, net.hidden_size, net.num_classes
        (12, 512, 10)
        """
        return cls(**{"hidden_size": 512, "depth": 12, "num_heads": 8, **fields})

    @classmethod
    def M(cls, **fields: Any) -> UViT:
        """Returns U-ViT-M: 16 + 1 blocks of hidden size 768."""
        return cls(**{"hidden_size": 768, "depth": 16, "num_heads": 12, **fields})

    @classmethod
    def L(cls, **fields: Any) -> UViT:
        """Returns U-ViT-L: 20 + 1 blocks of hidden size 1024."""
        return cls(**{"hidden_size": 1024, "depth": 20, "num_heads": 16, **fields})

    @classmethod
    def H(cls, **fields: Any) -> UViT:
        """Returns U-ViT-H: 28 + 1 blocks of hidden size 1152, without the last convolution."""
        return cls(**{"hidden_size": 1152, "depth": 28, "num_heads": 16, "conv_out": False, **fields})

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        out_channels = x.shape[-1] * (1 + self.learned_variance)
        zeros = nn.initializers.zeros if self.zero_init_output else None  # of the last layer
        patch = patches.PatchEmbed(
            self.hidden_size, patch_size=self.patch_size, kernel_init=_torch_init, name="patch", **self.types
        )

        tokens = [*self._extra_tokens(x, t, cond), patch(x)]
        extras = sum(token.shape[1] for token in tokens[:-1])
        h = jnp.concatenate([token.astype(self.dtype) for token in tokens], axis=1)
        h = h + self.param("positions", _init, h.shape[1:], self.param_dtype).astype(self.dtype)[None]

        h = self._apply_blocks(h, train=train)
        h = ops.array(ops.LayerNorm(_EPS, name="norm_out", **self.types)(h))[:, extras:]

        dense_init = _init if self.conv_out else zeros or _init
        h = ops.Dense(self.patch_size**2 * out_channels, kernel_init=dense_init, name="dense_out", **self.types)(h)
        h = patches.unpatchify(h, self.patch_size, x.shape[1], x.shape[2])
        if self.conv_out:
            h = ops.Conv(out_channels, (3, 3), kernel_init=zeros or _torch_init, name="conv_out", **self.types)(h)
        return h.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _apply_blocks(self, h: jax.Array, *, train: bool) -> jax.Array:
        half, skips = self.depth // 2, self.long_skips
        if self.scan_blocks and half:
            h, saved = scans.scanned(self._block("in_blocks"), half, self.remat)(h, None, keep=skips, train=train)
            h = blocks.rematerialised(self._block("mid"), self.remat)(h, None, train=train)
            mirrored = saved[::-1] if skips else None
            return scans.scanned(self._block("out_blocks"), half, self.remat)(h, mirrored, split=skips, train=train)[0]
        saved = []
        for i in range(half):
            h = blocks.rematerialised(self._block(f"in_{i}"), self.remat)(h, None, train=train)
            saved.append(h)
        h = blocks.rematerialised(self._block("mid"), self.remat)(h, None, train=train)
        for i in range(half):
            block = blocks.rematerialised(self._block(f"out_{i}"), self.remat)
            h = block(h, saved.pop() if skips else None, train=train)
        return h

    def _block(self, name: str) -> Block:
        return Block(
            num_heads=self.num_heads,
            mlp_hidden_size=scaled(self.hidden_size, self.mlp_ratio),
            dropout=self.dropout,
            qkv_bias=self.qkv_bias,
            attention_fn=self.attention_fn,
            name=name,
            **self.types,
        )

    def _extra_tokens(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> list[jax.Array]:
        """Returns the tokens before the patches: [class, time] or [time, text], each [B, l, hidden_size]."""
        batch, precise, dtype = x.shape[0], self.precise_types, self.precise_dtype
        time = embeddings.sinusoidal_features(embeddings.time_labels(t, batch, dtype), self.hidden_size, cos_first=True)
        if self.time_mlp:
            time = ops.Dense(4 * self.hidden_size, kernel_init=_init, name="time_0", **precise)(time)
            time = ops.Dense(self.hidden_size, kernel_init=_init, name="time_1", **precise)(ops.silu(time))
        time = time[:, None]
        if self.text_shape is not None:
            text = self._check_text(cond, batch)
            return [time, ops.Dense(self.hidden_size, kernel_init=_init, name="text", **self.types)(text)]
        labels = embeddings.class_labels(cond, self.num_classes, batch, null_class=self.null_class)
        if labels is None or self.num_classes is None:
            return [time]
        rows, table_init = self.num_classes + self.null_class, nn.initializers.normal(1.0)
        table = ops.Embed(rows, self.hidden_size, embedding_init=table_init, name="class_table", **precise)
        return [table(labels)[:, None], time]

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1; got {self.depth}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if self.num_classes is not None and self.text_shape is not None:
            raise ValueError(
                "num_classes and text_shape exclude each other; got "
                f"num_classes={self.num_classes} and text_shape={self.text_shape}"
            )
        size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)
        if x.ndim != 4 or x.shape[1:3] != size:
            raise ValueError(
                f"x must have shape [B, H, W, C] with (H, W) = image_size = {size}, because positions are learned; "
                f"got {list(x.shape)}"
            )
        if self.in_channels not in (None, x.shape[-1]):
            raise ValueError(f"x must have in_channels={self.in_channels} channels; got {x.shape[-1]}")

    def _check_text(self, cond: jax.Array | None, batch: int) -> jax.Array:
        """Returns cond, or raises ValueError unless it has the shape of text features."""
        shape = None if cond is None else jnp.shape(cond)
        expected = (batch, *(self.text_shape or ()))
        if shape != expected:
            raise ValueError(f"cond must be text features of shape {list(expected)}; got {shape}")
        return jnp.asarray(cond)


_EPS = 1e-5  # of every layer normalisation
_init = nn.initializers.normal(0.02)  # the authors' truncation, at a hundred standard deviations, has no effect
_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # where the authors keep PyTorch's default


class Block(ops.Module):
    """Computes one block of `UViT` for tokens h [B, L, D], after mixing in a skip of that shape where there is one.

        h <- h + attention(norm(h)),    h <- h + mlp(norm(h))

    >>> block = Block(num_heads=2, mlp_hidden_size=16)
    >>> args = jax.random.key(0), jnp.ones([1, 5, 8]), jnp.ones([1, 5, 8])
    >>> jax.eval_shape(block.init, *args)["params"]["skip"]["kernel"].shape
    (16, 8)
    """

    num_heads: int
    mlp_hidden_size: int
    dropout: float = 0.0
    qkv_bias: bool = False
    attention_fn: Callable[..., jax.Array] = ops.dot_product_attention

    @nn.compact
    def __call__(self, h: jax.Array, skip: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        fields: dict[str, Any] = {"kernel_init": _init, **self.types}
        attention = transformer.Attention(
            self.num_heads, self.qkv_bias, attention_fn=self.attention_fn, name="attention", **fields
        )
        mlp = transformer.FeedForward(self.mlp_hidden_size, name="mlp", **fields)
        drop = ops.Dropout(self.dropout, deterministic=not train)

        if skip is not None:
            h = ops.Dense(h.shape[-1], name="skip", **fields)(jnp.concatenate([h, skip], axis=-1))
        h = h + drop(attention(ops.LayerNorm(_EPS, name="norm_0", **self.types)(h)))
        return h + drop(mlp(ops.LayerNorm(_EPS, name="norm_1", **self.types)(h)))
