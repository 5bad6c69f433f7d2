"""Keeping a part of an image: by channels of a network made for it, or by replacing the state after every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level, add_noise, append
from diffusers_fn.pretrained.pipelines.parts import Parts
from diffusers_fn.pretrained.schedulers import Plan
from diffusers_fn.solvers.base import Solver, Step

__all__ = ["keeping", "known_channels", "latent_mask"]


def latent_mask(parts: Parts, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the mask of latents of a shape, 1 where new content is painted: that of every f-th pixel.

    Args:
      parts: of the pipeline.
      mask: [B or 1, H, W, 1], at least 0.5 where new content is painted.
      shape: of the latents, [B, H / f, W / f, channels].

    Raises:
      ValueError: if the mask has another size than the image.
    """
    factor = parts.latent_factor
    size = (shape[1] * factor, shape[2] * factor, 1)
    if mask.ndim != 4 or mask.shape[1:] != size or mask.shape[0] not in (1, shape[0]):
        raise ValueError(f"mask must have shape {[shape[0], *size]}, that of the image; got {list(mask.shape)}")
    every = (mask[:, ::factor, ::factor] >= 0.5).astype(jnp.float32)
    return jnp.broadcast_to(every, (*shape[:3], 1))


def known_channels(
    parts: Parts,
    params: Any,
    key: jax.Array,
    image: jax.Array | None,
    mask: jax.Array | None,
    shape: tuple[int, ...],
    encode: Callable[..., jax.Array],
) -> jax.Array:
    """Returns the mask and the latents of the image without the masked pixels, which are grey: [B, h, w, 1 + C].

    Raises:
      ValueError: if there is no image or mask.
    """
    if image is None or mask is None:
        raise ValueError("this network was trained for inpainting: pass image [B, H, W, 3] and mask [B, H, W, 1]")
    own = latent_mask(parts, mask, shape)
    known = encode(parts, key, params, jnp.where(mask >= 0.5, 0.0, image))
    return jnp.concatenate([own, jnp.broadcast_to(known, shape)], axis=-1)


def keeping(plan: Plan, known: jax.Array, noise: jax.Array, mask: jax.Array) -> Solver:
    """Returns the plan's solver, with the noised known latents in place of the state where the mask is 0.

    After each step, x is replaced by mask x + (1 - mask) (alpha known + sigma noise) at the next level, and after the
    last one by mask x + (1 - mask) known (Avrahami et al., "Blended Latent Diffusion", 2023,
    https://arxiv.org/abs/2206.02779, section 4.1); `inpaint` replaces the predicted x0.

    Args:
      plan: of the pipeline.
      known: [B, h, w, C].
      noise: [B, h, w, C], the same at every level.
      mask: [B, h, w, 1], 1 where new content is painted.
    """
    solver, levels = plan.solver, plan.solver.rows.level
    last = 1 if plan.final_denoise else 2  # rows from the last that is run
    after = append(levels[1:], Level(np.float64(1.0), np.float64(0.0), np.float64(0.0)))
    clean = np.arange(len(levels.sigma)) >= len(levels.sigma) - last
    after = Level(np.where(clean, 1.0, after.alpha), np.where(clean, 0.0, after.sigma), after.t)

    def step(key: Any, denoise: Denoiser, state: Any, row: Any) -> tuple[Any, Step]:
        own, level = row
        state, done = solver.step(key, denoise, state, own)
        x = mask * state.x + (1.0 - mask) * add_noise(known, noise, level)
        return dataclasses.replace(state, xs=(x, *state.xs[1:])), dataclasses.replace(done, x_next=x)

    return Solver(lambda x, rows: solver.init(x, rows[0]), step, (solver.rows, after), solver.stochastic)
