"""From a config with task "autoencoder" to the first stage of latent diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn import _random, latents
from diffusers_fn._arrays import whole
from diffusers_fn.from_config.batches import check_images
from diffusers_fn.from_config.loss_terms import make_error
from diffusers_fn.from_config.network import init_params, make_autoencoder
from diffusers_fn.from_config.signatures import BatchLoss, Config

__all__ = ["Autoencoder", "build_autoencoder"]


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    Attributes:
      init: (key) -> params.
      encode: (params, x) -> (mean, logvar) [B, *latent_shape].
      decode: (params, z) -> x [B, *shape].
      loss: (params, key, batch) -> (loss [B], metrics [B]).
      latent_shape: of one latent.
    """

    init: Callable[[jax.Array], Any]
    encode: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
    decode: Callable[[Any, jax.Array], jax.Array]
    loss: BatchLoss
    latent_shape: tuple[int, ...]


def build_autoencoder(config: Config) -> Autoencoder:
    """Returns the autoencoder that a config describes: backbone, data.shape, loss.loss_type, loss.kl_weight.

    Raises:
      ValueError: if a field holds a name or number that is not allowed, or data and network do not fit.

    >>> from diffusers_fn.from_config.defaults import customise, default_config
    >>> config = customise(default_config(), backbone={"name": "simple_autoencoder", "latent_dim": 16})
    >>> build_autoencoder(config).latent_shape
    (16,)
    """
    shape = tuple(config.data.shape)
    module = make_autoencoder(config.backbone, shape)
    error = make_error(config.loss)
    kl_weight = config.loss.kl_weight
    if kl_weight < 0:
        raise ValueError(f"config.loss.kl_weight must not be negative; got {kl_weight}")

    def init(key: jax.Array) -> Any:
        return init_params(_random.one_key(key), jnp.zeros((1, *shape)), module=module)

    def encode(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        coded: Any = module.apply({"params": whole(params, x)}, x, method="encode")
        return coded

    def decode(params: Any, z: jax.Array) -> jax.Array:
        decoded: Any = module.apply({"params": whole(params, z)}, z, method="decode")
        return decoded

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        codec = latents.make_codec(encode, decode, params)
        return latents.autoencoder_loss(key, codec, check_images(batch, shape), error=error, kl_weight=kl_weight)

    try:
        params = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
        mean, _ = jax.eval_shape(encode, params, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    except ValueError as problem:
        name = config.backbone.name
        raise ValueError(
            f"config.data.shape = {shape} and config.backbone (name = {name!r}) do not fit: {problem}"
        ) from problem
    return Autoencoder(init, encode, decode, loss, mean.shape[1:])
