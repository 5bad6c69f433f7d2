"""The objectives of few-step models: config.loss.objective = "consistency" or "mean_flow"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _random, backbones, few_step
from diffusers_fn._arrays import expand
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config.batches import draw_noise
from diffusers_fn.guidance import apply_guidance
from diffusers_fn.levels import Level, add_noise, log_snr
from diffusers_fn.losses import TimeSampler, mse
from diffusers_fn.parameterizations import target
from diffusers_fn.processes import Process

if TYPE_CHECKING:
    from diffusers_fn.from_config.objectives import Parts

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def wrap_network(config: ConfigDict, module: nn.Module) -> nn.Module:
    """Returns the backbone as the objective needs it: told of two times for mean flows."""
    if config.loss.objective == "mean_flow":
        return backbones.TwoTimeConditioned(module, label_scale=float(config.noise_schedule.noise_steps))
    return module


def consistency(parts: Parts) -> Loss:
    """Returns the loss of continuous-time consistency training (see `few_step.consistency_tangent`).

    Raises:
      ValueError: unless the process is trigonometric, told its steps, and the parameterization v.
    """
    process = _check(parts, "trigonometric", "v")
    scale = parts.config.loss.tangent_scale

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = parts.read(label_key, batch)
        level = parts.draw_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        x, velocity = add_noise(x0, eps, level), target(parts.parameterization, x0, eps, level)
        masks = _random.one_key(dropout_key)

        def net(x: jax.Array, level: Level) -> jax.Array:
            return network_output(parts.apply, params, parts.parameterization, x, level, cond, key=masks, train=True)

        out, tangent = few_step.consistency_tangent(net, process.level, x, process.time(log_snr(level)), velocity)
        return few_step.consistency_loss(out, tangent, scale=scale), {"mse": mse(out, velocity)}

    return loss


def mean_flow(parts: Parts, draw_time: TimeSampler) -> Loss:
    """Returns the loss of mean flows (see `few_step.mean_flow_target`), loss.guidance_scale learned by the network.

    Raises:
      ValueError: unless the process is the flow from 0 to 1, told its steps, and the parameterization velocity.
    """
    process = _check(parts, "flow", "velocity")
    noise = parts.config.noise_schedule
    if noise.shift != 1 or noise.t_min is not None or noise.t_max is not None:
        raise ValueError(
            "config.loss.objective is 'mean_flow', which draws its times from 0 to 1, with x = (1 - t) x0 + t eps: set "
            f"noise_schedule.shift to 1, t_min and t_max to None; got {noise.shift}, {noise.t_min} and {noise.t_max}"
        )
    section, num_classes = parts.config.loss, int(parts.config.backbone.get("num_classes") or 0)
    if section.guidance_scale != 1 and not (num_classes and section.label_dropout):
        raise ValueError(
            f"config.loss.guidance_scale is {section.guidance_scale}, which needs the network's prediction without a "
            "label: set backbone.num_classes and loss.label_dropout, or guidance_scale to 1"
        )

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = parts.read(label_key, batch)
        t, r = few_step.draw_two_times(time_key, x0.shape[0], draw_time, share=section.two_times_share)
        eps = draw_noise(noise_key, batch, x0)
        x, velocity = add_noise(x0, eps, process(t)), eps - x0
        masks = _random.one_key(dropout_key)

        def net(x: jax.Array, t: jax.Array, r: jax.Array, cond: Any = cond) -> jax.Array:
            return parts.apply(params, x, (process(t).t, process(r).t), cond, key=masks, train=True)

        wanted = velocity
        if section.guidance_scale != 1:
            without = jax.lax.stop_gradient(net(x, t, t, jnp.full_like(cond, num_classes)))
            guided = apply_guidance(velocity, without, section.guidance_scale)
            wanted = jnp.where(expand(cond == num_classes, x), velocity, guided)
        out, average = few_step.mean_flow_target(net, x, t, r, wanted)
        return few_step.adaptive_mse(out, average, power=section.adaptive_power), {"mse": mse(out, average)}

    return loss


def _check(parts: Parts, process: str, parameterization: str) -> Process:
    config = parts.config
    objective, section = config.loss.objective, config.noise_schedule
    if section.process != process or section.time_label != "step" or config.parameterization != parameterization:
        raise ValueError(
            f"config.loss.objective is {objective!r}: set noise_schedule.process to {process!r}, "
            f"noise_schedule.time_label to 'step' and parameterization to {parameterization!r}; got "
            f"{section.process!r}, {section.time_label!r} and {config.parameterization!r}"
        )
    loss = config.loss
    if loss.loss_type != "mse" or loss.weight != "simple" or loss.offset_noise:
        raise ValueError(
            f"config.loss.objective is {objective!r}, which has its own error and weight: set loss.loss_type to 'mse', "
            f"loss.weight to 'simple' and loss.offset_noise to 0; got {loss.loss_type!r}, {loss.weight!r} and "
            f"{loss.offset_noise}"
        )
    assert parts.noise.process is not None
    return parts.noise.process
