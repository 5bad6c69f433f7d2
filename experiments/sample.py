"""Draws samples from a trained model.

    python -m experiments.sample --config=configs/digits.py --workdir=runs/digits --num_samples=100 \
        --config.sampler.cfg_scale=3.0

Writes samples.npz (`samples`, and `labels` where there are classes) and samples.png into --output, by default the
work directory's folder `sampled`. The sampler's settings may differ from those of training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import runs
from experiments.pictures import write_atomically

_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 100, "How many samples.", lower_bound=1)
_LABELS = flags.DEFINE_list(
    "labels", None, "Classes to draw, in turn, e.g. 3 or 0,1,2; default: all. 'none': no class."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "How many samples at once.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the samples; default: WORKDIR/sampled.")


def sample(config: ConfigDict, workdir: Path) -> None:
    """Draws samples with the averaged parameters of the newest checkpoint and writes them as numbers and picture."""
    labels = choose_labels(_LABELS.value, config.backbone.num_classes, _NUM_SAMPLES.value)
    diffusion, params, step = runs.load_trained(config, workdir)
    samples = runs.draw_samples(diffusion, params, _SEED.value, labels, _NUM_SAMPLES.value, _BATCH_SIZE.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else workdir / "sampled"
    output.mkdir(parents=True, exist_ok=True)
    arrays = {"samples": samples} | ({} if labels is None else {"labels": labels})
    write_atomically(output / "samples.npz", lambda file: np.savez(file, **arrays))
    runs.save_picture(output / "samples.png", samples)
    print(f"{len(samples)} samples of step {step}: {output / 'samples.png'} and {output / 'samples.npz'}")


def choose_labels(given: list[str] | None, num_classes: int, num_samples: int) -> np.ndarray | None:
    """Returns the labels [num_samples] that --labels asks for, repeated in turn; None for no condition.

    Raises:
      ValueError: if a label is no class of the model.
    """
    if given == ["none"] or (given is None and not num_classes):
        return None
    if not num_classes:
        raise ValueError("--labels was given, but this model is unconditional (config.backbone.num_classes is 0)")
    try:
        labels = np.array(range(num_classes) if given is None else [int(label) for label in given], np.int32)
    except ValueError:
        raise ValueError(
            f"--labels must be integers separated by commas, or none; got {','.join(given or [])}"
        ) from None
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"--labels must lie in [0, {num_classes - 1}]; got {','.join(given or [])}")
    return np.resize(labels, num_samples)


if __name__ == "__main__":
    runs.define_flags()
    runs.run(sample)
