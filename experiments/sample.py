"""Draws samples from a trained model.

    python -m experiments.sample --workdir=runs/digits --num_samples=100 \\
        --config.sampler.cfg_scale=3.0

A text-conditional model takes --prompt="red heart", which may be repeated; the samples cycle through the prompts.
Writes samples.npz (`samples`, and `labels` or `prompts`), samples.png and samples.json (what they were drawn
with) into --output, by default WORKDIR/sampled. The settings in config.sampler may differ from those of training. No
data are read. Ctrl-C keeps the batches that are done in OUTPUT/parts; the same command continues.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusers_fn.from_config.derived import data_range
from experiments import processes, runs, texts, trained
from experiments.files import write_text
from experiments.labels import choose_labels
from experiments.parts import Parts
from experiments.pictures import picture_range, save_picture
from experiments.provenance import provenance
from experiments.workdir import class_names, recorded_data

__all__ = ["choose_labels", "main", "read_shape", "sample"]

_PICTURED = 1_000  # samples in the picture, or fewer of images with many pixels
_VALUES = 2**26


def sample(
    config: ConfigDict,
    workdir: Path,
    *,
    num_samples: int = 100,
    labels: list[str] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    output: Path | None = None,
    params: str = "ema",
    shape: tuple[int, ...] | None = None,
    prompts: Sequence[str] | None = None,
) -> None:
    """Draws samples with the parameters of the newest checkpoint and writes samples.npz, samples.png and samples.json.

    Args:
      config: config of the trained run; the sampler's settings may differ.
      workdir: its work directory.
      num_samples: number of samples.
      labels: class labels as on the command line, see `choose_labels`.
      seed: random seed of the samples.
      batch_size: number of samples that are drawn at a time; it does not change them.
      output: folder for the files; WORKDIR/sampled by default.
      params: which parameters: "ema", "raw" or "ema:STD", see `states.choose_params`.
      shape: of one sample, for networks of any image size; None: that of the data.
      prompts: of a text-conditional model, drawn in turn; None: no text.

    Raises:
      ValueError: if an argument does not fit the model, or OUTPUT/parts holds samples of another command.
      SystemExit: on Ctrl-C, with the code 75; the batches that are done are kept.
    """
    names, num_classes = class_names(workdir), trained.sampled_classes(config)
    absent = (recorded_data(workdir) or {}).get("absent_classes", ())
    chosen = choose_labels(labels, num_classes, num_samples, names, absent)
    cond = chosen
    if prompts:
        cond = texts.of_prompts(config, workdir, [prompts[i % len(prompts)] for i in range(num_samples)])
    key = runs.random_key(config, seed)
    diffusion, networks, step = trained.load_trained(config, workdir, params)
    about: dict[str, Any] = provenance(config, workdir, step, params)
    about |= {"seed": seed, "num_samples": num_samples, "batch_size": batch_size, "shape": shape, "labels": labels}
    if prompts:
        about["prompts"] = list(prompts)
    about["sampler"] = config.sampler.to_dict()
    output = output or workdir / "sampled"
    parts = Parts(output / "parts", about)
    try:
        trained.draw_samples(diffusion, networks, key, cond, num_samples, batch_size, shape=shape, parts=parts)
    except KeyboardInterrupt:
        raise parts.interrupted(num_samples) from None

    def write() -> None:
        arrays: dict[str, Any] = {} if chosen is None else {"labels": chosen}
        if chosen is not None and names:
            arrays["class_names"] = np.array(names)
            about["class_names"] = list(names)
        if prompts:
            arrays["prompts"] = np.array([prompts[i % len(prompts)] for i in range(num_samples)])
        parts.write_npz(output / "samples.npz", **arrays)
        write_text(output / "samples.json", json.dumps(about, indent=2) + "\n")
        if chosen is not None and names:
            print("classes: " + ", ".join(f"{names[label]} ({label})" for label in np.unique(chosen)))
        pictured = parts.read(min(_PICTURED, _VALUES // int(np.prod(shape or config.data.shape)) + 1))
        columns = None
        if cond is not None:  # one column per class or prompt, repeated until the picture is about square
            period = len(prompts or labels or np.unique(cond))
            columns = period * max(1, round(len(pictured) ** 0.5 / period))
        bounds = picture_range(data_range(config), pictured)
        save_picture(output / "samples.png", pictured, columns, None, bounds, alpha=config.data.name == "images")
        parts.remove()
        print(f"{num_samples} samples of step {step}: {_described(output, pictured, num_samples, config, bounds)}")

    processes.on_main(write)


def _described(
    output: Path, pictured: np.ndarray, num_samples: int, config: ConfigDict, bounds: tuple[float, float]
) -> str:
    notes = [f"the first {len(pictured)}"] if len(pictured) < num_samples else []
    if data_range(config) is None and pictured.ndim == 4:
        notes.append(f"black is {bounds[0]:.4g}, white {bounds[1]:.4g}")
    return f"{output / 'samples.png'}{' (' + '; '.join(notes) + ')' if notes else ''} and {output / 'samples.npz'}"


def read_shape(given: Sequence[str] | None, data_shape: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the shape of one sample for --shape; the channels are those of the data if only a size is given.

    Raises:
      ValueError: if it is not a list of positive integers of the length of the data's shape, or one less.

    >>> read_shape(["16", "24"], (8, 8, 3)), read_shape(None, (8, 8, 3))
    ((16, 24, 3), None)
    """
    if given is None:
        return None
    if not given or not all(size.isdecimal() and int(size) > 0 for size in given):
        raise ValueError(f"--shape must be positive integers such as 32,48; got {','.join(given)}")
    shape = tuple(int(size) for size in given)
    if len(shape) == len(data_shape) - 1:
        shape += (int(data_shape[-1]),)
    if len(shape) != len(data_shape) or shape[-1] != data_shape[-1]:
        raise ValueError(
            f"--shape must be like the data's, {','.join(map(str, data_shape))}, with the same last number; got "
            f"{','.join(given)}"
        )
    return shape


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
        params=given.params,
        shape=read_shape(given.shape, tuple(config.data.shape)),
        prompts=given.prompt,
    )


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_integer("num_samples", 100, "Number of samples.", lower_bound=1)
    flags.DEFINE_list(
        "labels",
        None,
        "Comma-separated classes by name or number, drawn in turn, such as cat,dog or 0,1,2 (default: all classes); "
        "none: no label.",
    )
    flags.DEFINE_multi_string("prompt", None, "A text, for a text-conditional model; may be repeated.")
    flags.DEFINE_integer("seed", 0, "Random seed of the samples.", lower_bound=0)
    flags.DEFINE_integer(
        "batch_size", 100, "Number of samples that are drawn at a time; it does not change them.", lower_bound=1
    )
    runs.define_path("output", None, "Folder for the files; default: WORKDIR/sampled.")
    flags.DEFINE_list("shape", None, "Shape of a sample, such as 64,96, for networks of any size; default: the data's.")
    trained.define_params_flag()
    runs.run(main)
