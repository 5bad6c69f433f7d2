"""Evaluates the samples of a trained model beside held-out real data.

    python -m experiments.evaluate --config=configs/ddpm_digits.py --workdir=runs/digits

Draws config.evaluation.num_samples samples, the same number of each class, and writes evaluation.json into the work
directory: class accuracy by an independent classifier, Fréchet distance, precision and recall, distances to the
nearest training image, and standard deviations of the pixels; each beside the same figure of held-out real data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import data, runs, trained
from experiments.files import write_text
from experiments.metrics import evaluate_samples

__all__ = ["evaluate", "table"]


def evaluate(config: ConfigDict, workdir: Path, *, seed: int = 0) -> None:
    """Draws samples, writes evaluation.json and prints it as a table.

    Args:
      config: config of the trained run; the settings in config.sampler and config.evaluation may differ.
      workdir: its work directory.
      seed: random seed of the samples.
    """
    train, heldout = (data.load(runs.data_seed(config), split) for split in ("train", "heldout"))
    runs.check_data_fits(config, train)
    diffusion, networks, step = trained.load_trained(config, workdir)
    num_samples, num_classes = config.evaluation.num_samples, runs.sampled_classes(config)
    labels = np.resize(np.arange(num_classes, dtype=np.int32), num_samples) if num_classes else None
    samples = trained.draw_samples(
        diffusion, networks, runs.random_key(config, seed), labels, num_samples, config.evaluation.batch_size
    )
    figures: dict[str, Any] = {"step": step, "seed": seed, "sampler": config.sampler.to_dict()}
    figures["network_evaluations"] = trained.network_evaluations(config, diffusion)
    figures |= evaluate_samples(samples, labels, train, heldout)
    write_text(workdir / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"written to {workdir / 'evaluation.json'}")


def table(figures: dict[str, Any]) -> str:
    """Returns the figures as a table of text: one line per figure, with samples beside held-out real data."""
    rows = (
        [f"{figures['network_evaluations']} network evaluations per sample"] if "network_evaluations" in figures else []
    )
    rows += [f"{'':34}{'samples':>12}{'held-out':>12}"]
    for name, value in figures.items():
        if not isinstance(value, dict) or "samples" not in value:
            continue
        pairs = {name: (value["samples"], value["heldout"])}
        if isinstance(value["samples"], dict):
            pairs = {f"{name}.{part}": (value["samples"][part], value["heldout"][part]) for part in value["samples"]}
        rows += [f"{label:34}{sample:12.4f}{real:12.4f}" for label, (sample, real) in pairs.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("seed", 0, "Random seed of the samples.", lower_bound=0)
    runs.run(lambda config, workdir: evaluate(config, workdir, seed=flags.FLAGS.seed))
