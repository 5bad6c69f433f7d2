"""Files of adapters: PEFT's names and kohya's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_fn.pretrained.lora.factors import COMPONENTS, Factors, Lora, published_names
from diffusers_fn.pretrained.safetensors_file import open_safetensors, read_metadata, write_safetensors

__all__ = ["load", "save"]

_KOHYA_COMPONENTS = {
    "unet": "unet",
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
}
_KOHYA = re.compile(r"lora_(unet|te\d?)_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)$")
_PEFT = re.compile(r"(unet|transformer|text_encoder(?:_\d)?)\.(.+?)\.(lora_A|lora_B|lora\.down|lora\.up)\.weight$")
_PARTS = {"lora_A": "down", "lora.down": "down", "lora_down.weight": "down", "alpha": "alpha"}


def load(path: str | os.PathLike[str]) -> Lora:
    """Returns the adapter in a .safetensors file, or in a folder that holds one.

    Names are PEFT's, "unet.<layer>.lora_A.weight", with alpha in the header (without it alpha is the rank), or those of
    kohya's scripts, "lora_unet_<layer>.lora_down.weight", with an alpha for each layer.

    Raises:
      ValueError: if there is no such file, or a tensor in it is not part of an adapter of this kind.
    """
    source = Path(path)
    if source.is_dir():
        files = sorted(source.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"{source} must hold one .safetensors file; it holds {len(files)}: give the file")
        source = files[0]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    tensors = open_safetensors(source)
    for name, tensor in tensors.items():
        component, layer, part = _read_name(name, source)
        found.setdefault((component, layer), {})[part] = tensor.read()
    if not found:
        raise ValueError(f"{source} holds no tensors")
    alphas = _alphas(read_metadata(source), source)
    layers: dict[str, dict[str, Factors]] = {}
    for (component, layer), held in found.items():
        if not {"down", "up"} <= set(held):
            raise ValueError(f"{source}: {layer} of the {component} lacks {'up' if 'down' in held else 'down'}")
        rank = held["down"].shape[0]
        if held["up"].shape[1] != rank:
            raise ValueError(f"{source}: up and down of {layer} have the ranks {held['up'].shape[1]} and {rank}")
        alpha = float(held["alpha"]) if "alpha" in held else alphas(component, layer, rank)
        layers.setdefault(component, {})[layer.replace(".", "_")] = Factors(held["down"], held["up"], alpha / rank)
    return Lora(layers)


def save(path: str | os.PathLike[str], lora: Lora, params: Mapping[str, Any]) -> None:
    """Writes an adapter to a .safetensors file, in PEFT's names.

    alpha / rank is multiplied into `up`: such files need no alpha, which readers look for in different places.

    Args:
      path: of the file.
      lora: the adapter.
      params: those that it is for, which are not written.

    Raises:
      ValueError: if the parameters lack one of its layers.
    """
    arrays: dict[str, np.ndarray] = {}
    for component, layers in lora.layers.items():
        known = published_names(component, params[component]) if component in COMPONENTS else {}
        if unknown := sorted(set(layers) - set(known)):
            raise ValueError(f"{component} has no layer {unknown[0]} whose adapter can be written")
        for layer, factors in layers.items():
            up = np.asarray(factors.up)
            arrays[f"{component}.{known[layer]}.lora_A.weight"] = np.asarray(factors.down)
            arrays[f"{component}.{known[layer]}.lora_B.weight"] = (up * np.float32(factors.factor)).astype(up.dtype)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:  # a new file in the place of the old one, which the adapter may still be read from
        with open(temporary, "wb") as file:
            specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
            write_safetensors(file, specs, arrays.items(), {"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_name(name: str, source: Path) -> tuple[str, str, str]:
    """(component, layer, part) of a tensor."""
    if match := _KOHYA.match(name):
        return _KOHYA_COMPONENTS[match[1]], match[2], _PARTS.get(match[3], "up")
    if match := _PEFT.match(name):
        layer = match[2]
        if match[1].startswith("text_encoder") and not layer.startswith(("text_model.", "text_projection")):
            layer = f"text_model.{layer}"  # newer files leave it out
        return match[1], layer, _PARTS.get(match[3], "up")
    raise ValueError(
        f"{source} is no LoRA in PEFT's or kohya's names: it has the tensor {name!r}; adapters of other kinds (DoRA, "
        "LoHa, LoKr) are not read"
    )


def _alphas(metadata: Mapping[str, str], source: Path) -> Callable[[str, str, int], float]:
    """(component, layer, rank) -> alpha, of PEFT's header."""
    try:
        held = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError as error:
        raise ValueError(f"{source}: lora_adapter_metadata in its header is damaged: {error}") from error

    def alpha(component: str, layer: str, rank: int) -> float:
        own = {name.removeprefix(f"{component}."): value for name, value in held.items() if name.startswith(component)}
        if own.get("use_dora") or own.get("use_rslora"):
            raise ValueError(f"{source} is an adapter with use_dora or use_rslora, which are not read")
        patterns: Mapping[str, float] = own.get("alpha_pattern") or {}
        for pattern, value in patterns.items():
            if re.search(rf"(^|\.){pattern}$", layer):
                return float(value)
        return float(own.get("lora_alpha", rank))

    return alpha
