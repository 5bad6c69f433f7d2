"""Loads pipelines of Stable Diffusion from one file, in the names of the LDM and SGM code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
from jax.typing import DTypeLike

from diffusers_fn.backbones import AutoencoderKL, ClipTextEncoder, UNet2DCondition
from diffusers_fn.pretrained import autoencoder_kl, clip_text, unet2d_condition
from diffusers_fn.pretrained.checkpoint import open_checkpoint, read_json
from diffusers_fn.pretrained.convert import Placement, from_torch
from diffusers_fn.pretrained.family import Family
from diffusers_fn.pretrained.ldm_names import from_open_clip, unet_tensors, vae_tensors
from diffusers_fn.pretrained.prefixes import without_prefix
from diffusers_fn.pretrained.safetensors_file import StoredTensor

__all__ = ["SingleFile", "load_single_file"]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
# The text encoders of each kind, as {the prefix of their tensors: their folder}.
_TEXTS = {
    "sd1": {"cond_stage_model.transformer.": "text_encoder"},
    "sd2": {"cond_stage_model.model.": "text_encoder"},
    "sdxl": {
        "conditioner.embedders.0.transformer.": "text_encoder",
        "conditioner.embedders.1.model.": "text_encoder_2",
    },
    "sdxl_refiner": {"conditioner.embedders.0.model.": "text_encoder_2"},
}
_CHANNELS = {(320, 768): "sd1", (320, 1024): "sd2", (320, 2048): "sdxl", (384, 1280): "sdxl_refiner"}
# Where a file has the width of the U-Net's contexts, in the first block that attends to them.
_CONTEXT = "1.transformer_blocks.0.attn2.to_k.weight"


class SingleFile(NamedTuple):
    """The networks of a pipeline in one file.

    Attributes:
      kind: "sd1", "sd2", "sdxl" or "sdxl_refiner".
      networks: {"unet", "vae", "text_encoder", "text_encoder_2": (module, params)}, those that the file has. The names
        and the parameters are those of the pipeline's folders.
    """

    kind: str
    networks: dict[str, tuple[nn.Module, dict[str, Any]]]


def load_single_file(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | Mapping[str, Mapping[str, Any]] | None = None,
    key: str | None = None,
    sharding: Placement = None,
    dtype: DTypeLike | None = None,
    allow_nonfinite: bool = False,
) -> SingleFile:
    """Returns the networks of a Stable Diffusion 1, 2 or XL checkpoint in one .safetensors or .ckpt file.

    The kind is recognised from names and shapes. A file holds no numbers of attention heads and no scaling factors:
    without a config they are those of the published networks of its kind, whose sizes it must have. Tensors of other
    parts are left out: noise schedules, losses, averaged parameters ("model_ema."). As in `load`, files are
    memory-mapped, no code from a file is run, and every network must be complete.

    Whether Stable Diffusion 2 predicts epsilon or v cannot be read from a file.

    Args:
      path: the file.
      config: a folder of the same pipeline, of which only the config.json files are read, {"unet": config, ...}, or
        None for the published networks.
      key, sharding, dtype, allow_nonfinite: as for `load`; a sharding that is a function is called for each network.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if the file is damaged, is of another kind, or lacks tensors of its networks or has others.

    >>> import tempfile, numpy as np
    >>> from diffusers_fn.pretrained.safetensors_file import write_safetensors
    >>> file = tempfile.NamedTemporaryFile(suffix=".safetensors")
    >>> write_safetensors(file, {"a": ((1,), np.dtype("f4"))}, [("a", np.ones(1, "f4"))]); file.flush()
    >>> try: load_single_file(file.name)
    ... except ValueError as error: print(str(error).removeprefix(file.name)[:46])
     is no Stable Diffusion checkpoint in one file
    """
    tensors = open_checkpoint(path, key=key).tensors
    kind = _kind(tensors, path, published=config is None)
    options: dict[str, Any] = {"sharding": sharding, "dtype": dtype, "allow_nonfinite": allow_nonfinite}
    networks = {}
    for part, (prefix, family) in _parts(tensors, kind).items():
        own = without_prefix(tensors, prefix)
        module = _published(part, kind, own) if config is None else _configured(part, family, config)
        try:
            renamed = _in_folder_names(own, prefix, module, family)
            networks[part] = module, from_torch(renamed, module, family, **options)
        except ValueError as error:
            hint = "; pass config, a folder of this pipeline" if config is None else ""
            raise ValueError(f"{path}: its {part} is not that of {kind}{hint}: {error}") from error
    return SingleFile(kind, networks)


def _kind(tensors: Mapping[str, StoredTensor], path: Any, *, published: bool) -> str:
    """Returns the kind of pipeline: by the names of the text encoders, or else by the sizes of the U-Net."""
    if not any(name.startswith((_UNET, _VAE)) for name in tensors):
        raise ValueError(
            f"{path} is no Stable Diffusion checkpoint in one file: no tensor's name begins with {_UNET!r} or {_VAE!r}"
        )
    named = [kind for kind, texts in _TEXTS.items() if all(_has(tensors, prefix) for prefix in texts)]
    sizes: Any = None
    if _has(tensors, _UNET):
        contexts = [value.shape[-1] for name, value in tensors.items() if name.startswith(_UNET) and _CONTEXT in name]
        first = tensors.get(f"{_UNET}input_blocks.0.0.weight")
        sizes = first.shape[0] if first else None, contexts[0] if contexts else None
        if (published or not named) and sizes not in _CHANNELS:
            raise ValueError(
                f"{path} has a U-Net of {sizes[0]} channels and contexts of {sizes[1]} features; the published ones "
                f"have {', '.join(map(str, _CHANNELS))}: pass config, a folder of this pipeline"
            )
    return named[0] if named else _CHANNELS.get(sizes, "sd1")


def _parts(tensors: Mapping[str, StoredTensor], kind: str) -> dict[str, tuple[str, Family]]:
    """Returns {folder: (prefix, family)} of the networks that the file has."""
    parts = {"unet": (_UNET, unet2d_condition.family), "vae": (_VAE, autoencoder_kl.family)}
    for prefix, part in _TEXTS[kind].items():
        projected = part == "text_encoder_2"
        parts[part] = prefix, clip_text.projected_family if projected else clip_text.family
    return {part: found for part, found in parts.items() if _has(tensors, found[0])}


def _published(part: str, kind: str, tensors: Mapping[str, StoredTensor]) -> nn.Module:
    """Returns the published network of this kind, with the channels of the file's."""
    if part == "vae":
        return AutoencoderKL() if kind in ("sd1", "sd2") else AutoencoderKL(scaling_factor=0.13025, image_size=1024)
    if part == "text_encoder_2":
        return ClipTextEncoder.open_clip_g()
    if part == "text_encoder":
        return ClipTextEncoder.open_clip_h() if kind == "sd2" else ClipTextEncoder()
    make = {"sd1": UNet2DCondition.sd1, "sd2": UNet2DCondition.sd2, "sdxl": UNet2DCondition.sdxl}
    first = tensors["input_blocks.0.0.weight"]  # of 9 channels for inpainting
    return make.get(kind, UNet2DCondition.sdxl_refiner)(in_channels=first.shape[1])


def _configured(part: str, family: Family, config: Any) -> nn.Module:
    """Returns the network of a given config."""
    if isinstance(config, Mapping):
        if part not in config:
            raise ValueError(f"config must have an entry for {part!r}, which the file has; it has {sorted(config)}")
        return family.from_config(config[part])
    path = Path(config) / part / "config.json"
    if not path.is_file():
        raise ValueError(f"config must be a folder with {part}/config.json, a network that the file has; got {config}")
    return family.from_config(read_json(path))


def _in_folder_names(
    tensors: Mapping[str, StoredTensor], prefix: str, module: Any, family: Family
) -> Mapping[str, StoredTensor]:
    """Returns the tensors of one network under the names of its folder."""
    names = [name for entry in family.entries(module) for name in entry.names]
    if prefix == _UNET:
        return unet_tensors(tensors, module, names)
    if prefix == _VAE:
        return vae_tensors(tensors, len(module.channel_multipliers), names)
    if prefix.endswith(".model."):
        return from_open_clip(tensors, module.depth, projection=module.projection_dim is not None)
    return tensors


def _has(tensors: Mapping[str, StoredTensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)
