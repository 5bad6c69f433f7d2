"""Sampling loops around diffusers' schedulers, with a trivial network and with a real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers
import torch

from experiments.benchmarks.peers import torch_networks
from experiments.benchmarks.work import Work

__all__ = ["TABLE", "sample"]

TABLE = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def sample(
    shape: Sequence[int],
    steps: int,
    scheduler: str = "DDIMScheduler",
    eta: float = 0.0,
    folder: str = "",
    layout: str = "eager",
) -> Work:
    """Samples as diffusers' pipelines do; only deterministic samplers have an output, with channels last.

    Args:
      shape: shape of the samples, channels last.
      steps: number of sampler steps.
      scheduler: name of the scheduler class in diffusers.
      eta: eta of DDIM.
      folder: folder of the network; "" is the network 0.1 x.
      layout: see `torch_networks.load`.
    """
    start = torch_networks.tensors(shape, 0, layout)[0]
    network: Any = torch_networks.load(folder, layout)[1] if folder else lambda x, t: 0.1 * x
    options = {"eta": eta} if scheduler == "DDIMScheduler" else {}
    plan = getattr(diffusers, scheduler)(**TABLE, clip_sample=False)

    @torch.no_grad()
    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        plan.set_timesteps(steps)
        x = start
        for t in plan.timesteps:
            x = plan.step(network(x, t), t, x, generator=generator, **options).prev_sample
        return x

    deterministic = scheduler == "DDIMScheduler" and not eta
    return Work(run=run, output=(lambda: run().numpy().transpose(0, 2, 3, 1)) if deterministic else None)
