"""Token vectors of a published text encoder, CLIP or T5, which stays as it is: config.text.kind = "encoder".

config.text.path is a folder of the encoder with its tokenizer beside it, or one of a pipeline, with `text_encoder` and
`tokenizer`. A text is padded or cut to text.num_tokens tokens, start and end included; its vectors are the encoder's
last hidden states, zeros for padding. A blank text has no vectors: it is "no condition".

Vectors of captions are computed once and kept in WORKDIR/text_vectors: `captions.json`, which records what they belong
to, and shards `vectors-00000.npy` of up to 1024 texts, float32 [n, num_tokens, vector_dim], which are memory-mapped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusers_fn import pretrained
from diffusers_fn.text import load_tokenizer, tokenize
from experiments import processes
from experiments.files import write_atomically, write_text

__all__ = ["Cached", "encoder_vectors"]

_TOGETHER = 64  # texts in one call of the encoder
_SHARD = 1024  # texts in one file


def encoder_vectors(folder: Path, length: int, dim: int) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns texts -> their token vectors [n, length, dim] float32.

    Raises:
      ValueError: if the folder holds no CLIP or T5 text encoder with a tokenizer, or its features are not `dim`.
    """
    parts = [folder / name if (folder / name).is_dir() else folder for name in ("text_encoder", "tokenizer")]
    try:
        tokenizer = load_tokenizer(parts[1])
        module, params = pretrained.load(parts[0])
    except OSError as error:
        raise ValueError(f"config.text.path = {str(folder)!r} holds no text encoder: {error}") from error
    features, size = getattr(module, "hidden_size", None), getattr(module, "vocab_size", 0)
    if features is None or not size:
        raise ValueError(
            f"config.text.path = {str(folder)!r} is a {type(module).__name__}: it must be a CLIP or T5 encoder"
        )
    if features != dim:
        raise ValueError(f"{folder} has vectors of {features} features: set config.text.vector_dim to that; got {dim}")
    if tokenizer.vocab_size > size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the encoder {size}: they are of other models"
        )
    longest = getattr(module, "max_length", length)
    if length > longest:
        raise ValueError(f"{folder} takes at most {longest} tokens: config.text.num_tokens is {length}")

    @jax.jit
    def run(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        out: Any = module.apply({"params": params}, ids, mask)
        hidden = getattr(out, "last_hidden", out)
        return jnp.where(mask[..., None], hidden, 0).astype(jnp.float32)

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), length, dim), np.float32)
        said = np.flatnonzero([bool(text.strip()) for text in texts])
        starts = range(0, len(said), _TOGETHER)
        for start in tqdm(starts, desc="encoding captions", unit="batch", disable=len(starts) < 10):
            rows = np.resize(said[start : start + _TOGETHER], _TOGETHER)  # one shape, one program
            tokens = tokenize(tokenizer, [texts[int(row)] for row in rows], length)
            vectors[rows] = np.asarray(run(params, tokens.ids, tokens.mask))
        return vectors

    return encode


class Cached:
    """The vectors of texts on disk, read as `cached[indices]`; computed and written if they are not there."""

    def __init__(self, cache: Path, about: dict[str, Any], texts: Sequence[str], encode: Callable[[Any], np.ndarray]):
        record = {**about, "texts": list(texts)}
        starts = range(0, len(texts), _SHARD)
        files = [cache / f"vectors-{number:05d}.npy" for number in range(len(starts))]
        if processes.is_main() and _read(cache / "captions.json") != record:
            cache.mkdir(parents=True, exist_ok=True)
            (cache / "captions.json").unlink(missing_ok=True)
            for start, file in zip(starts, files):
                rows = encode(texts[start : start + _SHARD])
                write_atomically(file, functools.partial(np.save, arr=rows))
            write_text(cache / "captions.json", json.dumps(record) + "\n")
        processes.wait()
        self._shards = [np.load(file, mmap_mode="r") for file in files]

    def __getitem__(self, indices: Any, /) -> np.ndarray:
        which = np.asarray(indices)
        rows = [self._shards[int(i) // _SHARD][int(i) % _SHARD] for i in which.ravel()]
        return np.stack(rows).reshape(*which.shape, *self._shards[0].shape[1:])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
