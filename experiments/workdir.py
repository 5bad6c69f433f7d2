"""The work directory of a run: which config and data it belongs to, what was changed on the way, what it ran with.

| file | content |
|---|---|
| `config.json` | the config of the last training command |
| `changes.jsonl` | per accepted change: step, time, and the fields or data that differ |
| `data.json`, `data_hashes.npz` | the data: counts, order, content, split; a hash per example |
| `text.json` | of a text-conditional model: how captions become tokens, with the vocabulary |
| `versions.jsonl` | per start: versions, device, commit, command line |
| `own.json` | folders from which the config's own objects are imported, if it has any |
| `goodput.jsonl` | per log entry and checkpoint: seconds of this start by bucket, see `goodput` |
| `lock` | while a process trains: which one |
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import default_backbone, default_config
from diffusers_fn.from_config.module_fields import tupled
from diffusers_fn.from_config.network import NETWORKS
from experiments import data, own
from experiments.files import write_atomically, write_text
from experiments.lock import lock

__all__ = [
    "CHANGEABLE",
    "FREE",
    "check_data",
    "class_names",
    "flattened",
    "lock",
    "newest_step",
    "open_workdir",
    "read_config",
    "read_config_file",
    "record_change",
    "record_versions",
    "recorded_data",
]

# Fields by prefix. Free ones do not affect the trained parameters, or the recorded data replace them.
FREE = (
    "sampler",
    "evaluation",
    "data.path",
    "text.path",
    "data.memory_limit_mb",
    "data.num_threads",
    "data.num_workers",
    "latent.autoencoder_workdir",
    "latent.cache",
    "latent.decode_batch_size",
    "training.log_every",
    "training.sample_every",
    "training.heldout_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.ema_snapshot_every",
    "training.max_skipped",
    "training.peak_flops",
    "mesh",
)
# Fields that --allow_changes may change from a step on. All others decide what the parameters mean or which there are.
CHANGEABLE = (
    "seed",
    "prng_impl",
    "data.name",
    "data.heldout_fraction",
    "data.split",
    "data.heldout_split",
    "data.pairs",
    "data.coupling",
    "data.flip",
    "data.image_size",
    "data.resize",
    "data.background",
    "data.variant",
    "data.num_examples",
    "data.images_key",
    "data.labels_key",
    "backbone.dropout",
    "backbone.dtype",
    "backbone.remat",
    "loss.loss_type",
    "loss.weight",
    "loss.label_dropout",
    "loss.offset_noise",
    "loss.kl_weight",
    "loss.vlb_weight",
    "loss.min_snr_gamma",
    "loss.p2_gamma",
    "loss.p2_k",
    "loss.sigmoid_bias",
    "loss.logit_mean",
    "loss.logit_std",
    "loss.log_sigma_mean",
    "loss.log_sigma_std",
    "loss.mode_scale",
    "training.num_steps",
    "training.steps_per_call",
    "training.batch_size",
    "training.learning_rate",
    "training.lr_schedule",
    "training.warmup_steps",
    "training.weight_decay",
    "training.grad_clip",
    "training.ema_decay",
    "training.ema_warmup",
)

# What runs of versions without a field did, where that is not the field's default.
_BEFORE = {"training.ema_warmup": "none"}
_REWRITTEN = "config.json"  # a difference: the file is damaged
_REQUIRED = ("backbone", "data", "loss", "noise_schedule", "sampler", "training")


def open_workdir(
    workdir: Path,
    config: ConfigDict,
    *,
    create: bool,
    allow_changes: bool = False,
    record: data.Record | None = None,
) -> None:
    """Checks that a work directory belongs to a config; with `create`, writes `config.json` into a new one.

    With `create`, accepted differences are printed, recorded in `changes.jsonl`, and replace `config.json`. A refusal
    changes nothing.

    Args:
      workdir: the directory.
      config: the config that it should hold.
      create: whether it may be new, for training.
      allow_changes: accept other data, differences in the fields of CHANGEABLE, and a damaged config.json, which is
        written anew.
      record: of the data at hand, which are compared with those of the run, and recorded with `create`; None: not.

    Raises:
      ValueError: if the directory holds a run of another config (the message lists the fields that differ), or other
        files, or a damaged config.json, or, with create False, no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        if not create:
            raise ValueError(f"{workdir} holds no run: train first, with --config and this --workdir")
        _refuse_other_files(workdir)
        _write_config(workdir, config)
        if record is not None:
            check_data(workdir, record)
        return
    differing = _differing(path, config, rewrite=create and allow_changes)
    affecting = {name: pair for name, pair in differing.items() if not _is_in(name, FREE)}
    fixed = [name for name in affecting if not _is_in(name, (*CHANGEABLE, _REWRITTEN))]
    if affecting and (fixed or not allow_changes):
        raise ValueError(
            f"{workdir} holds a run of another config ({_listed(affecting)}): {_remedy(workdir, fixed, create)}"
        )
    if create:
        _check_steps_per_call(workdir, config, affecting)
        _check_optimizer(workdir, config, affecting)
    if record is not None:
        check_data(workdir, record, allow_changes=allow_changes, train=create)
    if create and differing:
        record_change(workdir, {name: list(pair) for name, pair in differing.items()}, _listed(differing))
        _write_config(workdir, config)


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config of the run in a work directory, locked; fields added since then have their defaults.

    Folders of the config's own objects can be imported from, from then on.

    Raises:
      ValueError: if there is no run, or its config.json is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: train first, with --config and this --workdir")
    for folder in _json_or(workdir / "own.json", {}).get("folders", []):
        own.use_folder(folder)
    return read_config_file(path)


