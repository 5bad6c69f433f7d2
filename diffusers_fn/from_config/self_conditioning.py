"""From config.self_conditioning to a network that is told its last estimate of x0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from diffusers_fn import backbones
from diffusers_fn.denoisers import make_denoiser
from diffusers_fn.levels import Level
from diffusers_fn.self_conditioning import first_estimate
from diffusers_fn.solvers import Solver, with_memory

if TYPE_CHECKING:
    from diffusers_fn.from_config.objectives import Parts


def wrap_network(config: ConfigDict, module: nn.Module) -> nn.Module:
    """Returns the backbone, told of an estimate of x0 where config.self_conditioning is its bound.

    Raises:
      ValueError: if the bound is negative, or the objective does not train with estimates.
    """
    bound, objective = config.self_conditioning, config.loss.objective
    if not bound:
        return module
    if bound < 0:
        raise ValueError(f"config.self_conditioning must be 0 (none) or the bound of the data; got {bound}")
    if objective != "denoising":
        raise ValueError(
            f"config.self_conditioning is {bound}, which the objective {objective!r} does not train: set "
            "loss.objective to 'denoising', or self_conditioning to 0"
        )
    return backbones.SelfConditioned(module, bound=float(bound))


def told(
    parts: Parts, params: Any, key: jax.Array, x: jax.Array, level: Level, cond: Any, options: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Returns what the network is told beside (x, t, cond, **options) in training: an estimate of x0, or nothing."""
    if not parts.config.self_conditioning:
        return {}

    def predict(x0: jax.Array) -> jax.Array:
        return make_denoiser(parts.apply, params, parts.parameterization, x0=x0, **options)(x, level, cond).x0

    return {"x0": first_estimate(key, predict, x)}


def carrying(config: ConfigDict, solver: Solver) -> Solver:
    """Returns the solver, carrying the estimate from evaluation to evaluation.

    Raises:
      ValueError: if it cannot.
    """
    try:
        return with_memory(solver)
    except ValueError as error:
        raise ValueError(
            f"config.sampler.name is {config.sampler.name!r}, which does not go with self_conditioning: {error}"
        ) from error
