"""From config.loss to a training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusers_fn import _random, losses
from diffusers_fn.from_config.choices import Requirement, choose
from diffusers_fn.from_config.denoising import denoising
from diffusers_fn.from_config.few_step import consistency, mean_flow
from diffusers_fn.from_config.learned_variance import hybrid, vlb
from diffusers_fn.from_config.objective_types import Loss, Metrics, ObjectiveEntry, ObjectiveInputs
from diffusers_fn.from_config.time_samplers import TIME_SAMPLERS

__all__ = ["OBJECTIVES", "Objective", "make_objective"]

_BOUND = (
    Requirement({"noise_schedule.process": "table"}, "is the bound of a table of timesteps"),
    Requirement({"noise_schedule.time_label": "step"}, "needs the number of the timestep"),
    Requirement({"loss.offset_noise": 0}, "is the bound for independent noise"),
)
_OWN_ERROR = Requirement({"loss.loss_type": "mse", "loss.weight": "simple"}, "has its own error and weight")
_OWN_LOSS = Requirement({**_OWN_ERROR.values, "loss.offset_noise": 0}, _OWN_ERROR.reason)


def _defined_for(process: str, parameterization: str) -> Requirement:
    values = {
        "noise_schedule.process": process,
        "noise_schedule.time_label": "step",
        "parameterization": parameterization,
    }
    return Requirement(values, f"is defined for the process {process!r} and the parameterization {parameterization!r}")


OBJECTIVES: Mapping[str, ObjectiveEntry] = {
    "denoising": ObjectiveEntry(denoising, self_conditioning=True),
    "hybrid": ObjectiveEntry(hybrid, _BOUND, learned_variance=True),
    "vlb": ObjectiveEntry(vlb, (*_BOUND, _OWN_ERROR), learned_variance=True),
    "consistency": ObjectiveEntry(consistency, (_defined_for("trigonometric", "v"), _OWN_LOSS), denoiser=False),
    "mean_flow": ObjectiveEntry(
        mean_flow,
        (
            _defined_for("flow", "velocity"),
            _OWN_LOSS,
            Requirement(
                {"noise_schedule.shift": 1, "noise_schedule.t_min": None, "noise_schedule.t_max": None},
                "draws its times from 0 to 1, with x = (1 - t) x0 + t eps",
            ),
        ),
        two_times=True,
        denoiser=False,
    ),
}


class Objective(NamedTuple):
    """A training loss, and what it needs beside the parameters.

    Attributes:
      loss: (params, key, batch) -> (loss [B], metrics [B]), with extras as a fourth argument if there are any.
      extras: at the start of training; None for nothing.
      update_extras: (extras, metrics [B]) -> extras after a step; None if they are constant.
    """

    loss: Loss
    extras: Any = None
    update_extras: Callable[[Any, Metrics], Any] | None = None


def make_objective(
    settings: ConfigDict, inputs: ObjectiveInputs, objectives: Mapping[str, ObjectiveEntry] = OBJECTIVES
) -> Objective:
    """Returns the objective that config.loss describes.

    Raises:
      ValueError: if a name or a number is not allowed.
    """
    entry: ObjectiveEntry = choose("loss.objective", settings.objective, objectives)
    loss = entry.make(settings, inputs)
    if TIME_SAMPLERS[settings.time_sampler].by_loss:
        return _importance_sampled(lambda inputs: entry.make(settings, inputs), inputs)
    return Objective(loss)


def _importance_sampled(make: Callable[[ObjectiveInputs], Loss], inputs: ObjectiveInputs) -> Objective:
    """The objective with timesteps drawn in proportion to their losses (Nichol & Dhariwal 2021, section 3.3)."""
    schedule = inputs.noise.schedule
    if schedule is None:
        raise ValueError(
            "config.loss.time_sampler is 'loss_second_moment', which needs a table of timesteps: set "
            f"noise_schedule.process to 'table'; got {inputs.noise.name!r}"
        )
    num_timesteps = schedule.betas.shape[0]

    def loss(
        params: Any, key: jax.Array, batch: Mapping[str, jax.Array], record: losses.LossSecondMoment
    ) -> tuple[jax.Array, Metrics]:
        time_key, key = _random.split(key, 2)
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        t, weight = losses.draw_times(time_key, record, batch_size)
        u = (t.astype(weight.dtype) + 0.5) / num_timesteps
        at_t = inputs._replace(sample_level=lambda key, batch_size: inputs.noise.level(u))
        per_example, metrics = make(at_t)(params, key, batch)
        return weight * per_example, metrics | {"timestep": t, "unweighted": per_example}

    def update(record: losses.LossSecondMoment, metrics: Metrics) -> losses.LossSecondMoment:
        return losses.update_loss_second_moment(record, metrics["timestep"], metrics["unweighted"])

    return Objective(loss, losses.loss_second_moment(num_timesteps), update)