def read_config_file(path: Path) -> ConfigDict:
    """Returns the config in a JSON file such as config.json, locked; fields added since then have their defaults.

    Raises:
      ValueError: if the file is damaged.
    """
    held = _read(path, _REQUIRED)
    if not isinstance(held["backbone"].get("name"), str):
        raise _damaged(path, "it has no backbone.name")
    config = default_config()
    with config.unlocked():
        name = held["backbone"]["name"]
        config.backbone = default_backbone(name) if name in NETWORKS else ConfigDict({"name": name})
        for field, value in _BEFORE.items():
            _set(config, field, value)
        try:
            for field, value in flattened(held).items():
                _set(config, field, value)
        except (TypeError, AttributeError, KeyError) as error:
            raise _damaged(path, f"{field}: {error}") from error
    return own.complete(config).lock()


def check_data(workdir: Path, record: Any, *, allow_changes: bool = False, train: bool = True) -> None:
    """Compares data with those that the work directory was trained on, and records those of a new one.

    Args:
      workdir: of the run.
      record: the `data.Record` of the data at hand.
      allow_changes: accept other data: the differences are printed and recorded in `changes.jsonl`.
      train: whether the data are trained on; else nothing is recorded but the differences.

    Raises:
      ValueError: if the data differ; the message has the reasons.
    """
    path, hashes = workdir / "data.json", workdir / "data_hashes.npz"
    if path.exists() and hashes.exists():
        differences = data.compare(_read_record(path, hashes), record)
        if not differences:
            return
        if not allow_changes:
            raise ValueError(
                f"{workdir} was trained on other data: {'; '.join(differences)}. Restore them (config.data.path), or "
                "accept these with --allow_changes"
            )
        record_change(workdir, {"data": differences}, "; ".join(differences))
    if train:
        write_atomically(hashes, lambda file: np.savez(file, **record.hashes))
        write_text(path, json.dumps(record.summary, indent=2, default=_plain) + "\n")


def recorded_data(workdir: Path) -> dict[str, Any] | None:
    """Returns the counts and checksums of the data that a run was trained on; None if they were not recorded."""
    return _json_or(workdir / "data.json", {}) or None


