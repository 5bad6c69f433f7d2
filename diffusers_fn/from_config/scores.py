"""From a model to the score of its noisy data, and to the noise that its sampler turns back into given data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn._arrays import concrete
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser, bind, ignore_cond, make_denoiser, score
from diffusers_fn.from_config.model import Model
from diffusers_fn.from_config.objective_types import ObjectiveEntry
from diffusers_fn.from_config.signatures import Invert, Score
from diffusers_fn.inversion import invert
from diffusers_fn.levels import Level

__all__ = ["make_invert", "make_score"]


def make_score(config: ConfigDict, model: Model, objective: ObjectiveEntry) -> Score:
    """Returns `Diffusion.score`: (params, x, level, cond=None) -> the score [B, ...], see `denoisers.score`."""

    def score_fn(params: Any, x: jax.Array, level: Level | ArrayLike, cond: Any = None) -> jax.Array:
        denoise = _denoiser(config, model, objective, params, cond, x.shape[0])
        at = level if isinstance(level, Level) else _level_at(model, level)
        return score(denoise(x, at), at)

    return score_fn


def make_invert(config: ConfigDict, model: Model, objective: ObjectiveEntry) -> Invert:
    """Returns `Diffusion.invert`: (params, x0, *, cond=None, num_inference_steps=None, refine=0) -> x [B, ...]."""

    def invert_fn(
        params: Any, x0: jax.Array, *, cond: Any = None, num_inference_steps: int | None = None, refine: int = 0
    ) -> jax.Array:
        settings = config.sampler
        num_steps = settings.num_inference_steps if num_inference_steps is None else num_inference_steps
        levels = model.inputs.noise.grid(settings.skip_type, num_steps)
        return invert(_denoiser(config, model, objective, params, cond, x0.shape[0]), levels, x0, refine=refine)

    return invert_fn


def _denoiser(
    config: ConfigDict, model: Model, objective: ObjectiveEntry, params: Any, cond: Any, batch_size: int
) -> Denoiser:
    """The model's denoiser with its condition bound, neither guided nor clipped."""
    if not objective.denoiser:
        raise ValueError(
            f"a model of the objective {config.loss.objective!r} predicts x0 along its own trajectory only: it has "
            "neither a score nor an inversion; set config.loss.objective to 'denoising'"
        )
    conditions, drops_labels = model.conditions, bool(config.loss.label_dropout)
    if cond is not None and not conditions:
        raise ValueError("cond was given, but this model is unconditional: set config.data.num_classes")
    if cond is None and conditions and not drops_labels:
        raise ValueError("this model was trained with loss.label_dropout = 0: pass cond, the class labels")
    if cond is not None and conditions is not None:
        cond = conditions.broadcast(cond, batch_size, allow_null=drops_labels)
    denoise = make_denoiser(model.inputs.apply, params, model.inputs.parameterization)
    return bind(denoise if conditions else ignore_cond(denoise), cond)


def _level_at(model: Model, u: ArrayLike) -> Level:
    """The level at the share u in [0, 1] of the way from the cleanest level to the noisiest."""
    known = concrete(u)
    if known is not None and not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"a time must lie in [0, 1], from the cleanest level to the noisiest; got {known}: divide a timestep by "
            "noise_schedule.noise_steps, or pass a Level"
        )
    u = jnp.asarray(u, jnp.result_type(float))
    return model.inputs.noise.level(jnp.minimum(u, 1.0 - jnp.finfo(u.dtype).epsneg))
