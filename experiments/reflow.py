"""Draws pairs of noise and sample from a trained flow, for training a straighter one on them.

    python -m experiments.train --config=configs/flow.py --workdir=runs/flow
    python -m experiments.reflow --workdir=runs/flow
    python -m experiments.train --config=configs/flow.py:reflow --workdir=runs/reflow \\
        --config.data.pairs=runs/flow/pairs.npz

Writes --output, by default WORKDIR/pairs.npz, with the arrays `noise` and `images` [N, ...], `labels` if there are
classes, the same number of each, and `step` and `params` of the network. The second flow learns straight paths between
noise and the samples of the first flow, so that it needs few sampler steps, down to one. Liu et al., "Flow Straight and
Fast" (2022), https://arxiv.org/abs/2209.03003, algorithm 1. Sampler settings, such as the guidance scale, may be given
on the command line and influence the pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusers_fn.from_config import derived
from diffusers_fn.from_config.noise import make_noise
from diffusers_fn.from_config.outputs import VARIANCES
from diffusers_fn.from_config.samplers import make_plan
from diffusers_fn.solvers import start_level
from experiments import own, processes, runs, trained
from experiments.files import write_atomically

__all__ = ["check_plan", "main", "reflow"]


def reflow(
    config: ConfigDict,
    workdir: Path,
    *,
    num_pairs: int = 20_000,
    seed: int = 0,
    batch_size: int = 1_000,
    output: Path | None = None,
    params: str = "ema",
) -> Path:
    """Writes pairs drawn with the parameters of the newest checkpoint; returns the file's path.

    Args:
      config: config of the trained run; the sampler's settings may differ.
      workdir: its work directory.
      num_pairs: number of pairs.
      seed: random seed of the noise.
      batch_size: number of pairs that are drawn at a time; it does not change them.
      output: the .npz file; WORKDIR/pairs.npz by default.
      params: which parameters: "ema", "raw" or "ema:STD", see `states.choose_params`.

    Raises:
      ValueError: if the sampler is stochastic, or the process does not start at pure noise.
    """
    check_plan(config)
    model, networks, step = trained.load_trained(config, workdir, params)
    num_classes = derived.num_classes(config)
    labels = np.resize(np.arange(num_classes, dtype=np.int32), num_pairs) if num_classes else None
    key = jax.random.fold_in(runs.random_key(config, seed), 2)  # 0 is for training, 1 for samples

    def draw(params: Any, keys: jax.Array, cond: Any) -> tuple[jax.Array, jax.Array]:
        emit = lambda step: (step.x, step.level.sigma)  # noqa: E731
        samples = model.sample(params, keys, keys.shape[0], cond=cond, emit=emit)
        x, sigma = samples.trace
        return x[0] / sigma[0], samples.x0

    noise, images = trained.draw_in_batches(draw, networks, key, labels, num_pairs, batch_size, "drawing pairs")
    arrays: dict[str, Any] = {"noise": noise, "images": images, "step": np.int64(step), "params": np.str_(params)}
    if labels is not None:
        arrays["labels"] = labels
    output = output or workdir / "pairs.npz"
    if processes.is_main():
        write_atomically(output, lambda file: np.savez(file, **arrays))
    print(f"{num_pairs} pairs of step {step}: {output}")
    return output


def check_plan(config: ConfigDict) -> None:
    """Raises ValueError unless the sampler maps pure noise to a sample deterministically."""
    if config.latent.enabled:
        raise ValueError("config.latent.enabled: reflow straightens flows of data, not of latents")
    noise, variance = make_noise(config.noise_schedule), VARIANCES[config.variance]
    solver = make_plan(config.sampler, noise, variance, table=own.tables(config).solvers)()
    if solver.stochastic:
        raise ValueError(
            f"config.sampler.name is {config.sampler.name!r}, which draws noise on the way, so that the initial noise "
            "does not determine the sample: set it to 'heun' or another deterministic solver"
        )
    if start_level(solver).alpha[0] != 0:
        raise ValueError(
            f"the process {config.noise_schedule.process!r} (config.noise_schedule.process) does not start at pure "
            "noise: pairs are drawn from a 'flow'"
        )


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `reflow` with the flags of the command line."""
    given = flags.FLAGS
    reflow(
        config,
        workdir,
        num_pairs=given.num_pairs,
        seed=given.seed,
        batch_size=given.batch_size,
        output=given.output,
        params=given.params,
    )


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_pairs", 20_000, "Number of pairs.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed of the noise.", lower_bound=0)
    flags.DEFINE_integer(
        "batch_size", 1_000, "Number of pairs that are drawn at a time; it does not change them.", lower_bound=1
    )
    runs.define_path("output", None, "The .npz file to write; default: WORKDIR/pairs.npz.")
    trained.define_params_flag()
    runs.run(main)
