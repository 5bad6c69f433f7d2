"""Pipelines from the folders of published models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.typing import DTypeLike

from diffusers_fn.backbones.clip_text import ClipTextEncoder
from diffusers_fn.pretrained.convert import Placement
from diffusers_fn.pretrained.load import load
from diffusers_fn.pretrained.pipelines.kinds import KINDS
from diffusers_fn.pretrained.pipelines.parts import Kind, Parts
from diffusers_fn.pretrained.pipelines.pipeline import Pipeline, make_pipeline
from diffusers_fn.pretrained.schedulers import load_scheduler
from diffusers_fn.pretrained.schedulers.load import read_config as read_scheduler_config
from diffusers_fn.text import Tokenizer, load_tokenizer
from diffusers_fn.text.files import read_json

__all__ = ["load_pipeline"]


def load_pipeline(
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    scheduler: str | Mapping[str, Any] | os.PathLike[str] | None = None,
    controlnet: str | os.PathLike[str] | None = None,
    sharding: Placement = None,
) -> tuple[Pipeline, dict[str, Any]]:
    """Returns (pipeline, params) of a folder with a model_index.json: Stable Diffusion 1, 2, XL, 3, Flux, PixArt-alpha.

    Weights are read memory-mapped, one array after the other. params is {"unet": ..., "vae": ..., ...}, by the names of
    the folders.

        pipeline, params = load_pipeline("stable-diffusion-v1-5")
        tokens = pipeline.tokenize(["a photo of a cat"])
        images = jax.jit(pipeline.sample)(params, jax.random.key(0), tokens)

    Args:
      folder: with model_index.json, and one folder for each part.
      dtype: of the parameters and of the computation, such as jnp.bfloat16; None for that of the files, computed in
        float32.
      scheduler: another one than the folder's: a class name, which takes the options of the folder's, or the source of
        `load_scheduler`.
      controlnet: the folder of a ControlNet for these networks.
      sharding: where the parameters go, see `load`.

    Raises:
      ValueError: for a folder without a model_index.json, a class of pipelines that is not known, a part that is
        missing or does not fit the others.

    >>> load_pipeline("downloads/unet")
    Traceback (most recent call last):
    ...
    ValueError: downloads/unet is no pipeline: it has no model_index.json. For one network use pretrained.load
    """
    path = Path(folder)
    if not (path / "model_index.json").exists():
        raise ValueError(f"{path} is no pipeline: it has no model_index.json. For one network use pretrained.load")
    index = read_json(path / "model_index.json")
    kind = _kind(index.get("_class_name"))
    present = [
        name for name, entry in index.items() if isinstance(entry, list) and all(isinstance(e, str) for e in entry)
    ]
    network = "unet" if "unet" in present else "transformer"
    wanted = [network, "vae", *dict.fromkeys(kind.tokenizers.values())]
    optional = {"text_encoder_3"} if kind is KINDS["sd3"] else set()
    needed = [name for name in wanted if name in present or name not in optional]
    missing = [name for name in needed if not (path / name).is_dir()]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, parts of a {index['_class_name']}")
    modules, params = {}, {}
    sources = {name: path / name for name in needed} | ({} if controlnet is None else {"controlnet": Path(controlnet)})
    for name, source in sources.items():
        module, params[name] = load(source, sharding=sharding, dtype=dtype)
        modules[name] = module if dtype is None else module.clone(dtype=dtype)
    tokenizers = {name: load_tokenizer(path / name) for name, encoder in kind.tokenizers.items() if encoder in modules}
    for name, encoder in kind.tokenizers.items():
        if encoder in modules:
            _check_vocabulary(path / name, tokenizers[name], modules[encoder])
    settings = {**index, "sample_size": read_json(path / network / "config.json").get("sample_size", 64)}
    parts = Parts(kind, modules, tokenizers, _scheduler(path, scheduler), settings)
    return make_pipeline(parts), params


def _kind(name: Any) -> Kind:
    for kind in KINDS.values():
        if name in kind.class_names:
            return kind
    known = ", ".join(sorted(name for kind in KINDS.values() for name in kind.class_names))
    raise ValueError(f"model_index.json names the pipeline {name!r}; those that can be loaded are {known}")


def _scheduler(path: Path, given: Any) -> Any:
    if given is None:
        return load_scheduler(path / "scheduler")
    if isinstance(given, str) and not Path(given).exists():
        return load_scheduler({**read_scheduler_config(path / "scheduler"), "_class_name": given})
    return load_scheduler(given)


def _check_vocabulary(path: Path, tokenizer: Tokenizer, encoder: Any) -> None:
    """CLIP's encoder has a row for each token, T5's has some rows more; only CLIP's sequences have a start."""
    size = encoder.vocab_size
    fits = tokenizer.vocab_size == size if isinstance(encoder, ClipTextEncoder) else tokenizer.vocab_size <= size
    if not fits or (tokenizer.start is not None) != isinstance(encoder, ClipTextEncoder):
        raise ValueError(
            f"{path} is the tokenizer of another model: it has {tokenizer.vocab_size} tokens, and the text encoder "
            f"{size}"
        )
