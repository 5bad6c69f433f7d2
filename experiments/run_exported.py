"""Draws samples from an exported sampler, without model code: jax, flatbuffers, numpy, safetensors and Pillow.

    python -m experiments.run_exported --model=exported/digits --num_samples=100 --guidance_scale=4 --num_steps=20

Writes samples.npz (`samples`, and `labels` if there are classes) and, of images, samples.png into --output, by default
MODEL/sampled. The samples are those of `experiments.sample` for the same seed, labels, batch size and settings.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from experiments.files import write_atomically
from experiments.image_grids import picture_range, save_grid
from experiments.labels import choose_labels

__all__ = ["FILES", "FORMAT", "Model", "draw", "load", "main"]

FORMAT = 1  # of sampler.json; a reader knows all older ones
FILES = {"program": "sampler.jax", "params": "params.safetensors", "description": "sampler.json"}
_PICTURED = 1_000  # samples in the picture


class Model(NamedTuple):
    """An exported sampler.

    Attributes:
      call: (params, inputs) -> samples, compiled for each number of samples.
      params: {name: array}.
      about: the contents of sampler.json.
    """

    call: Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array]
    params: dict[str, Any]
    about: dict[str, Any]


def load(folder: Path) -> Model:
    """Returns the sampler in a folder that `experiments.export` wrote.

    Raises:
      ValueError: if there is none, it is of a newer format, or this version of JAX cannot read it or this platform
        cannot run it.
    """
    from safetensors.numpy import load_file  # of the extra `export`, which only this function needs

    path = folder / FILES["description"]
    if not path.exists():
        raise ValueError(
            f"{folder} holds no exported sampler: python -m experiments.export --output={folder} writes one"
        )
    about = json.loads(path.read_text())
    if about["format"] > FORMAT:
        raise ValueError(f"{path} has the format {about['format']}; this reader knows those up to {FORMAT}: update it")
    try:
        exported = jax.export.deserialize(bytearray((folder / about["files"]["program"]).read_bytes()))
    except (ValueError, AssertionError, KeyError) as error:
        raise ValueError(
            f"{folder} was written by jax {about['min_jax']} and cannot be read by {jax.__version__} ({error}): "
            f"install jax>={about['min_jax']}, or export again"
        ) from None
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise ValueError(f"{folder} was exported for {', '.join(exported.platforms)}; this process runs on {platform}")
    params = jax.device_put(load_file(folder / about["files"]["params"]))
    return Model(jax.jit(exported.call), params, about)


def draw(
    model: Model,
    num_samples: int,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int = 100,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **knobs: float,
) -> np.ndarray:
    """Returns samples [num_samples, *shape], drawn in batches of one size by one compiled program.

    Args:
      model: from `load`.
      num_samples: number of samples.
      labels: [num_samples], of a model with classes.
      seed: random seed.
      batch_size: number of samples that are drawn at a time.
      progress: called with (batches that are done, number of batches).
      knobs: values of the other inputs, such as num_steps and guidance_scale; by default those in sampler.json.

    Raises:
      ValueError: if an input does not exist, is missing, or is out of range.
    """
    inputs = model.about["inputs"]
    size = min(batch_size, num_samples)
    padded = -(-num_samples // size) * size
    key = jax.random.fold_in(jax.random.key(seed, impl=inputs["keys"]["generator"]), 1)
    keys = jax.random.key_data(jax.random.split(key, padded))
    each: dict[str, Any] = {"keys": keys}
    if "labels" in inputs:
        if labels is None:
            raise ValueError("this model has classes: pass labels")
        each["labels"] = np.resize(np.asarray(labels, np.int32), padded)
    elif labels is not None:
        raise ValueError("this model has no classes: leave labels out")
    shared = _knobs(inputs, knobs)
    batches = []
    for start in range(0, padded, size):
        rows = {name: value[start : start + size] for name, value in each.items()}
        batches.append(np.asarray(model.call(model.params, rows | shared)))
        progress(len(batches), padded // size)
    return np.concatenate(batches)[:num_samples]


def _knobs(inputs: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the inputs that all samples share: those given, else their defaults."""
    shared = {name: entry for name, entry in inputs.items() if "default" in entry}
    unknown = sorted(set(given) - set(shared))
    if unknown:
        raise ValueError(f"this sampler has no input {', '.join(unknown)}; it has {', '.join(shared)}")
    values = {name: np.asarray(given.get(name, entry["default"]), entry["dtype"]) for name, entry in shared.items()}
    for name, entry in shared.items():
        if "max" in entry and not entry["min"] <= values[name] <= entry["max"]:
            raise ValueError(f"{name} must lie in {entry['min']} ... {entry['max']}; got {values[name]}")
    return values


