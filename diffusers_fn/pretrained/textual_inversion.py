"""Textual inversion: words of your own as rows of a text encoder's embedding table.

Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion", 2022,
https://arxiv.org/abs/2208.01618, section 3.

    pipeline, params = load_pipeline("stable-diffusion-v1-5")
    pipeline, params = textual_inversion.add(pipeline, params, textual_inversion.load("cat-toy.safetensors"))
    tokens = pipeline.tokenize("a photo of a <cat-toy>")
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones.clip_text import ClipTextEncoder
from diffusers_fn.pretrained.downloads import check_download
from diffusers_fn.pretrained.pipelines import Pipeline, make_pipeline
from diffusers_fn.pretrained.safetensors_file import StoredTensor, open_safetensors
from diffusers_fn.pretrained.torch_file import open_torch_file
from diffusers_fn.text import Tokenizer

__all__ = ["Embeddings", "add", "load"]

Embeddings = Mapping[str, Mapping[str, np.ndarray]]  # {text encoder: {word: [n, D], a row for each of its tokens}}
_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def load(path: str | os.PathLike[str], *, word: str | None = None) -> Embeddings:
    """Returns the embeddings of a word, {"text_encoder": {word: [n, D]}}, in a .safetensors or torch file.

    The layouts of published files are read: {word: [D] or [n, D]}; {"emb_params": [n, D]}; {"string_to_param": {"*":
    [n, D]}, "name": word}; and for the two encoders of Stable Diffusion XL {"clip_l": [n, D], "clip_g": [n, D]}.

    Args:
      path: the file. No code from it is run.
      word: that prompts will contain; None for the file's own, or the file's name where it has none.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, or has another layout.
    """
    source = Path(path)
    check_download(source)
    content: Any = open_safetensors(source) if source.suffix == ".safetensors" else open_torch_file(source)
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, and no embeddings by name")
    inner, own = content.get("string_to_param"), content.get("name")
    if isinstance(inner, Mapping):
        content = {own if isinstance(own, str) else source.stem: tensor for tensor in inner.values()}
    tensors = {name: value for name, value in content.items() if isinstance(value, StoredTensor)}
    if tensors and set(tensors) <= set(_ENCODERS):
        return {_ENCODERS[name]: {word or source.stem: _rows(value, source)} for name, value in tensors.items()}
    if len(tensors) != 1:
        raise ValueError(
            f"{source} holds no embeddings of a word: it must hold one tensor, or clip_l and clip_g; it has "
            f"{', '.join(sorted(map(repr, tensors))) or 'none'}"
        )
    ((name, tensor),) = tensors.items()
    named = source.stem if name == "emb_params" else str(name)
    return {"text_encoder": {word or named: _rows(tensor, source)}}


def add(pipeline: Pipeline, params: Mapping[str, Any], embeddings: Embeddings) -> tuple[Pipeline, dict[str, Any]]:
    """Returns (pipeline, params) whose prompts may contain further words.

    A word gets the next free token ids, one for each of its rows; where a prompt contains it, all of them stand in its
    place. The arguments are not changed.

    Args:
      pipeline: with CLIP encoders.
      params: of the pipeline.
      embeddings: of `load`, or {"text_encoder": {word: [n, D]}} of your own.

    Raises:
      ValueError: if the pipeline has no such encoder, its tokens have another width, or its tokenizer knows the word.
    """
    parts = pipeline.parts
    modules, tokenizers, params = dict(parts.modules), dict(parts.tokenizers), dict(params)
    names = {encoder: name for name, encoder in parts.kind.tokenizers.items()}
    for encoder, words in embeddings.items():
        module = modules.get(encoder)
        if not isinstance(module, ClipTextEncoder):
            known = ", ".join(name for name, each in modules.items() if isinstance(each, ClipTextEncoder))
            raise ValueError(f"the pipeline has no CLIP encoder {encoder!r}; it has {known or 'none'}")
        table = params[encoder]["tokens"]["embedding"]
        for word, rows in words.items():
            if np.ndim(rows) != 2 or rows.shape[1] != table.shape[1]:
                raise ValueError(
                    f"the embeddings of {word!r} must have shape [n, {table.shape[1]}], the width of the "
                    f"{encoder}'s tokens; got {list(np.shape(rows))}: they are for another model"
                )
        name = names[encoder]
        if tokenizers[name].vocab_size != table.shape[0]:
            raise ValueError(f"{name} has {tokenizers[name].vocab_size} tokens, and the {encoder} {table.shape[0]}")
        tokenizers[name] = _with_words(tokenizers[name], {word: len(rows) for word, rows in words.items()})
        wide = jnp.concatenate([table, *(jnp.asarray(rows, table.dtype) for rows in words.values())])
        params[encoder] = {**params[encoder], "tokens": {**params[encoder]["tokens"], "embedding": wide}}
        # The pooled output is that of the end token, whose id is no longer the highest.
        end = tokenizers[name].end if module.eos_id is None else module.eos_id
        modules[encoder] = module.clone(vocab_size=wide.shape[0], eos_id=end)
    return make_pipeline(parts._replace(modules=modules, tokenizers=tokenizers)), params


def _rows(tensor: StoredTensor, source: Path) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(tensor.read(), np.float32))
    if rows.ndim != 2:
        raise ValueError(f"{source}: embeddings must have shape [D] or [n, D]; got {list(tensor.shape)}")
    return rows


def _with_words(tokenizer: Tokenizer, counts: Mapping[str, int]) -> Tokenizer:
    """Returns the tokenizer with each word as `count` tokens: word, word_1, word_2, ..."""
    tokens = {word: [word, *(f"{word}_{i}" for i in range(1, count))] for word, count in counts.items()}
    return _expanding(tokenizer.with_tokens([token for each in tokens.values() for token in each]), tokens)


def _expanding(tokenizer: Tokenizer, tokens: Mapping[str, list[str]]) -> Tokenizer:
    """Returns the tokenizer with a word's tokens in the place of the word."""
    several = {word: " ".join(each) for word, each in tokens.items() if len(each) > 1}
    if not several:
        return tokenizer
    longest_first = sorted(several, key=len, reverse=True)
    pattern = re.compile("|".join(rf"{re.escape(word)}(?!_\d)" for word in longest_first))

    return tokenizer._replace(
        encode=lambda text: tokenizer.encode(pattern.sub(lambda match: several[match[0]], text)),
        with_tokens=lambda words: _expanding(tokenizer.with_tokens(words), tokens),
    )
