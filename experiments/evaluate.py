"""Evaluates the samples of a trained model beside held-out real data.

    python -m experiments.evaluate --workdir=runs/digits

Draws config.evaluation.num_samples samples, the same number of each class or of evenly spaced training captions, and
writes evaluation.json into the work directory: class accuracy by an independent classifier, Fréchet distance,
precision and recall, distances to the nearest training image, and standard deviations of the pixels; each beside the
same figure of held-out real data. Ctrl-C keeps the samples that are drawn in WORKDIR/evaluation_parts; the same
command continues.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusers_fn.from_config.conditions import takes_text
from diffusers_fn.from_config.derived import data_range
from experiments import data, processes, runs, texts, trained
from experiments.files import write_text
from experiments.metrics import evaluate_samples
from experiments.parts import Parts
from experiments.provenance import provenance
from experiments.workdir import check_data

__all__ = ["asked_labels", "asked_texts", "evaluate", "table"]


def evaluate(
    config: ConfigDict, workdir: Path, *, seed: int = 0, params: str = "ema", allow_changes: bool = False
) -> None:
    """Draws samples, writes evaluation.json and prints it as a table.

    Args:
      config: config of the trained run; the settings in config.sampler and config.evaluation may differ.
      workdir: its work directory.
      seed: random seed of the samples.
      params: which parameters: "ema", "raw" or "ema:STD", see `states.choose_params`.
      allow_changes: accept other data than those of the training, of which the held-out part may have been trained on.

    Raises:
      ValueError: if config, data and run do not fit together, or the samples cannot be judged.
      SystemExit: on Ctrl-C, with the code 75; the batches that are done are kept.
    """
    section = runs.data_seed(config)
    train, heldout = (data.load(section, split) for split in ("train", "heldout"))
    runs.check_data_fits(config, train)
    record = data.describe(train, heldout)
    processes.on_main(lambda: check_data(workdir, record, allow_changes=allow_changes, train=False))
    if train.labels is None and (num_classes := trained.sampled_classes(config)):
        section.num_classes = num_classes  # a classifier guides an unconditional network
        train, heldout = (data.load(section, split) for split in ("train", "heldout"))
    diffusion, networks, step = trained.load_trained(config, workdir, params)
    num_samples, batch_size = config.evaluation.num_samples, config.evaluation.batch_size
    labels = asked_labels(config, train, num_samples)
    figures: dict[str, Any] = provenance(config, workdir, step, params)
    figures |= {"seed": seed, "sampler": config.sampler.to_dict()}
    parts = Parts(workdir / "evaluation_parts", figures | {"num_samples": num_samples, "batch_size": batch_size})
    try:
        key = runs.random_key(config, seed)
        cond = asked_texts(config, workdir, train, num_samples) if takes_text(config) else labels
        trained.draw_samples(diffusion, networks, key, cond, num_samples, batch_size, parts=parts)
    except KeyboardInterrupt:
        raise parts.interrupted(num_samples) from None
    figures["network_evaluations"] = trained.network_evaluations(config, diffusion)

    def write() -> None:
        whole = figures | evaluate_samples(parts.read(), labels, train, heldout, bounds=data_range(config))
        write_text(workdir / "evaluation.json", json.dumps(whole, indent=2) + "\n")
        parts.remove()
        print(table(whole))
        print(f"written to {workdir / 'evaluation.json'}")

    processes.on_main(write)


def asked_labels(config: ConfigDict, train: data.Dataset, num_samples: int) -> np.ndarray | None:
    """Returns the labels of the samples to judge, the same number of each class that the train split has; or None."""
    num_classes = trained.sampled_classes(config)
    if not num_classes:
        return None
    classes = np.arange(num_classes) if train.labels is None else np.unique(train.labels)
    return np.resize(classes.astype(np.int32), num_samples)


def asked_texts(config: ConfigDict, workdir: Path, train: data.Dataset, num_samples: int) -> np.ndarray:
    """Returns the conditions of the samples to judge: captions of the train split, evenly spaced and repeated."""
    captions = train.captions or ("",) * len(train)
    rows = np.linspace(0, len(train), num_samples, endpoint=False).astype(int)
    return texts.load_texts(config, workdir).encode([captions[int(row)] for row in rows])


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
    trained.define_params_flag()
    trained.define_allow_changes_flag()
    given = flags.FLAGS
    runs.run(
        lambda config, workdir: evaluate(
            config, workdir, seed=given.seed, params=given.params, allow_changes=given.allow_changes
        )
    )
