"""Stage two of latent diffusion: a model of latents as a model of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax

from diffusers_fn import _random
from diffusers_fn.latents.codec import Codec, reparameterize, scale_latents, scaled
from diffusers_fn.sampling import Samples

_CODED = ("image", "latent", "mean", "logvar")  # the entries of a batch that become the latent


class Model(Protocol):
    """What a model must have to be put into latent space; a NamedTuple such as `Diffusion` does."""

    @property
    def loss(self) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
        """(params, key, batch) -> (loss [B], metrics), batch["image"] the data."""
        ...

    @property
    def sample(self) -> Callable[..., Samples]:
        """(params, key, num_samples, **options) -> Samples."""
        ...

    def _replace(self, **changes: Any) -> Any: ...


M = TypeVar("M", bound=Model)


def in_latent_space(diffusion: M, codec: Codec, *, scale: Any = 1.0, shift: Any = 0.0) -> M:
    """Returns the model of data that a model of latents is: its loss encodes the batch, its samples are decoded.

        z = (reparameterize(encode(x)) - shift) scale,    x = decode(z / scale + shift)

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
    https://arxiv.org/abs/2112.10752, section 3.3. Only the loss and the samples change; `init` and `apply` stay those
    of the network that sees latents. Options of `sample` act on latents: emit, and transform, a guidance. Latents have
    no bounds, so the model must not clip them.

    Args:
      diffusion: a model of latents, from `build` or any NamedTuple with its loss and sample.
      codec: the frozen autoencoder. Where its parameters are large, call this inside the jitted function (see
        `make_codec`).
      scale, shift: as for `scaled`, from `calibrate`.

    Returns:
      The model with
        loss: (params, key, batch) -> (loss [B], metrics). A batch holds "image" [B, ...]; or, encoded before and not
          yet scaled, "mean" and "logvar" [B, *latent], from which z is drawn anew, or "latent", z itself: then the
          encoder does not run. All else in the batch is passed on. The draw of z has a key of its own.
        sample: as before, Samples.x0 decoded; Samples.trace is what was asked for, in latents.

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
        others = {name: value for name, value in batch.items() if name not in _CODED}
        return diffusion.loss(params, loss_key, {**others, "image": z})

    def sample(params: Any, key: jax.Array, num_samples: int, **options: Any) -> Samples:
        latents = diffusion.sample(params, key, num_samples, **options)
        return Samples(scaled(codec, scale, shift).decode(latents.x0), latents.trace)

    return diffusion._replace(loss=loss, sample=sample)


def _latents(key: jax.Array, codec: Codec, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Unscaled latents: given, drawn from what is given, or from the encoder."""
    if "latent" in batch:
        return batch["latent"]
    if "mean" in batch and "logvar" in batch:
        return reparameterize(key, batch["mean"], batch["logvar"])
    if "image" not in batch:
        raise ValueError(f"a batch needs 'image', or 'mean' and 'logvar', or 'latent'; got {sorted(batch)}")
    return reparameterize(key, *codec.encode(batch["image"]))
