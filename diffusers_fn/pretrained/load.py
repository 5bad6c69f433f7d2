"""Loads published networks from files: the linen module and its parameters."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from diffusers_fn.pretrained import (
    autoencoder_kl,
    clip_text,
    controlnet,
    dit,
    dit_diffusers,
    edm,
    flux,
    guided_classifier,
    guided_superres,
    guided_unet,
    pixart,
    sd3,
    t5,
    unet2d,
    unet2d_condition,
    uvit,
)
from diffusers_fn.pretrained.checkpoint import open_checkpoint
from diffusers_fn.pretrained.convert import Placement, from_torch
from diffusers_fn.pretrained.family import Family
from diffusers_fn.pretrained.prefixes import find_prefix, without_prefix

__all__ = ["FAMILIES", "class_names", "find_family", "load"]

FAMILIES = {
    "autoencoder_kl": autoencoder_kl.family,
    "clip_text": clip_text.family,
    "clip_text_projected": clip_text.projected_family,
    "controlnet": controlnet.family,
    "dit": dit.family,
    "dit_diffusers": dit_diffusers.family,
    "edm": edm.family,
    "flux": flux.family,
    "guided_classifier": guided_classifier.family,
    "guided_superres": guided_superres.family,
    "guided_unet": guided_unet.family,
    "pixart": pixart.family,
    "sd3": sd3.family,
    "t5": t5.family,
    "unet2d": unet2d.family,
    "unet2d_condition": unet2d_condition.family,
    "uvit": uvit.family,
}


def load(
    path: str | os.PathLike[str],
    family: str | Family | None = None,
    *,
    families: Sequence[Family] = (),
    config: Mapping[str, Any] | None = None,
    key: str | None = None,
    prefix: str | None = None,
    sharding: Placement = None,
    dtype: DTypeLike | None = None,
    allow_nonfinite: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (module, params) of a published network; module.apply({"params": params}, x, t, cond) runs it.

    Files are memory-mapped and parameters are copied to their devices one by one, shard by shard, so the host never
    holds two copies of the network. A file must not be truncated while it is read. No code from a file is run. If any
    tensor does not fit, nothing is returned.

    Args:
      path: a .safetensors file, an index of several (.index.json), or a folder that holds one of these and a
        config.json. Torch's .bin, .pt, .pth and .ckpt files are read too, without torch.
      family: a name in `FAMILIES` or `families`, or a `Family`; None selects it by the class name in the config.
      families: families defined outside this package; they take precedence over those in `FAMILIES`.
      config: the reference's config, if there is no config.json beside the weights.
      key: the key of the state dict in a torch file that holds more than one object, e.g. "model"; None selects the
        averaged parameters ("ema" or a similar name) if there are any, or else the only state dict.
      prefix: what the names of the network's tensors begin with in the file, e.g. "model.diffusion_model."; tensors of
        other names are left out. None finds it: names that fit as they are, or the only prefix, such as "module.",
        without which they fit whole.
      sharding: where the parameters go: None for the default device; one jax.sharding.Sharding for all; a tree of
        them like the parameters; or a function (path, shape) -> Sharding, with a path like "conv_in/kernel".
      dtype: the dtype of the parameters; None keeps that of the file. The dtype of the computation is the module's
        `dtype` field: module.clone(dtype=jnp.bfloat16).
      allow_nonfinite: accept NaN and infinite values.

    Raises:
      OSError: if nothing exists at the path or it cannot be read.
      ValueError: if the file is damaged, the config does not belong to the family, or the tensors are not exactly
        those of the network that the config describes; the message lists those that are missing, unexpected or of
        the wrong shape.

    >>> import tempfile, jax.numpy as jnp
    >>> from diffusers_fn.pretrained.entries import same
    >>> from diffusers_fn.pretrained.save import save
    >>> norm = nn.LayerNorm(use_bias=False)
    >>> family = Family("norm", ("Norm",), lambda config: norm, lambda module: {"eps": module.epsilon},
    ...                 lambda module: same("scale", "weight"), lambda module: (jnp.zeros([1, 2]),))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/net", norm, {"scale": jnp.ones(2)}, family)
    ...     load(folder + "/net", family)[1]
    {'scale': Array([1., 1.], dtype=float32)}
    """
    checkpoint = open_checkpoint(path, key=key)
    config = checkpoint.config if config is None else config
    if config is None:
        raise ValueError(f"there is no config.json beside the weights at {os.fspath(path)}; pass config={{...}}")
    family = find_family(family, config, families)
    try:
        module = family.from_config(config)
    except Exception as error:  # of any type: a damaged config fails wherever it is first used
        raise ValueError(f"this config is not valid for the family {family.name!r}: {error}") from error
    prefix = find_prefix(checkpoint.tensors, module, family) if prefix is None else prefix
    tensors = without_prefix(checkpoint.tensors, prefix)
    try:
        params = from_torch(tensors, module, family, sharding=sharding, dtype=dtype, allow_nonfinite=allow_nonfinite)
    except ValueError as error:
        raise ValueError(f"without the prefix {prefix!r} of their names: {error}" if prefix else str(error)) from error
    return module, params


def find_family(family: str | Family | None, config: Mapping[str, Any], families: Sequence[Family] = ()) -> Family:
    """Returns the given family, or the one that the config names; ValueError if the two disagree.

    Families are looked up in `families` first, then in `FAMILIES`.

    >>> find_family(None, {"_class_name": "UNetModel"}).name
    'guided_unet'
    """
    known = FAMILIES | {own.name: own for own in families}
    if isinstance(family, str):
        if family not in known:
            raise ValueError(f"family must be one of {sorted(known)} or a Family; got {family!r}")
        family = known[family]
    named = class_names(config)
    if family is not None:
        if named and not set(named) & set(family.class_names):
            raise ValueError(
                f"this config belongs to {' or '.join(named)}; the family {family.name!r} has "
                f"{', '.join(family.class_names) or 'no class names'}"
            )
        return family
    found = _with_class_name(named, families) or _with_class_name(named, FAMILIES.values())
    if len(found) != 1:
        raise ValueError(
            f"the config does not name exactly one known family ({', '.join(named) or 'it has no class name'}); "
            f"pass family, one of {sorted(known)}"
        )
    return found[0]


def class_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the class names in a config: `_class_name` and `architectures`, or else `model_type`.

    Older configs name one class for all transformers, whose norm_type then tells them apart.

    >>> class_names({"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"})
    ['CLIPTextModel']
    >>> class_names({"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"})
    ['PixArtTransformer2DModel']
    """
    architectures = config.get("architectures")
    several = architectures if isinstance(architectures, list | tuple) else []
    named = [name for name in (config.get("_class_name"), *several) if isinstance(name, str)]
    if named == ["Transformer2DModel"] and config.get("norm_type") == "ada_norm_single":
        return ["PixArtTransformer2DModel"]
    return named or [name for name in (config.get("model_type"),) if isinstance(name, str)]


def _with_class_name(names: Sequence[str], families: Iterable[Family]) -> list[Family]:
    return [family for family in families if set(names) & set(family.class_names)]
