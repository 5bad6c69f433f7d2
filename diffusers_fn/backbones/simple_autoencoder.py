"""Small dense encoders and decoders for vectors and small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones.diagonal_gaussian import LOGVAR_RANGE
from diffusers_fn.backbones.embeddings import dense_init

__all__ = ["SimpleAutoencoder", "SimpleDecoder", "SimpleEncoder"]


class SimpleEncoder(nn.Module):
    """Computes mean and log-variance [B, latent_dim] of the latent of data x [B, *input_dim].

    Images (H, W, C) and vectors (D,) are flattened and go through dense layers with silu in between; two linear
    layers map the last one to mean and log-variance. Kingma and Welling, "Auto-Encoding Variational Bayes" (2013),
    https://arxiv.org/abs/1312.6114, appendix C.2. The log-variance is clipped to [-30, 20]. Results are float32, or
    of x's dtype if that is wider. `diagonal_gaussian` has the draw, the divergence and the likelihood.

    Fields:
      input_dim: the shape of one example.
      latent_dim: the length of a latent.
      hidden_dims: features of the dense layers, from the data to the latent.
      dtype, param_dtype: of the computation and of the parameters.

    Raises ValueError for inputs of another shape and for empty or non-positive dimensions.

    >>> encoder = SimpleEncoder(input_dim=(8, 8, 1), latent_dim=2)
    >>> (mean, logvar), _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros([5, 8, 8, 1]))
    >>> mean.shape, logvar.shape, encoder.is_image
    ((5, 2), (5, 2), True)
    """

    input_dim: Sequence[int]
    latent_dim: int
    hidden_dims: Sequence[int] = (32, 64)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def is_image(self) -> bool:
        """Whether the data have two axes or more per example."""
        return len(self.input_dim) >= 2

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        _check_dims(input_dim=self.input_dim, latent_dim=(self.latent_dim,), hidden_dims=self.hidden_dims)
        if x.ndim < 2 or x.shape[1:] != tuple(self.input_dim):
            raise ValueError(f"x must have shape [B, *{tuple(self.input_dim)}]; got {list(x.shape)}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": dense_init}
        out_dtype = jnp.promote_types(x.dtype, jnp.float32)
        h = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden_dims):
            h = nn.silu(nn.Dense(width, name=f"dense_{i}", **types)(h))
        mean = nn.Dense(self.latent_dim, name="mean", **types)(h).astype(out_dtype)
        logvar = nn.Dense(self.latent_dim, name="logvar", **types)(h).astype(out_dtype)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)


class SimpleDecoder(nn.Module):
    """Computes data [B, *output_dim] from latents z [B, latent_dim]: dense layers with silu, the last one linear.

    Fields:
      latent_dim: the length of a latent.
      output_dim: the shape of one example, (H, W, C) or (D,).
      hidden_dims: features of the dense layers, from the latent to the data: the encoder's in reverse order.
      dtype, param_dtype: of the computation and of the parameters. The result is float32, or of z's dtype if that is
        wider.

    Raises ValueError for inputs of another shape and for empty or non-positive dimensions.

    >>> decoder = SimpleDecoder(latent_dim=2, output_dim=(8, 8, 1))
    >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.zeros([5, 2]))[0].shape
    (5, 8, 8, 1)
    """

    latent_dim: int
    output_dim: Sequence[int]
    hidden_dims: Sequence[int] = (64, 32)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def is_image(self) -> bool:
        """Whether the data have two axes or more per example."""
        return len(self.output_dim) >= 2

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        _check_dims(output_dim=self.output_dim, latent_dim=(self.latent_dim,), hidden_dims=self.hidden_dims)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z must have shape [B, {self.latent_dim}]; got {list(z.shape)}")
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "kernel_init": dense_init}
        h = z
        for i, width in enumerate(self.hidden_dims):
            h = nn.silu(nn.Dense(width, name=f"dense_{i}", **types)(h))
        h = nn.Dense(math.prod(self.output_dim), name="dense_out", **types)(h)
        return h.reshape(-1, *self.output_dim).astype(jnp.promote_types(z.dtype, jnp.float32))


class SimpleAutoencoder(nn.Module):
    """A SimpleEncoder and a SimpleDecoder, with the methods of `AutoencoderKL`: encode, decode, and both for a call.

    Fields:
      input_dim: the shape of one example, (H, W, C) or (D,).
      latent_dim: the length of a latent.
      encoder_hidden_dims, decoder_hidden_dims: features of the dense layers.

    >>> net, x = SimpleAutoencoder(input_dim=(8, 8, 1), latent_dim=2), jnp.zeros([5, 8, 8, 1])
    >>> variables = jax.eval_shape(net.init, jax.random.key(0), x)
    >>> jax.eval_shape(lambda v, x: net.apply(v, x, method="encode"), variables, x)[0].shape
    (5, 2)
    """

    input_dim: Sequence[int]
    latent_dim: int = 8
    encoder_hidden_dims: Sequence[int] = (32, 64)
    decoder_hidden_dims: Sequence[int] = (64, 32)

    def setup(self) -> None:
        self.encoder = SimpleEncoder(self.input_dim, self.latent_dim, self.encoder_hidden_dims)
        self.decoder = SimpleDecoder(self.latent_dim, self.input_dim, self.decoder_hidden_dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the data [B, *input_dim] that the mean latent of x decodes to."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log-variance [B, latent_dim] of the latent of x."""
        return self.encoder(x)

    def decode(self, z: jax.Array) -> jax.Array:
        """Returns the data [B, *input_dim] of latents z [B, latent_dim]."""
        return self.decoder(z)


def _check_dims(**dims: Sequence[int]) -> None:
    for name, sizes in dims.items():
        if (not sizes and name != "hidden_dims") or any(size < 1 for size in sizes):
            raise ValueError(f"{name} must hold positive numbers; got {tuple(sizes)}")
