"""Vocabularies of sentencepiece: spiece.model, of T5.

Kudo and Richardson, "SentencePiece: A simple and language independent subword tokenizer", 2018,
https://arxiv.org/abs/1808.06226.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_fn.text.extra import import_extra
from diffusers_fn.text.files import Settings
from diffusers_fn.text.tokenizer import Tokenizer

__all__ = ["load_sentence_piece"]

_EXTRA_IDS = 100  # sentinels <extra_id_0> ... of T5, behind the vocabulary, the last one first


def load_sentence_piece(path: Path, settings: Settings) -> Tokenizer:
    """Returns the tokenizer of a spiece.model.

    Special tokens that are written in a text become those tokens.

    Raises:
      ValueError: if the file is damaged, or lacks a special token.
    """
    library: Any = import_extra("sentencepiece")
    try:
        model = library.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    size = model.get_piece_size()
    ids = {f"<extra_id_{i}>": size + _EXTRA_IDS - 1 - i for i in range(_EXTRA_IDS)}
    for token in (settings.end, settings.pad, settings.unk):
        if token is not None:
            ids[token] = model.piece_to_id(token)
    return _tokenizer(model, ids, size + _EXTRA_IDS, settings)


def _tokenizer(model: Any, ids: dict[str, int], vocab_size: int, settings: Settings) -> Tokenizer:
    if settings.end not in ids or settings.pad not in ids:
        raise ValueError(f"the tokenizer must name its end and padding tokens; got {settings.end!r}, {settings.pad!r}")
    pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))))
    names = {number: token for token, number in ids.items()}

    def encode(text: str) -> list[int]:
        found: list[int] = []
        begin = 0
        for match in pattern.finditer(text):
            found += model.encode(text[begin : match.start()])
            found.append(ids[match.group()])
            begin = match.end()
        return found + list(model.encode(text[begin:]))

    def decode(given: Sequence[int]) -> str:
        pieces = [names[i] if i in names else model.id_to_piece(int(i)) for i in given]
        return "".join(pieces).replace("\u2581", " ").strip()

    def with_tokens(words: Sequence[str]) -> Tokenizer:
        if set(words) & set(ids) or len(set(words)) < len(words):
            raise ValueError(f"the tokenizer has some of the tokens {', '.join(words)} already: choose other names")
        more = {word: vocab_size + i for i, word in enumerate(words)}
        return _tokenizer(model, ids | more, vocab_size + len(words), settings)

    return Tokenizer(encode, decode, settings.max_length, None, ids[settings.end], ids[settings.pad], vocab_size,
                     with_tokens)  # fmt: skip