def _labels(about: Mapping[str, Any], given: list[str] | None, num_samples: int) -> np.ndarray | None:
    """Returns the labels [num_samples] for --labels; None for a model without classes."""
    if given == ["none"] and about["num_classes"]:
        if about["null_label"] is None:
            raise ValueError("--labels=none: this model has no samples without a label")
        return np.full(num_samples, about["null_label"], np.int32)
    return choose_labels(given, about["num_classes"], num_samples, about["class_names"], about["absent_classes"])


def _save(output: Path, samples: np.ndarray, labels: np.ndarray | None, period: int, about: Mapping[str, Any]) -> str:
    """Writes samples.npz and, of images, samples.png; returns what was written."""
    arrays: dict[str, Any] = {} if labels is None else {"labels": labels}
    if labels is not None and about["class_names"]:
        arrays["class_names"] = np.array(about["class_names"])
    write_atomically(output / "samples.npz", lambda file: np.savez(file, samples=samples, **arrays))
    if samples.ndim != 4 or samples.shape[-1] not in (1, 3):
        return f"{output / 'samples.npz'} (no picture: pictures are drawn of images with one or three channels)"
    pictured = samples[:_PICTURED]
    bounds = picture_range(about["sample"]["range"] and tuple(about["sample"]["range"]), pictured)
    columns = None if labels is None else period * max(1, round(len(pictured) ** 0.5 / period))
    save_grid(output / "samples.png", pictured, columns, bounds=bounds)
    return f"{output / 'samples.npz'} and {output / 'samples.png'} (black is {bounds[0]:.4g}, white {bounds[1]:.4g})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments.run_exported", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder that experiments.export wrote")
    parser.add_argument("--num_samples", type=_positive, default=100)
    parser.add_argument("--labels", help="classes by name or number, drawn in turn, such as 0,1,2; none: no label")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=_positive, default=100, help="samples that are drawn at a time")
    parser.add_argument("--num_steps", type=int, help="sampler steps (default: as exported)")
    parser.add_argument("--guidance_scale", type=float, help="of a guided model (default: as exported)")
    parser.add_argument("--classifier_scale", type=float, help="of a model with a classifier (default: as exported)")
    parser.add_argument("--output", type=Path, help="folder for the files (default: MODEL/sampled)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text}")
    return int(text)


def _progress(done: int, total: int) -> None:
    if total > 1:
        print(f"\rsampling: batch {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Samples as the command line asks for; a mistake ends in one line."""
    given = _parser().parse_args(arguments)
    knobs = {name: getattr(given, name) for name in ("num_steps", "guidance_scale", "classifier_scale")}
    asked = None if given.labels is None else given.labels.split(",")
    try:
        model = load(given.model)
        labels = _labels(model.about, asked, given.num_samples)
        samples = draw(
            model,
            given.num_samples,
            labels=labels,
            seed=given.seed,
            batch_size=given.batch_size,
            progress=_progress,
            **{name: value for name, value in knobs.items() if value is not None},
        )
        output = given.output or given.model / "sampled"
        period = len(asked or np.unique(labels)) if labels is not None else 1
        print(f"{given.num_samples} samples: {_save(output, samples, labels, period, model.about)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
