"""From config.self_conditioning to a network conditioned on its previous estimate of x0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from diffusers_fn import backbones
from diffusers_fn.denoisers import make_denoiser
from diffusers_fn.from_config.objective_types import ObjectiveInputs
from diffusers_fn.levels import Level
from diffusers_fn.self_conditioning import first_estimate
from diffusers_fn.solvers import Solver, with_memory

__all__ = ["carry_estimates", "estimate_x0", "wrap_network"]


def wrap_network(module: nn.Module, bound: float) -> nn.Module:
    """Returns the network, conditioned on its previous estimate of x0 unless `bound` (config.self_conditioning) is 0.

    Raises:
      ValueError: if the bound is negative.
    """
    if bound < 0:
        raise ValueError(f"config.self_conditioning must be 0 (off), the largest |x0| of the data, or inf; got {bound}")
    return backbones.SelfConditioned(module, bound=float(bound)) if bound else module


def estimate_x0(
    inputs: ObjectiveInputs,
    params: Any,
    key: jax.Array,
    x: jax.Array,
    level: Level,
    cond: Any,
    options: Mapping[str, Any],
) -> dict[str, jax.Array]:
    """Returns {"x0": the previous estimate} that a training step passes to the network; {} without self-conditioning.

    Args:
      inputs: the model.
      params: its parameters.
      key: decides which examples get an estimate and which get zeros.
      x, level, cond: the network's inputs.
      options: further keywords of `inputs.apply`.
    """
    if not inputs.self_conditioned:
        return {}

    def predict(x0: jax.Array) -> jax.Array:
        return make_denoiser(inputs.apply, params, inputs.parameterization, x0=x0, **options)(x, level, cond).x0

    return {"x0": first_estimate(key, predict, x)}


def carry_estimates(solver: Solver, name: str) -> Solver:
    """Returns the solver `name`, which passes each estimate of x0 on to the next network evaluation.

    Raises:
      ValueError: if the solver cannot.
    """
    try:
        return with_memory(solver)
    except ValueError as error:
        raise ValueError(f"config.sampler.name is {name!r}, which self_conditioning cannot use: {error}") from error
