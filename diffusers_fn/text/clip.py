"""CLIP's tokens: lower case, words, then pairs of bytes that are merged.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
https://arxiv.org/abs/2103.00020, section 2.4; the merges are those of Sennrich et al., "Neural Machine Translation of
Rare Words with Subword Units", 2016, https://arxiv.org/abs/1508.07909, algorithm 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers_fn.text.extra import import_extra
from diffusers_fn.text.fast import tokenizer_of
from diffusers_fn.text.files import Settings, read_json
from diffusers_fn.text.tokenizer import Tokenizer

__all__ = ["load_clip"]

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def load_clip(folder: Path, settings: Settings) -> Tokenizer:
    """Returns the tokenizer of vocab.json and merges.txt.

    Raises:
      ValueError: if a file is missing or damaged.
    """
    tokenizers: Any = import_extra("tokenizers")
    vocabulary = read_json(folder / "vocab.json")
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / 'merges.txt'} cannot be read: {error}") from error
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    unknown = settings.unk or settings.end
    try:
        model = tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, end_of_word_suffix="</w>", continuing_subword_prefix=""
        )
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{folder}: vocab.json and merges.txt do not fit together: {error}") from error
    fast = tokenizers.Tokenizer(model)
    normal, split = tokenizers.normalizers, tokenizers.pre_tokenizers
    spaces = normal.Replace(tokenizers.Regex(r"\s+"), " ")
    fast.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
    words = split.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    fast.pre_tokenizer = split.Sequence([words, split.ByteLevel(add_prefix_space=False)])
    fast.decoder = tokenizers.decoders.ByteLevel()
    special = dict.fromkeys(token for token in (settings.start, settings.end, unknown, settings.pad) if token)
    absent = [token for token in special if token not in vocabulary]
    if absent:
        raise ValueError(f"{folder / 'vocab.json'} lacks {', '.join(map(json.dumps, absent))}")
    fast.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    return tokenizer_of(fast, settings)
