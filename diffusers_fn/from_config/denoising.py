"""The objective of a denoiser: config.loss.objective = "denoising"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _random, losses
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config.batches import draw_noise
from diffusers_fn.from_config.loss_terms import make_error, make_weight
from diffusers_fn.from_config.objective_types import Loss, Metrics, ObjectiveInputs
from diffusers_fn.from_config.self_conditioning import estimate_x0
from diffusers_fn.levels import add_noise
from diffusers_fn.parameterizations import split_variance

__all__ = ["denoising"]


def denoising(settings: ConfigDict, inputs: ObjectiveInputs) -> Loss:
    """Returns the loss of a network that predicts x0 from x = alpha x0 + sigma eps.

    batch["noise"], [B, ...], is the eps of each example where data and noise are coupled.

    Args:
      settings: config.loss: loss_type, weight, offset_noise.
      inputs: the model.

    Raises:
      ValueError: if a name or number is not allowed.
    """
    error, weight = make_error(settings), make_weight(settings, inputs.noise, inputs.sigma_data)
    offset = settings.offset_noise
    if offset < 0:
        raise ValueError(f"config.loss.offset_noise must not be negative; got {offset}")

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = inputs.read_batch(label_key, batch)
        level = inputs.sample_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        if offset:
            eps = losses.offset_noise(_random.fold_in(noise_key, jnp.uint32(1)), eps, offset)
        x = add_noise(x0, eps, level)
        options: dict[str, Any] = {"key": _random.one_key(dropout_key), "train": True}
        estimate_key = _random.fold_in(noise_key, jnp.uint32(2))
        options |= estimate_x0(inputs, params, estimate_key, x, level, cond, options)
        out = network_output(inputs.apply, params, inputs.parameterization, x, level, cond, **options)
        out, _ = split_variance(out, x)
        per_example = losses.denoising_loss(
            out, x0, eps, level, inputs.parameterization, error=error, weight=weight
        )  # fmt: skip
        unweighted = losses.denoising_loss(out, x0, eps, level, inputs.parameterization)
        return per_example, {"mse": unweighted}

    return loss
