"""Tokenizers from the folders of published models."""

from __future__ import annotations

import os
from pathlib import Path

from diffusers_fn.text.clip import load_clip
from diffusers_fn.text.fast import load_fast
from diffusers_fn.text.files import read_settings
from diffusers_fn.text.sentence_piece import load_sentence_piece
from diffusers_fn.text.tokenizer import Tokenizer

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Returns the tokenizer of a folder: CLIP's vocab.json and merges.txt, T5's spiece.model, or a tokenizer.json.

    Raises:
      ValueError: if the folder has none of these, a file is damaged, or the package that reads it is absent (both
        packages are in the extra `text`).

    >>> load_tokenizer("downloads/unet")
    Traceback (most recent call last):
    ...
    ValueError: downloads/unet is no tokenizer: it has no vocab.json and merges.txt, spiece.model or tokenizer.json
    """
    path = Path(folder)
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return load_clip(path, read_settings(path, max_length=77))
    if (path / "spiece.model").exists():
        return load_sentence_piece(path / "spiece.model", read_settings(path, max_length=512))
    if (path / "tokenizer.json").exists():
        settings = read_settings(path, max_length=512)
        return load_fast(path / "tokenizer.json", settings)
    raise ValueError(f"{path} is no tokenizer: it has no vocab.json and merges.txt, spiece.model or tokenizer.json")
