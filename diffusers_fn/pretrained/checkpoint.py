"""Finds and opens the weights and the config of a published network: a file, or a folder as on model hubs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusers_fn.pretrained.downloads import check_download, check_pipeline
from diffusers_fn.pretrained.safetensors_file import StoredTensor, open_safetensors, strict_json
from diffusers_fn.pretrained.torch_file import open_torch_file

__all__ = ["Checkpoint", "open_checkpoint", "read_json"]

# Looked for in this order. A folder with exactly one weights file of any other name is accepted too.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# Names of averaged parameters in training checkpoints, which are those to sample with.
_AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "params_ema")
_SHARD = re.compile(r"-\d+-of-\d+\.")  # one of several files that an index lists
_INDEX = re.compile(r"\.index(\.[^.]+)?\.json$")  # .index.json, or .index.fp16.json for a variant


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint by name, and the content of the config.json beside them (None if absent)."""

    tensors: dict[str, StoredTensor]
    config: dict[str, Any] | None


def open_checkpoint(path: str | os.PathLike[str], *, key: str | None = None) -> Checkpoint:
    """Returns the checkpoint at a path: a weights file, an index of several, or a folder with either.

    Args:
      path: a .safetensors file, a torch file (.bin, .pt, .pth or .ckpt, see `open_torch_file`), an .index.json, or a
        folder that holds one of these.
      key: the key of the state dict in a torch file that holds more than one object, e.g. "model"; None selects the
        averaged parameters if there are any, or else the only state dict.

    Raises:
      OSError: if nothing exists at the path or it cannot be read.
      ValueError: if the checkpoint is damaged, ambiguous or of an unsupported format.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder exists at {path}")
    check_pipeline(path)
    weights = _find_weights(path) if path.is_dir() else path
    tensors = _open_index(weights) if _INDEX.search(weights.name) else _open_file(weights, key)
    config_path = weights.parent / "config.json"
    return Checkpoint(tensors, read_json(config_path) if config_path.is_file() else None)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; ValueError if the file is damaged or holds anything else."""
    check_download(path)
    try:
        content = strict_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(content).__name__}")
    return content


def _find_weights(folder: Path) -> Path:
    suffixes = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    for suffix in suffixes:
        for stem in _STEMS:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    names = sorted(path.name for path in folder.iterdir())
    indices = [name for name in names if _INDEX.search(name)]
    single = [name for name in names if name.endswith(".safetensors") and not _SHARD.search(name)]
    for found in (indices + single, [name for name in names if name.endswith(_TORCH_SUFFIXES)]):
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise ValueError(f"{folder} has several weights files, pass the path of one: {found}")
    raise ValueError(f"{folder} has no weights file (.safetensors, .index.json, {', '.join(_TORCH_SUFFIXES)})")


def _open_index(path: Path) -> dict[str, StoredTensor]:
    """Returns the tensors of a checkpoint in several files; the index maps tensor names to files."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{path} must have a weight_map of tensor names to file names")
    files = sorted(set(weight_map.values()))
    for name in files:  # check all names before opening the first file
        if name != os.path.basename(name) or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise ValueError(f"{path} lists the file {name!r}; allowed are files in its own folder")
    absent = [name for name in files if not (path.parent / name).is_file()]
    if absent:
        raise ValueError(
            f"{path} lists {len(files)} files, of which {len(absent)} do not exist beside it; download them too: "
            f"{', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}"
        )
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        shard = _open_file(path.parent / name, None)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        if set(shard) != listed:
            raise ValueError(
                f"{path} and {name!r} disagree: {_quoted(listed - set(shard))} only in the index, "
                f"{_quoted(set(shard) - listed)} only in the file"
            )
        tensors.update(shard)
    return tensors


def _open_file(path: Path, key: str | None) -> dict[str, StoredTensor]:
    if path.suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise ValueError(f"{path} must end with .safetensors, .index.json, {' or '.join(_TORCH_SUFFIXES)}")
    check_download(path)
    return open_safetensors(path) if path.suffix == ".safetensors" else _state_dict(open_torch_file(path), path, key)


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, StoredTensor]:
    """Returns the state dict in a torch file: all of it, or the entry `key`."""
    if key is None and _is_state_dict(content):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; allowed are state dicts, or a dict of them")
    if key is not None and key not in content:
        raise ValueError(f"{path} has no {key!r}; it has {_quoted(content)}")
    found = [str(name) for name, value in content.items() if _is_state_dict(value)]
    if key is None:
        averaged = [name for name in _AVERAGED if name in found]
        if not averaged and len(found) != 1:
            raise ValueError(
                f"{path} is not a state dict; pass key, one of {', '.join(map(repr, found))}"
                if found
                else f"{path} has no state dict; it has {_quoted(content)}"
            )
        key = (averaged or found)[0]
    if key not in found:
        raise ValueError(f"{key!r} in {path} is no state dict; those are {', '.join(map(repr, found)) or 'none'}")
    return content[key]


def _is_state_dict(value: Any) -> bool:
    """Whether a value maps names to tensors, and to nothing else."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(entry, StoredTensor) for name, entry in value.items())
    )


def _quoted(names: Any) -> str:
    """Returns at most ten names, quoted."""
    names = sorted(map(repr, names)) if isinstance(names, Mapping | set) else [type(names).__name__]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "nothing"
