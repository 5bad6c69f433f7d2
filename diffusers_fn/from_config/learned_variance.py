"""The objectives that train a learned variance: config.loss.objective = "hybrid" or "vlb"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _random, losses
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config.batches import draw_noise
from diffusers_fn.from_config.loss_terms import make_error, make_weight
from diffusers_fn.from_config.objective_types import Loss, Metrics, ObjectiveInputs
from diffusers_fn.from_config.time_samplers import TIME_SAMPLERS
from diffusers_fn.levels import add_noise
from diffusers_fn.likelihood import hybrid_loss, vlb_loss
from diffusers_fn.parameterizations import split_variance

__all__ = ["hybrid", "vlb"]


def hybrid(settings: ConfigDict, inputs: ObjectiveInputs) -> Loss:
    """Returns the loss L_simple + vlb_weight L_vlb (see `likelihood.hybrid_loss`).

    Args:
      settings: config.loss: loss_type and weight of L_simple, vlb_weight, num_levels.
      inputs: the model, on a table of betas.

    Raises:
      ValueError: if a name is not allowed, or config.loss.time_sampler does not draw timesteps.
    """
    error, weight = make_error(settings), make_weight(settings, inputs.noise, inputs.sigma_data)
    evaluate = _on_timesteps(settings, inputs)
    vlb_weight = settings.vlb_weight

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        arguments, options, metrics = evaluate(params, key, batch)
        return hybrid_loss(*arguments, vlb_weight=vlb_weight, error=error, weight=weight, **options), metrics

    return loss


def vlb(settings: ConfigDict, inputs: ObjectiveInputs) -> Loss:
    """Returns the loss L_vlb in bits per dimension (see `likelihood.vlb_loss`).

    Args:
      settings: config.loss: num_levels.
      inputs: the model, on a table of betas.

    Raises:
      ValueError: if config.loss.time_sampler does not draw timesteps.
    """
    evaluate = _on_timesteps(settings, inputs)

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        _, _, metrics = evaluate(params, key, batch)
        return metrics["vlb"], metrics

    return loss


def _on_timesteps(
    settings: ConfigDict, inputs: ObjectiveInputs
) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any], Metrics]]:
    """Returns (params, key, batch) -> (arguments and keywords of `hybrid_loss` and `vlb_loss`, metrics)."""
    if TIME_SAMPLERS[settings.time_sampler].levels is not None:
        raise ValueError(
            f"config.loss.objective is {settings.objective!r}, which draws timesteps: set loss.time_sampler to "
            f"'uniform' or 'loss_second_moment'; got {settings.time_sampler!r}"
        )
    schedule = inputs.noise.schedule
    assert schedule is not None  # by the requirements of the table
    options = {
        "parameterization": inputs.parameterization,
        "variance": inputs.variance,
        "num_levels": settings.num_levels,
    }

    def evaluate(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[tuple[Any, ...], dict, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = inputs.read_batch(label_key, batch)
        level = inputs.sample_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        x = add_noise(x0, eps, level)
        out = network_output(
            inputs.apply, params, inputs.parameterization, x, level, cond,
            key=_random.one_key(dropout_key), train=True,
        )  # fmt: skip
        arguments = (schedule, out, x0, eps, level.t.astype(jnp.int32))
        plain = losses.denoising_loss(split_variance(out, x)[0], x0, eps, level, inputs.parameterization)
        return arguments, options, {"mse": plain, "vlb": vlb_loss(*arguments, **options)}

    return evaluate
