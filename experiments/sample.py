"""Draws samples from a trained model.

    python -m experiments.sample --config=configs/ddpm_digits.py --workdir=runs/digits --num_samples=100 \\
        --config.sampler.cfg_scale=3.0

Writes samples.npz (`samples`, and `labels` if there are classes) and samples.png into --output, by default
WORKDIR/sampled. The settings in config.sampler may differ from those of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import runs, trained
from experiments.files import write_atomically

__all__ = ["choose_labels", "main", "sample"]


def sample(
    config: ConfigDict,
    workdir: Path,
    *,
    num_samples: int = 100,
    labels: list[str] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    output: Path | None = None,
) -> None:
    """Draws samples with the averaged parameters of the newest checkpoint and writes samples.npz and samples.png.

    Args:
      config: config of the trained run; the sampler's settings may differ.
      workdir: its work directory.
      num_samples: number of samples.
      labels: class labels as on the command line, see `choose_labels`.
      seed: random seed of the samples.
      batch_size: number of samples that are drawn at a time; it does not change them.
      output: folder for samples.npz and samples.png; WORKDIR/sampled by default.
    """
    chosen = choose_labels(labels, runs.sampled_classes(config), num_samples)
    diffusion, networks, step = trained.load_trained(config, workdir)
    samples = trained.draw_samples(diffusion, networks, runs.random_key(config, seed), chosen, num_samples, batch_size)
    output = output or workdir / "sampled"
    output.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"samples": samples} | ({} if chosen is None else {"labels": chosen})
    write_atomically(output / "samples.npz", lambda file: np.savez(file, **arrays))
    columns = None
    if chosen is not None:  # one column per class, repeated until the picture is about square
        period = len(labels or range(runs.sampled_classes(config)))
        columns = period * max(1, round(num_samples**0.5 / period))
    runs.save_picture(output / "samples.png", samples, columns)
    print(f"{len(samples)} samples of step {step}: {output / 'samples.png'} and {output / 'samples.npz'}")


def choose_labels(given: list[str] | None, num_classes: int, num_samples: int) -> np.ndarray | None:
    """Returns the class labels [num_samples] of the samples, cycling through --labels; None for no condition.

    Args:
      given: value of --labels: ["3", "5"] or similar, ["none"] for no condition, None for all classes.
      num_classes: number of classes of the model; 0 is unconditional.
      num_samples: number of labels.

    Raises:
      ValueError: if a label is not a class of the model.

    >>> choose_labels(["3", "5"], num_classes=10, num_samples=4)
    array([3, 5, 3, 5], dtype=int32)
    """
    if given == ["none"] or (given is None and not num_classes):
        return None
    if not num_classes:
        raise ValueError("--labels was given, but this model is unconditional (config.backbone.num_classes is 0)")
    try:
        labels = np.array(range(num_classes) if given is None else [int(label) for label in given], np.int32)
    except (ValueError, OverflowError):
        raise ValueError(
            f"--labels must be integers separated by commas, or none; got {','.join(given or [])}"
        ) from None
    if not labels.size or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"--labels must lie in [0, {num_classes - 1}]; got {','.join(given or [])}")
    return np.resize(labels, num_samples)


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `sample` with the flags of the command line."""
    given = flags.FLAGS
    sample(
        config,
        workdir,
        num_samples=given.num_samples,
        labels=given.labels,
        seed=given.seed,
        batch_size=given.batch_size,
        output=given.output,
    )


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_samples", 100, "Number of samples.", lower_bound=1)
    flags.DEFINE_list(
        "labels",
        None,
        "Comma-separated class labels, drawn in turn, such as 3 or 0,1,2 (default: all classes); none: no label.",
    )
    flags.DEFINE_integer("seed", 0, "Random seed of the samples.", lower_bound=0)
    flags.DEFINE_integer(
        "batch_size", 100, "Number of samples that are drawn at a time; it does not change them.", lower_bound=1
    )
    runs.define_path("output", None, "Folder for samples.npz and samples.png; default: WORKDIR/sampled.")
    runs.run(main)
