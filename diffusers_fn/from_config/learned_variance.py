"""The objectives that train a learned variance: config.loss.objective = "hybrid" or "vlb"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from diffusers_fn import _random, losses
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config.batches import draw_noise
from diffusers_fn.levels import add_noise
from diffusers_fn.likelihood import hybrid_loss, vlb_loss
from diffusers_fn.noise_schedules import NoiseSchedule
from diffusers_fn.parameterizations import split_variance

if TYPE_CHECKING:
    from diffusers_fn.from_config.objectives import Parts

Metrics = dict[str, jax.Array]


def hybrid(parts: Parts, error: losses.Error, weight: losses.Weight | None) -> Callable[..., tuple[jax.Array, Metrics]]:
    """Returns the loss L_simple + vlb_weight L_vlb (see `likelihood.hybrid_loss`).

    Args:
      parts: of the model.
      error, weight: of L_simple.

    Raises:
      ValueError: unless the model is on a table and told its timesteps, without offset noise.
    """
    run = _on_timesteps(parts)
    vlb_weight = parts.config.loss.vlb_weight

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        given, knobs, metrics = run(params, key, batch)
        return hybrid_loss(*given, vlb_weight=vlb_weight, error=error, weight=weight, **knobs), metrics

    return loss


def vlb(parts: Parts) -> Callable[..., tuple[jax.Array, Metrics]]:
    """Returns the loss L_vlb in bits per dimension (see `likelihood.vlb_loss`).

    Raises:
      ValueError: as `hybrid`, or if another error or weight is asked for.
    """
    section = parts.config.loss
    if section.loss_type != "mse" or section.weight != "simple":
        raise ValueError(
            "config.loss.objective is 'vlb', which has its own error and weight: set loss.loss_type to 'mse' and "
            f"loss.weight to 'simple'; got {section.loss_type!r} and {section.weight!r}"
        )
    run = _on_timesteps(parts)

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        _, _, metrics = run(params, key, batch)
        return metrics["vlb"], metrics

    return loss


def _on_timesteps(parts: Parts) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any], Metrics]]:
    """(params, key, batch) -> what the losses are called with, and the metrics."""
    schedule = _check(parts)
    knobs = {
        "parameterization": parts.parameterization,
        "variance": parts.variance,
        "num_levels": parts.config.loss.num_levels,
    }

    def run(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[tuple[Any, ...], dict, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = parts.read(label_key, batch)
        level = parts.draw_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        x = add_noise(x0, eps, level)
        options = {"key": _random.one_key(dropout_key), "train": True}
        out = network_output(parts.apply, params, parts.parameterization, x, level, cond, **options)
        given = (schedule, out, x0, eps, level.t.astype(jnp.int32))
        plain = losses.denoising_loss(split_variance(out, x)[0], x0, eps, level, parts.parameterization)
        return given, knobs, {"mse": plain, "vlb": vlb_loss(*given, **knobs)}

    return run


def _check(parts: Parts) -> NoiseSchedule:
    config, schedule = parts.config, parts.noise.schedule
    objective = config.loss.objective
    if schedule is None:
        raise ValueError(
            f"config.loss.objective is {objective!r}, the bound of a table of timesteps: set noise_schedule.process to "
            f"'table'; got {config.noise_schedule.process!r}"
        )
    if config.noise_schedule.time_label != "step":
        raise ValueError(
            f"config.loss.objective is {objective!r}, which counts timesteps: set noise_schedule.time_label to 'step'; "
            f"got {config.noise_schedule.time_label!r}"
        )
    if config.loss.time_sampler == "log_normal":
        raise ValueError(
            f"config.loss.objective is {objective!r}, which draws timesteps: set loss.time_sampler to 'uniform' or "
            "'loss_second_moment'; got 'log_normal'"
        )
    if config.loss.offset_noise:
        raise ValueError(
            f"config.loss.objective is {objective!r}, the bound for independent noise: set loss.offset_noise to 0; "
            f"got {config.loss.offset_noise}"
        )
    return schedule
