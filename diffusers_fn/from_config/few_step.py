"""The objectives of few-step models: config.loss.objective = "consistency" or "mean_flow"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _random, backbones, few_step
from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config.batches import draw_noise
from diffusers_fn.from_config.objective_types import Loss, Metrics, ObjectiveInputs
from diffusers_fn.from_config.time_samplers import make_time_sampler
from diffusers_fn.guidance import apply_guidance
from diffusers_fn.levels import Level, add_noise, log_snr
from diffusers_fn.losses import mse
from diffusers_fn.parameterizations import target

__all__ = ["consistency", "mean_flow", "wrap_network"]


def wrap_network(module: nn.Module, noise_steps: int) -> nn.Module:
    """Returns the network conditioned on two times, whose time labels are t times noise_steps."""
    return backbones.TwoTimeConditioned(module, label_scale=float(noise_steps))


def consistency(settings: ConfigDict, inputs: ObjectiveInputs) -> Loss:
    """Returns the loss of continuous-time consistency training (see `few_step.consistency_tangent`).

    Args:
      settings: config.loss: tangent_scale.
      inputs: the model: parameterization v on the trigonometric process, with time labels "step".
    """
    process, scale = inputs.noise.process, settings.tangent_scale
    assert process is not None

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = inputs.read_batch(label_key, batch)
        level = inputs.sample_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        x, velocity = add_noise(x0, eps, level), target(inputs.parameterization, x0, eps, level)
        masks = _random.one_key(dropout_key)

        def net(x: jax.Array, level: Level) -> jax.Array:
            return network_output(inputs.apply, params, inputs.parameterization, x, level, cond, key=masks, train=True)

        out, tangent = few_step.consistency_tangent(net, process.level, x, process.time(log_snr(level)), velocity)
        return few_step.consistency_loss(out, tangent, scale=scale), {"mse": mse(out, velocity)}

    return loss


def mean_flow(settings: ConfigDict, inputs: ObjectiveInputs) -> Loss:
    """Returns the loss of mean flows (see `few_step.mean_flow_target`), with guidance_scale learned by the network.

    Args:
      settings: config.loss: time_sampler, two_times_share, adaptive_power, guidance_scale.
      inputs: the model: parameterization velocity on the flow from 0 to 1, with time labels "step".

    Raises:
      ValueError: if guidance_scale needs a prediction without a label that the model does not learn.
    """
    process, num_classes = inputs.noise.process, inputs.num_classes
    assert process is not None
    sample_time = make_time_sampler(settings)
    if settings.guidance_scale != 1 and not (num_classes and settings.label_dropout):
        raise ValueError(
            f"config.loss.guidance_scale is {settings.guidance_scale}, which needs the network's prediction without a "
            "label: set data.num_classes and loss.label_dropout, or guidance_scale to 1"
        )

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = inputs.read_batch(label_key, batch)
        t, r = few_step.draw_two_times(time_key, x0.shape[0], sample_time, share=settings.two_times_share)
        eps = draw_noise(noise_key, batch, x0)
        x, velocity = add_noise(x0, eps, process(t)), eps - x0
        masks = _random.one_key(dropout_key)

        def net(x: jax.Array, t: jax.Array, r: jax.Array, cond: Any = cond) -> jax.Array:
            return inputs.apply(params, x, (process(t).t, process(r).t), cond, key=masks, train=True)

        wanted = velocity
        if settings.guidance_scale != 1:
            without = jax.lax.stop_gradient(net(x, t, t, jnp.full_like(cond, num_classes)))
            guided = apply_guidance(velocity, without, settings.guidance_scale)
            wanted = jnp.where(expand(cond == num_classes, x), velocity, guided)
        out, average = few_step.mean_flow_target(net, x, t, r, wanted)
        return few_step.adaptive_mse(out, average, power=settings.adaptive_power), {"mse": mse(out, average)}

    return loss
