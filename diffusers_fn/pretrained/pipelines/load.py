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
from diffusers_fn.pretrained.single_file import load_single_file
from diffusers_fn.text import Tokenizer, load_tokenizer
from diffusers_fn.text.files import read_json

__all__ = ["load_pipeline"]


def load_pipeline(
    folder: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    scheduler: str | Mapping[str, Any] | os.PathLike[str] | None = None,
    controlnet: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    sharding: Placement = None,
) -> tuple[Pipeline, dict[str, Any]]:
    """Returns (pipeline, params) of a folder with a model_index.json: Stable Diffusion 1, 2, XL, 3, Flux, PixArt-alpha.

    Weights are read memory-mapped, one array after the other. params is {"unet": ..., "vae": ..., ...}, by the names of
    the folders.

        pipeline, params = load_pipeline("stable-diffusion-v1-5")
        tokens = pipeline.tokenize(["a photo of a cat"])
        images = jax.jit(pipeline.sample)(params, jax.random.key(0), tokens)

    Weights of Stable Diffusion 1, 2 and XL in one file, see `load_single_file`, hold no tokenizers and no scheduler:

        pipeline, params = load_pipeline("finetuned.safetensors", config="stable-diffusion-v1-5")

    Args:
      folder: with model_index.json, and one folder for each part; or one file.
      dtype: of the parameters and of the computation, such as jnp.bfloat16; None for that of the files, computed in
        float32.
      scheduler: another one than the folder's: a class name, which takes the options of the folder's, or the source of
        `load_scheduler`.
      controlnet: the folder of a ControlNet for these networks.
      config: for one file: the folder of a pipeline of its kind, of which all but the weights is read.
      sharding: where the parameters go, see `load`.

    Raises:
      ValueError: for a folder without a model_index.json, a class of pipelines that is not known, a part that is
        missing or does not fit the others.

    >>> load_pipeline("downloads/unet")
    Traceback (most recent call last):
    ...
    ValueError: downloads/unet is no pipeline: it has no model_index.json. For one network use pretrained.load
    """
    path = _described(Path(folder), config)
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
    if config is None:
        networks = {name: load(path / name, sharding=sharding, dtype=dtype) for name in needed}
    else:
        networks = _of_one_file(folder, path, needed, sharding=sharding, dtype=dtype)
    if controlnet is not None:
        networks["controlnet"] = load(controlnet, sharding=sharding, dtype=dtype)
    params = {name: own for name, (_, own) in networks.items()}
    modules: dict[str, Any] = {
        name: module if dtype is None else module.clone(dtype=dtype) for name, (module, _) in networks.items()
    }
    tokenizers = {name: load_tokenizer(path / name) for name, encoder in kind.tokenizers.items() if encoder in modules}
    for name, tokenizer in tokenizers.items():
        _check_vocabulary(path / name, tokenizer, modules[kind.tokenizers[name]])
    settings = {**index, "sample_size": read_json(path / network / "config.json").get("sample_size", 64)}
    parts = Parts(kind, modules, tokenizers, _scheduler(path, scheduler), settings)
    return make_pipeline(parts), params


def _described(path: Path, config: Any) -> Path:
    """The folder with the model_index.json."""
    if path.is_file() and config is None:
        raise ValueError(
            f"{path} is one file, which holds no tokenizers and no scheduler: pass config, the folder of a pipeline of "
            "its kind (its weights are not read)"
        )
    if config is not None and not path.is_file():
        raise ValueError(f"config is for weights in one file, and {path} is no file")
    folder = path if config is None else Path(config)
    if not (folder / "model_index.json").exists():
        raise ValueError(f"{folder} is no pipeline: it has no model_index.json. For one network use pretrained.load")
    return folder


def _of_one_file(file: Any, folder: Path, needed: list[str], **options: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """{part: (module, params)} of one file, with the configs of a folder."""
    found = load_single_file(file, config=folder, **options).networks
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}, which the pipeline in {folder} has")
    return {name: found[name] for name in needed}


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