def class_names(workdir: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes of the data that a run was trained on; None if they have none."""
    names = _json_or(workdir / "data.json", {}).get("class_names")
    return tuple(map(str, names)) if names else None


def record_change(workdir: Path, changes: Mapping[str, Any], text: str) -> None:
    """Prints a change of a run and appends it to `changes.jsonl`."""
    step = newest_step(workdir)
    print(f"changed from step {step} on: {text}")
    _append(workdir / "changes.jsonl", {"step": step, "time": _now(), "changes": changes})


def newest_step(workdir: Path) -> int:
    """Returns the step of the newest checkpoint of a work directory; 0 if there is none."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def record_versions(workdir: Path) -> None:
    """Appends a line to `versions.jsonl`: time, command line, versions, device and commit of this start."""
    versions: dict[str, str | None] = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    _append(
        workdir / "versions.jsonl",
        {
            "time": _now(),
            "step": newest_step(workdir),
            "command": sys.argv,
            "diffusers_fn": dfn.__version__,
            "python": sys.version.split()[0],
            **versions,
            "device": device.device_kind,
            "platform": device.platform,
            "num_devices": jax.device_count(),
            **_commit(Path(__file__).resolve().parents[1]),
        },
    )


def _remedy(workdir: Path, fixed: Sequence[str], create: bool) -> str:
    if not create:
        return "leave out --config, which --workdir replaces, or give the config of this run"
    if fixed:
        return (
            f"{', '.join(fixed)} cannot change within a run. Give the same config or another --workdir; "
            f"--init_from={workdir} starts a new run from the parameters of this one"
        )
    return "give the same config or another --workdir, or continue the run with these changes by --allow_changes"


def _check_steps_per_call(workdir: Path, config: ConfigDict, changes: Mapping[str, Any]) -> None:
    step = newest_step(workdir)
    if "training.steps_per_call" in changes and step % config.training.steps_per_call:
        raise ValueError(
            f"the run in {workdir} continues at step {step}, which must be a multiple of training.steps_per_call; got "
            f"{config.training.steps_per_call}"
        )


def _check_optimizer(workdir: Path, config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Raises ValueError if the changes of config.training need another state of the optimizer."""
    names = [name for name in changes if name.startswith("training.")]
    if not names:
        return
    from experiments import states  # it needs this module

    def structure(config: ConfigDict) -> Any:
        params = {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}
        return jax.tree.structure(jax.eval_shape(states.make_optimizer(config).init, params))

    if structure(read_config(workdir)) != structure(config):
        raise ValueError(
            f"{workdir}: its optimizer has no state for {', '.join(names)}. Give the same config or another --workdir; "
            f"--init_from={workdir} starts a new run from the parameters of this one"
        )


def _refuse_other_files(workdir: Path) -> None:
    others = sorted(path.name for path in workdir.iterdir() if path.name != "lock") if workdir.exists() else []
    if others:
        raise ValueError(
            f"{workdir} is not the folder of a run, it holds {', '.join(others[:5])}: give another --workdir"
        )


def _write_config(workdir: Path, config: ConfigDict) -> None:
    folders = own.folders(config)
    if folders:
        write_text(workdir / "own.json", json.dumps({"folders": folders}) + "\n")
    write_text(workdir / "config.json", json.dumps(config.to_dict(), indent=2, default=list) + "\n")


def _differing(path: Path, config: ConfigDict, *, rewrite: bool) -> dict[str, tuple[Any, Any]]:
    """Returns {field: (there, here)} of the fields in which a config.json and a config differ.

    With `rewrite`, a damaged file is one difference; else it raises ValueError.
    """
    wanted = flattened(config.to_dict())
    try:
        flat = flattened(_read(path, [name for name in _REQUIRED if name in config]))
    except ValueError as error:
        if not rewrite:
            raise
        return {_REWRITTEN: (str(error), "written anew")}
    # A run of an earlier version lacks fields that were added later.
    missed = {**flattened(default_config().to_dict()), **_BEFORE}
    held = _comparable({name: value for name, value in missed.items() if name in wanted} | flat)
    wanted = _comparable(wanted)
    return {
        name: (held.get(name, "absent"), wanted.get(name, "absent"))
        for name in sorted(set(held) | set(wanted))
        if name not in held or name not in wanted or not _same(held[name], wanted[name])
    }


def _comparable(flat: dict[str, Any]) -> dict[str, Any]:
    """The fields, with the number of classes and the size in all places where one of them stands for all."""
    shape = tuple(flat.get("data.shape") or ())
    if shape and flat.get("backbone.image_size", 0) is None:
        flat["backbone.image_size"] = shape[0]
    if flat.get("data.image_size") and (flat["data.image_size"],) * 2 == shape[:2]:
        flat["data.image_size"] = 0
        flat["data.resize"] = "crop" if flat.get("data.resize") == "none" else flat.get("data.resize")
    network, labels = flat.get("backbone.num_classes"), flat.get("data.num_classes")
    if {"backbone.num_classes", "data.num_classes"} <= set(flat):
        flat["backbone.num_classes"] = (labels or 0) if network is None else network
        flat["data.num_classes"] = flat["backbone.num_classes"] if labels is None else labels
    return flat


def _listed(differing: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name}: {there} there, {here} here" for name, (there, here) in differing.items())


def _is_in(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _same(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return bool(one == other) or both_nan


def _read(path: Path, sections: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, which must have the sections."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, str(error) if path.stat().st_size else "it is empty") from error
    if not isinstance(held, dict):
        raise _damaged(path, f"it holds {held!r:.40}, not an object with fields")
    lacking = [name for name in sections if not isinstance(held.get(name), dict)]
    if lacking:
        raise _damaged(path, f"it has no section {', '.join(lacking)}")
    return held


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({reason}): restore it from a backup, or train with this run's --config and "
        "--allow_changes, which writes it anew"
    )


def _read_record(path: Path, hashes: Path) -> Any:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        with np.load(hashes, allow_pickle=False) as loaded:
            return data.Record(summary, {name: loaded[name] for name in loaded.files})
    except Exception as error:  # of any type: a damaged archive
        raise ValueError(
            f"{path} or {hashes.name} is damaged ({error}): delete both; the next training command writes them anew"
        ) from error


def _json_or(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
    return held if isinstance(held, dict) else default


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *sections, field = name.split(".")
    section = config
    for part in sections:
        if part not in section:
            section[part] = ConfigDict()
        section = section[part]
    section[field] = tupled(value)


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else list(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _commit(clone: Path) -> dict[str, Any]:
    """The commit of the clone that the binaries run from, and whether its files were changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(clone), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "local_changes": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):  # no git, or no clone
        return {"commit": None, "local_changes": None}


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a nested config by their dotted names; tuples become lists, as in JSON.

    >>> flattened({"a": {"b": (1, 2)}})
    {'a.b': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _as_lists(value)
    return flat


def _as_lists(value: Any) -> Any:
    return [_as_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value
