"""Saves networks to files that the reference reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn

from diffusers_fn.pretrained.convert import describe_tensors
from diffusers_fn.pretrained.family import Family, different_fields
from diffusers_fn.pretrained.load import find_family
from diffusers_fn.pretrained.safetensors_file import write_safetensors

__all__ = ["module_config", "save"]


def save(path: str | os.PathLike[str], module: nn.Module, params: Mapping[str, Any], family: str | Family) -> None:
    """Writes a folder with the network in the reference's names and layouts: a safetensors file and config.json.

    Parameters are written one by one, each in its own dtype; a network that `load` returned is written bit for bit.
    The folder gets its name once it is complete, so an interrupted save leaves nothing that looks like a checkpoint.

    Args:
      path: a folder that does not exist yet, or is empty.
      module, params: the network; params as in {"params": params}.
      family: a name in `FAMILIES`, or a `Family`.

    Raises:
      OSError: if the folder cannot be written.
      ValueError: if the folder exists and is not empty, the parameters are not those of the module, or no config of
        the family describes the module.

    >>> import tempfile, jax, jax.numpy as jnp
    >>> from diffusers_fn.pretrained.entries import same
    >>> norm = nn.LayerNorm(use_bias=False)
    >>> family = Family("norm", ("Norm",), lambda config: norm, lambda module: {"eps": module.epsilon},
    ...                 lambda module: same("scale", "weight"), lambda module: (jnp.zeros([1, 2]),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/net", norm, {"scale": jnp.ones(2)}, family)
    ...     sorted(os.listdir(folder + "/net"))
    ['config.json', 'model.safetensors']
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; a checkpoint must be a new folder")
    family = find_family(family, {})
    config = module_config(module, family)
    specs, tensors = describe_tensors(params, module, family)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by an interrupted process with the same id
    temporary.mkdir()
    try:
        with open(temporary / family.weights_name, "wb") as file:
            write_safetensors(file, specs, tensors, {"format": "pt"})  # torch readers require this metadata
            _flush(file)
        with open(temporary / "config.json", "w", encoding="utf-8") as text:
            json.dump(config, text, indent=2, sort_keys=True)
            _flush(text)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def module_config(module: nn.Module, family: Family) -> dict[str, Any]:
    """Returns the reference's config of a module, with its class name.

    Raises ValueError if no config of the family describes the module.

    >>> from diffusers_fn.backbones import UViT
    >>> module_config(UViT(in_channels=4, null_class=False), find_family("uvit", {}))["_class_name"]
    'UViT'
    """
    if getattr(module, "in_channels", 0) is None:
        raise ValueError(
            f"set in_channels of this {type(module).__name__}: config.json stores it, so it must not be None"
        )
    config = family.to_config(module)
    if different := different_fields(module, family.from_config(config)):
        raise ValueError(
            f"no config of the family {family.name!r} describes this {type(module).__name__}: {'; '.join(different)}"
        )
    if family.class_names and not {"_class_name", "architectures", "model_type"} & set(config):
        config = {"_class_name": family.class_names[0], **config}
    return config


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
