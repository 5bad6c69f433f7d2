"""Draws pairs of noise and sample from a trained flow, for training a straighter one on them.

    python -m experiments.train --config=configs/flow.py --workdir=runs/flow
    python -m experiments.reflow --config=configs/flow.py --workdir=runs/flow
    python -m experiments.train --config=configs/flow.py:reflow --workdir=runs/reflow \\
        --config.data.pairs=runs/flow/pairs.npz

Writes --output, by default WORKDIR/pairs.npz: `noise` and `images` [N, ...], and `labels` where there are classes,
equally many of each. Where the first flow takes noise is where the second learns to go in a straight line, so that it
needs few steps, down to one. Liu et al., "Flow Straight and Fast" (2022), https://arxiv.org/abs/2209.03003, algorithm
1. Sampler settings, such as the guidance scale, may be those of the command line and become part of the pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusers_fn.from_config.noise import make_noise
from diffusers_fn.from_config.outputs import VARIANCES
from diffusers_fn.from_config.samplers import make_plan
from diffusers_fn.solvers import start_level
from experiments import runs, trained
from experiments.files import write_atomically


def reflow(
    config: ConfigDict,
    workdir: Path,
    *,
    num_pairs: int = 20_000,
    seed: int = 0,
    batch_size: int = 1_000,
    output: Path | None = None,
) -> Path:
    """Returns the file that it writes: pairs by the averaged parameters of the newest checkpoint.

    Args:
      config, workdir: as trained; the sampler's settings may differ.
      num_pairs: how many.
      seed: of the noise.
      batch_size: how many at once; it does not change them.
      output: the .npz file; WORKDIR/pairs.npz by default.

    Raises:
      ValueError: if noise does not determine the sample, or the process does not start at pure noise.
    """
    check_plan(config)
    model, params, step = trained.load_trained(config, workdir)
    num_classes = config.backbone.num_classes
    labels = np.resize(np.arange(num_classes, dtype=np.int32), num_pairs) if num_classes else None
    key = jax.random.fold_in(runs.random_key(config, seed), 2)  # 0 trains, 1 samples

    def draw(params: Any, keys: jax.Array, cond: Any) -> tuple[jax.Array, jax.Array]:
        emit = lambda step: (step.x, step.level.sigma)  # noqa: E731
        samples = model.sample(params, keys, keys.shape[0], cond=cond, emit=emit)
        x, sigma = samples.trace
        return x[0] / sigma[0], samples.x0

    noise, images = trained.draw_in_batches(draw, params, key, labels, num_pairs, batch_size, "drawing pairs")
    arrays: dict[str, Any] = {"noise": noise, "images": images}
    if labels is not None:
        arrays["labels"] = labels
    output = output or workdir / "pairs.npz"
    write_atomically(output, lambda file: np.savez(file, **arrays))
    print(f"{num_pairs} pairs of step {step}: {output}")
    return output


def check_plan(config: ConfigDict) -> None:
    """Raises ValueError unless the config's sampler takes noise, and nothing else, to a sample."""
    if config.latent.enabled:
        raise ValueError("config.latent.enabled: reflow straightens flows of data, not of latents")
    solver = make_plan(config.sampler, make_noise(config.noise_schedule), VARIANCES[config.variance])()
    if solver.stochastic:
        raise ValueError(
            f"config.sampler.name is {config.sampler.name!r}, which draws noise on the way: noise and sample are no "
            "pair. Set it to 'heun', or another deterministic one"
        )
    if start_level(solver).alpha[0] != 0:
        raise ValueError(
            f"the process {config.noise_schedule.process!r} (config.noise_schedule.process) does not start at pure "
            "noise: pairs are drawn from a 'flow'"
        )


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `reflow` with the command line's flags."""
    given = flags.FLAGS
    reflow(
        config,
        workdir,
        num_pairs=given.num_pairs,
        seed=given.seed,
        batch_size=given.batch_size,
        output=Path(given.output) if given.output else None,
    )


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_pairs", 20_000, "How many pairs.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 1_000, "How many pairs at once.", lower_bound=1)
    flags.DEFINE_string("output", None, "The .npz file; default: WORKDIR/pairs.npz.")
    runs.run(main)
