"""Sampling by artifex's models, with a trivial backbone in place of theirs; called as documented."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from artifex.generative_models.core import configuration
from artifex.generative_models.models.diffusion import DDIMModel, DDPMModel
from flax import nnx

from experiments.benchmarks.work import Work

__all__ = ["Tenth", "sample"]


class Tenth(nnx.Module):
    """The network 0.1 x."""

    def __call__(self, x: jax.Array, timesteps: Any = None, conditioning: Any = None, **_: Any) -> jax.Array:
        return 0.1 * x


def sample(shape: Sequence[int], steps: int, deterministic: bool = False) -> Work:
    """Samples by DDPM, or by DDIM with eta 0. Both clip their x0 estimates, so outputs are not comparable."""
    backbone = configuration.UNetBackboneConfig(
        name="unet", hidden_dims=(8,), activation="gelu", in_channels=shape[-1], out_channels=shape[-1]
    )
    schedule = configuration.NoiseScheduleConfig(name="linear", num_timesteps=1000)
    common: dict[str, Any] = {
        "name": "trivial",
        "backbone": backbone,
        "noise_schedule": schedule,
        "input_shape": tuple(shape[1:]),
    }
    model: Any
    if deterministic:
        model = DDIMModel(configuration.DDIMConfig(**common, eta=0.0, num_inference_steps=steps), rngs=nnx.Rngs(0))
    else:
        common["noise_schedule"] = dataclasses.replace(schedule, num_timesteps=steps)
        model = DDPMModel(configuration.DDPMConfig(**common), rngs=nnx.Rngs(0))
    model.backbone = Tenth()
    return Work(run=lambda: model.generate(shape[0]).block_until_ready())
