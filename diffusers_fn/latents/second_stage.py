"""The second stage of latent diffusion: a diffusion model of latents as a model of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax

from diffusers_fn import _random
from diffusers_fn._types import ArrayLike
from diffusers_fn.latents.codec import Codec, reparameterize, scale_latents, scaled
from diffusers_fn.sampling import Samples

__all__ = ["Model", "in_latent_space"]

_ENCODED = ("image", "latent", "mean", "logvar")  # the entries of a batch from which the latents are computed


class Model(Protocol):
    """A NamedTuple with `loss` and `sample`, such as `Diffusion`."""

    @property
    def loss(self) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
        """(params, key, batch) -> (loss [B], metrics), batch["image"] the data."""
        ...

    @property
    def sample(self) -> Callable[..., Samples]:
        """(params, key, num_samples, **options) -> Samples."""
        ...

    def _replace(self, **changes: Any) -> Any: ...


_M = TypeVar("_M", bound=Model)


def in_latent_space(diffusion: _M, codec: Codec, *, scale: ArrayLike = 1.0, shift: ArrayLike = 0.0) -> _M:
    """Returns the diffusion model of latents as a model of data: the loss encodes the batch, samples are decoded.

        z = (reparameterize(encode(x)) - shift) scale,    x = decode(z / scale + shift)

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
    https://arxiv.org/abs/2112.10752, section 3.3. The other functions, such as `init` and `apply`, remain those of the
    network of latents, and the options of `sample` (emit, guidance) act on latents. Latents are unbounded, so the model
    must not clip x0.

    Args:
      diffusion: a model of latents, from `build` or any NamedTuple with `loss` and `sample`.
      codec: the frozen autoencoder. If its parameters are large, call this inside the jitted function (see
        `make_codec`).
      scale, shift: as for `scaled`, from `calibrate`.

    Returns:
      The model with
        loss: (params, key, batch) -> (loss [B], metrics). The batch has "image" [B, ...], which is encoded; or, encoded
          before and not yet scaled, "mean" and "logvar" [B, *latent], from which z is drawn, or "latent" [B, *latent],
          which is z. Its other entries are passed on. The key is split, one part for the draw of z.
        sample: as in `diffusion`, with Samples.x0 decoded and Samples.trace in latents.
        invert: if `diffusion` has it: (params, x0, **options) -> the noise of the mean latents of x0.

    Raises:
      ValueError: when the loss is called, if the batch has none of these entries.

    >>> import jax.numpy as jnp
    >>> from typing import NamedTuple
    >>> class Ones(NamedTuple):
    ...     loss: Any = lambda params, key, batch: (batch["image"].sum(1), {})
    ...     sample: Any = lambda params, key, n: Samples(jnp.ones((n, 2)))
    >>> codec = Codec(lambda x: (x + 1, jnp.full_like(x, -jnp.inf)), lambda z: z - 1)
    >>> model = in_latent_space(Ones(), codec, scale=0.5)
    >>> model.loss(None, jax.random.key(0), {"image": jnp.ones((1, 2))})[0], model.sample(None, None, 1).x0
    (Array([2.], dtype=float32), Array([[1., 1.]], dtype=float32))
    """

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        draw_key, loss_key = _random.split(key)
        z = scale_latents(_latents(draw_key, codec, batch), scale, shift)
        others = {name: value for name, value in batch.items() if name not in _ENCODED}
        return diffusion.loss(params, loss_key, {**others, "image": z})

    def sample(params: Any, key: jax.Array, num_samples: int, **options: Any) -> Samples:
        latents = diffusion.sample(params, key, num_samples, **options)
        return Samples(scaled(codec, scale, shift).decode(latents.x0), latents.trace)

    def invert(params: Any, x0: jax.Array, **options: Any) -> jax.Array:
        own: Any = diffusion
        noise: jax.Array = own.invert(params, scale_latents(codec.encode(x0)[0], scale, shift), **options)
        return noise

    inverse = {"invert": invert} if hasattr(diffusion, "invert") else {}
    return diffusion._replace(loss=loss, sample=sample, **inverse)


def _latents(key: jax.Array, codec: Codec, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Unscaled latents: those of the batch, or drawn from its mean and logvar or from the encoder's."""
    if "latent" in batch:
        return batch["latent"]
    if "mean" in batch and "logvar" in batch:
        return reparameterize(key, batch["mean"], batch["logvar"])
    if "image" not in batch:
        raise ValueError(f"the batch needs 'image', or 'mean' and 'logvar', or 'latent'; got {sorted(batch)}")
    return reparameterize(key, *codec.encode(batch["image"]))
