"""Vocabularies of the library tokenizers: tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_fn.text.extra import import_extra
from diffusers_fn.text.files import Settings
from diffusers_fn.text.tokenizer import Tokenizer

__all__ = ["load_fast", "tokenizer_of"]


def load_fast(path: Path, settings: Settings) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json.

    Raises:
      ValueError: if the file is damaged, or lacks a special token.
    """
    tokenizers: Any = import_extra("tokenizers")
    try:
        fast = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} cannot be read: {error}") from error
    fast.no_padding()
    fast.no_truncation()
    return tokenizer_of(fast, settings)


def tokenizer_of(fast: Any, settings: Settings) -> Tokenizer:
    """Returns a `tokenizers.Tokenizer` as a record of functions.

    Raises:
      ValueError: if its vocabulary lacks a special token of the settings.
    """

    def id_of(name: str, token: str | None) -> int:
        found = None if token is None else fast.token_to_id(token)
        if found is None:
            raise ValueError(f"the tokenizer has no {name} token (it is {token!r})")
        return int(found)

    end = id_of("end", settings.end)

    def with_tokens(words: Sequence[str]) -> Tokenizer:
        known = [word for word in words if fast.token_to_id(word) is not None]
        if known or len(set(words)) < len(words):
            raise ValueError(f"the tokenizer has the tokens {', '.join(known or words)} already: choose other names")
        copy = type(fast).from_str(fast.to_str())
        copy.add_tokens(list(words))
        return tokenizer_of(copy, settings)

    return Tokenizer(
        encode=lambda text: list(fast.encode(text, add_special_tokens=False).ids),
        decode=lambda ids: str(fast.decode(list(ids), skip_special_tokens=False)).replace("</w>", " ").strip(),
        max_length=settings.max_length,
        start=None if settings.start is None else id_of("start", settings.start),
        end=end,
        pad=end if settings.pad is None else id_of("padding", settings.pad),
        vocab_size=fast.get_vocab_size(with_added_tokens=True),
        with_tokens=with_tokens,
    )
