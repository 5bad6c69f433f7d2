"""The first stage of latent diffusion: the loss of the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn import losses
from diffusers_fn._arrays import check_data, concrete
from diffusers_fn._types import ArrayLike
from diffusers_fn.backbones import diagonal_gaussian
from diffusers_fn.latents.codec import Codec, reparameterize

__all__ = ["autoencoder_loss", "gaussian_nll", "perceptual"]


def autoencoder_loss(
    key: jax.Array, codec: Codec, x: jax.Array, *, error: losses.Error = losses.mse, kl_weight: ArrayLike = 1e-6
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns (loss [B], {"reconstruction": [B], "kl": [B]}) of an autoencoder.

        z ~ N(mean, exp(logvar)),    loss = error(decode(z), x) + kl_weight KL(N(mean, exp(logvar)) || N(0, I)) / D

    with D the number of entries of one example x. Errors are means over these D entries, so kl_weight is the weight of
    the divergence relative to the summed error, as in Rombach et al. 2021 (https://arxiv.org/abs/2112.10752,
    appendix G), whose 1e-6 is the default. `gaussian_nll` with kl_weight 1 gives the negative evidence lower bound in
    nats per entry (Kingma & Welling 2013, https://arxiv.org/abs/1312.6114, eq. 10). "kl" is the divergence in nats per
    example. Gradients pass through z to the encoder and the decoder.

    Args:
      key: one key, or [B] keys.
      codec: of the parameters to train: `make_codec(encode, decode, params)`.
      x: [B, ...] data.
      error: (out, target) -> [B]: losses.mse, .l1, .huber, `gaussian_nll(std)`, or one of them inside `perceptual`.
      kl_weight: [], may be traced.

    Raises:
      ValueError: if decode does not return the shape of x, or kl_weight (not traced) is negative.

    >>> codec = Codec(lambda x: (2 * x, jnp.full_like(x, -30.0)), lambda z: z / 2)
    >>> loss, parts = autoencoder_loss(jax.random.key(0), codec, jnp.ones((1, 4)), kl_weight=0.0)
    >>> bool(loss[0] < 1e-6), parts["kl"].round(1)
    (True, Array([66.], dtype=float32))
    """
    weight = concrete(kl_weight)
    if weight is not None and not weight >= 0:
        raise ValueError(f"kl_weight must not be negative; got {kl_weight}")
    mean, logvar = codec.encode(x)
    out = codec.decode(reparameterize(key, mean, logvar))
    check_data(x=x, **{"decode(z)": out})
    reconstruction = error(out, x)
    kl = diagonal_gaussian.kl_to_standard_normal(mean, logvar)
    entries = math.prod(x.shape[1:])
    return reconstruction + kl_weight * kl / entries, {"reconstruction": reconstruction, "kl": kl}


def gaussian_nll(std: ArrayLike) -> losses.Error:
    """Returns the error (out, target) -> -log N(target; out, std^2) in nats per entry, [B].

        (target - out)^2 / (2 std^2) + log std + log(2 pi) / 2

    Args:
      std: [], positive, the standard deviation of the data around the reconstruction; may be traced, to train it.

    Raises:
      ValueError: if std (not traced) is not positive.

    >>> round(gaussian_nll(1.0)(jnp.zeros((1, 2)), jnp.zeros((1, 2))).item(), 4)
    0.9189
    """
    known = concrete(std)
    if known is not None and not known > 0:
        raise ValueError(f"std must be positive; got {std}")

    def error(out: jax.Array, target: jax.Array) -> jax.Array:
        return losses.mse(out, target) / (2 * std**2) + jnp.log(std) + 0.5 * math.log(2 * math.pi)

    return error


def perceptual(
    features: Callable[[jax.Array], Any], weight: ArrayLike = 1.0, *, error: losses.Error = losses.mse
) -> losses.Error:
    """Returns the perceptual error (out, target) -> error(out, target) + weight sum_l mse(f_l(out), f_l(target)), [B].

    Dosovitskiy & Brox, "Generating Images with Perceptual Similarity Metrics based on Deep Networks", 2016,
    https://arxiv.org/abs/1602.02644, eq. 4; with a calibrated network for f it is the reconstruction term of the first
    stage of latent diffusion. No gradient passes through the features of `target`.

    Args:
      features: [B, ...] -> a pytree of arrays [B, ...], such as activations of a classifier's layers, normalised and
        weighted by the caller.
      weight: [], the weight of the sum; may be traced.
      error: the error of the data.

    >>> mean_error = perceptual(lambda x: {"mean": x.mean(1, keepdims=True)}, 2.0)
    >>> mean_error(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
    Array([13.], dtype=float32)
    """

    def with_features(out: jax.Array, target: jax.Array) -> jax.Array:
        pairs = jax.tree.map(losses.mse, features(out), jax.lax.stop_gradient(features(target)))
        return error(out, target) + weight * sum(jax.tree.leaves(pairs))

    return with_features
