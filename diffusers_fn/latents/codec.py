"""The codec: an encoder and a decoder as two pure functions, and the affine map to latents of unit variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import concrete, is_whole, namespace, working_dtype
from diffusers_fn._types import ArrayLike
from diffusers_fn.backbones import diagonal_gaussian

__all__ = ["Codec", "in_chunks", "make_codec", "reparameterize", "scale_latents", "scaled"]


class Codec(NamedTuple):
    """An autoencoder as a pair of pure functions. B is the batch, `latent` the shape of one latent.

    Attributes:
      encode: x [B, ...] -> (mean, logvar), each [B, *latent], of the Gaussian over latents z.
      decode: z [B, *latent] -> x [B, ...].
    """

    encode: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    decode: Callable[[jax.Array], jax.Array]


def make_codec(
    encode: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]],
    decode: Callable[[Any, jax.Array], jax.Array],
    params: Any,
) -> Codec:
    """Returns the codec of an autoencoder with given parameters.

    Call it inside the jitted function, with params among that function's arguments: parameters that a jitted function
    closes over become constants of the program.

    Args:
      encode: (params, x) -> (mean, logvar).
      decode: (params, z) -> x.
      params: the parameters of both.

    >>> codec = make_codec(lambda p, x: (p * x, jnp.zeros_like(x)), lambda p, z: z / p, 2.0)
    >>> codec.decode(codec.encode(jnp.ones((1, 3)))[0])
    Array([[1., 1., 1.]], dtype=float32)
    """
    return Codec(lambda x: encode(params, x), lambda z: decode(params, z))


def reparameterize(key: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Returns z = mean + exp(logvar / 2) eps with eps ~ N(0, I), [B, ...], differentiable in mean and logvar.

    Kingma & Welling, "Auto-Encoding Variational Bayes", 2013, https://arxiv.org/abs/1312.6114, section 2.4.

    Args:
      key: one key, or [B] keys; with [B] keys the draw for an example depends on its own key only.
      mean, logvar: [B, ...].

    Raises:
      ValueError: if the number of keys is neither one nor B.

    >>> reparameterize(jax.random.key(0), jnp.ones((2, 3)), jnp.full((2, 3), -jnp.inf)).tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if not _random.is_batched(key):
        return diagonal_gaussian.reparameterize(key, mean, logvar)
    if key.shape[0] != mean.shape[0]:
        raise ValueError(
            f"there must be one key, or one key per example; got {key.shape[0]} keys for {mean.shape[0]} examples"
        )
    return jax.vmap(diagonal_gaussian.reparameterize)(key, mean, logvar)


def scale_latents(z: jax.Array, scale: ArrayLike, shift: ArrayLike = 0.0) -> jax.Array:
    """Returns (z - shift) scale [B, *latent], the latents of the diffusion model.

    Args:
      z: [B, *latent].
      scale: a number, [C] for the last axis of z, or an array of shape `latent`; may be traced.
      shift: as scale.

    Raises:
      ValueError: if scale or shift has another shape.

    >>> scale_latents(jnp.array([[3.0, 5.0]]), 0.5, shift=jnp.array([1.0, 3.0]))
    Array([[1., 1.]], dtype=float32)
    """
    return (z - _per_latent("shift", shift, z)) * _per_latent("scale", scale, z)


def scaled(codec: Codec, scale: ArrayLike, shift: ArrayLike = 0.0) -> Codec:
    """Returns the codec for latents z' = (z - shift) scale, with decode(z') = codec.decode(z' / scale + shift).

    Diffusion models are trained on latents of about unit variance (Rombach et al., "High-Resolution Image Synthesis
    with Latent Diffusion Models", 2021, https://arxiv.org/abs/2112.10752, appendix G). `calibrate` computes scale and
    shift from data; published autoencoders state theirs, such as scale 0.18215 without a shift.

    Args:
      codec: the codec for latents z.
      scale: positive: a number, [C] for the last axis of z, or an array of shape `latent`; may be traced.
      shift: as scale.

    Raises:
      ValueError: if scale (not traced) is not positive; when called, if scale or shift has another shape.

    >>> codec = Codec(lambda x: (x, jnp.zeros_like(x)), lambda z: z)
    >>> halved = scaled(codec, 0.5, shift=1.0)
    >>> mean, logvar = halved.encode(jnp.array([[3.0]]))
    >>> mean.item(), jnp.exp(logvar).round(4).item(), halved.decode(mean).item()
    (1.0, 0.25, 3.0)
    """
    known = concrete(scale)
    if known is not None and not np.all(known > 0):
        raise ValueError(f"scale must be positive; got {scale}")
    log_scale = namespace(scale).log(scale)

    def encode(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, logvar = codec.encode(x)
        return scale_latents(mean, scale, shift), logvar + 2 * _per_latent("scale", log_scale, logvar)

    def decode(z: jax.Array) -> jax.Array:
        return codec.decode(z / _per_latent("scale", scale, z) + _per_latent("shift", shift, z))

    return Codec(encode, decode)


def in_chunks(codec: Codec, size: int) -> Codec:
    """Returns the codec that decodes `size` latents at a time, so that memory is bounded by `size` latents.

    Decoding sets the peak memory of latent diffusion. Do not use it for a batch that is split over devices, since
    chunks are decoded one after another; under shard_map each device decodes its own part in chunks.

    Args:
      codec: the codec; its encoder is unchanged.
      size: latents per chunk, at least 1; the last chunk may be smaller.

    Raises:
      ValueError: if size is less than 1; when called, if mesh axes of type Explicit split the batch.

    >>> codec = in_chunks(Codec(lambda x: (x, x), lambda z: z * len(z)), 2)  # decodes z to z times the chunk size
    >>> codec.decode(jnp.ones((5, 1))).ravel().tolist()
    [2.0, 2.0, 2.0, 2.0, 1.0]
    """
    if size < 1:
        raise ValueError(f"size, the number of latents per chunk, must be at least 1; got {size}")

    def decode(z: jax.Array) -> jax.Array:
        if not is_whole(z):
            raise ValueError(
                f"in_chunks decodes one chunk after another, and devices split the batch, {jax.typeof(z)}: leave it "
                "out, since each device decodes its own part alone, or decode in shard_map"
            )
        num_chunks = z.shape[0] // size
        whole, rest = z[: num_chunks * size], z[num_chunks * size :]
        decoded = [codec.decode(rest)] if rest.shape[0] else []
        if num_chunks:
            chunks = jax.lax.map(codec.decode, whole.reshape(num_chunks, size, *z.shape[1:]))
            decoded.insert(0, chunks.reshape(num_chunks * size, *chunks.shape[2:]))
        return jnp.concatenate(decoded)

    return Codec(codec.encode, decode)


def _per_latent(name: str, value: Any, z: jax.Array) -> jax.Array:
    """A number, [C] or an array of shape `latent`, shaped to combine with z [B, *latent]."""
    value = jnp.asarray(value, working_dtype(z))
    if value.shape not in ((), z.shape[-1:], z.shape[1:]):
        raise ValueError(
            f"{name} must be a number, or have shape {z.shape[-1:]} (one value per channel) or {z.shape[1:]}; "
            f"got {value.shape}"
        )
    return value.reshape((1,) * (z.ndim - value.ndim) + value.shape)
