"""A residual multilayer perceptron for points, vectors and small images."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import embeddings, ops

__all__ = ["MLP"]


class MLP(nn.Module):
    """Computes a denoiser's output [B, ...] for noisy data x [B, ...] at time labels t [] or [B].

    The data are flattened to [B, D] and put back at the end. With e an embedding of the labels, a block is

        h <- h + Dense(dropout(silu(Dense(norm(h) (1 + scale(e)) + shift(e)))))

    the residual network of He et al., "Identity Mappings in Deep Residual Networks" (2016),
    https://arxiv.org/abs/1603.05027, with the conditioning of Nichol and Dhariwal, "Improved Denoising
    Diffusion Probabilistic Models" (2021), https://arxiv.org/abs/2102.09672. The time features are sinusoids of t
    itself and of its signed logarithm, so the labels may be step numbers, sigmas or their logarithms; x should be
    of order one.

    Call with x [B, ...]; t integers or floats; cond integer class labels [] or [B], or None for the null
    class, num_classes; train=True turns on dropout, which draws from the rng collection "dropout". The output
    is float32, or x's dtype if that is wider, and has x's shape; with learned_variance the last axis is twice
    as long, the mean first.

    Fields:
      hidden_size, depth: features of the hidden layers, and the number of residual blocks.
      embedding_dim: of the time features and of the label embedding; a multiple of 4.
      num_classes: None, or the number of classes without the null class.
      zero_init_output: start as the zero function.
      dtype, param_dtype: of the computation and of the parameters. Normalisation statistics and the label
        embedding stay in float32 or wider.

    Raises ValueError for fields out of range and inputs that do not fit; the message names them.

    >>> mlp = MLP(hidden_size=512, depth=4, num_classes=10)
    >>> x, t = jnp.zeros([2, 8, 8, 1]), jnp.array([0, 999])
    >>> out, variables = jax.eval_shape(mlp.init_with_output, jax.random.key(0), x, t)
    >>> out.shape, sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ((2, 8, 8, 1), 2731200)
    """

    hidden_size: int = 512
    depth: int = 4
    embedding_dim: int = 128
    num_classes: int | None = None
    dropout: float = 0.0
    learned_variance: bool = False
    zero_init_output: bool = True
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        self._check(x)
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        last_init = nn.initializers.zeros if self.zero_init_output else embeddings.dense_init
        dense: Callable[..., Any] = functools.partial(nn.Dense, kernel_init=embeddings.dense_init, **types)
        norm: Callable[..., Any] = functools.partial(nn.LayerNorm, use_fast_variance=False, **types)
        out_shape = (*x.shape[:-1], 2 * x.shape[-1]) if self.learned_variance else x.shape
        emb = nn.silu(self._embed(x, t, cond))

        h = x.reshape(x.shape[0], -1)
        # A norm removes the length of its input. With a bias as large as the data the length stays visible.
        in_init = {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.normal(1.0)}
        h = dense(self.hidden_size, name="dense_in", **in_init)(h)
        for i in range(self.depth):
            scale, shift = jnp.split(dense(2 * self.hidden_size, name=f"block_{i}_emb")(emb), 2, axis=-1)
            r = norm(use_scale=False, use_bias=False, name=f"block_{i}_norm")(h)
            r = r * (1 + scale) + shift
            r = dense(self.hidden_size, name=f"block_{i}_dense_0")(r)
            r = ops.Dropout(self.dropout, deterministic=not train)(nn.silu(r))
            h = h + dense(self.hidden_size, kernel_init=last_init, name=f"block_{i}_dense_1")(r)
        h = norm(name="norm_out")(h)
        out = dense(math.prod(out_shape[1:]), kernel_init=last_init, name="dense_out")(h)
        return out.reshape(out_shape).astype(jnp.promote_types(x.dtype, jnp.float32))

    def _embed(self, x: jax.Array, t: jax.Array, cond: jax.Array | None) -> jax.Array:
        """Returns the label embedding [B, embedding_dim] that every block receives."""
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        labels = embeddings.time_labels(t, x.shape[0], dtype)
        features = embeddings.two_scale_features(labels, self.embedding_dim)
        types = {"dtype": dtype, "param_dtype": self.param_dtype}
        embed = embeddings.LabelEmbedding(self.embedding_dim, self.num_classes, name="embedding", **types)
        return embed(features, cond)

    def _check(self, x: jax.Array) -> None:
        """Raises ValueError for fields or inputs that no network can be built from."""
        if self.hidden_size < 1 or self.depth < 1:
            raise ValueError(f"hidden_size and depth must be at least 1; got {self.hidden_size} and {self.depth}")
        if self.embedding_dim < 4 or self.embedding_dim % 4:
            raise ValueError(f"embedding_dim must be a multiple of 4; got {self.embedding_dim}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if x.ndim < 2:
            raise ValueError(f"x must have shape [B, ...] with at least one axis after B; got {list(x.shape)}")
