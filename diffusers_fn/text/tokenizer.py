"""Token ids of prompts, computed on the host: the padding and truncation of the published pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Tokenizer", "Tokens", "tokenize"]

_SHOWN = 200  # characters of a text that was cut


class Tokens(NamedTuple):
    """Token ids of B texts, padded to one length L.

    Attributes:
      ids: int32 [B, L].
      mask: bool [B, L], False for padding.
    """

    ids: np.ndarray
    mask: np.ndarray


class Tokenizer(NamedTuple):
    """A vocabulary as pure functions and numbers.

    Attributes:
      encode: (text) -> the ids of its tokens, without start and end.
      decode: (ids) -> text.
      max_length: the longest sequence that the text encoder was trained with, start and end included.
      start: id that begins every sequence, or None.
      end: id that ends it.
      pad: id that fills it up.
      vocab_size: ids are below this number.
      with_tokens: (words) -> this tokenizer, with each word as a token of its own under the next free id.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    max_length: int
    start: int | None
    end: int
    pad: int
    vocab_size: int
    with_tokens: Callable[[Sequence[str]], Tokenizer]


def tokenize(tokenizer: Tokenizer, texts: str | Sequence[str], max_length: int | None = None) -> Tokens:
    """Returns the tokens of texts: start, the text's tokens, end, padding.

    A longer text is cut to max_length, and keeps start and end; a warning shows what was cut.

    Args:
      tokenizer: of the text encoder.
      texts: B texts; a string is one text.
      max_length: L; None for that of the tokenizer.

    Raises:
      ValueError: if a text is not a string, there are none, or max_length has no place for start and end.

    >>> letters = Tokenizer(lambda text: [ord(c) - 96 for c in text], lambda ids: "".join(chr(i + 96) for i in ids),
    ...                     max_length=5, start=27, end=28, pad=0, vocab_size=29, with_tokens=lambda words: letters)
    >>> tokenize(letters, ["ab", ""]).ids.tolist()
    [[27, 1, 2, 28, 0], [27, 28, 0, 0, 0]]
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    length = tokenizer.max_length if max_length is None else max_length
    special = 1 + (tokenizer.start is not None)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts must be one string or several; got {texts!r}")
    if length < special:
        raise ValueError(f"max_length must be at least {special}, for the tokens of start and end; got {length}")
    ids = np.full([len(texts), length], tokenizer.pad, np.int32)
    mask = np.zeros([len(texts), length], bool)
    for row, text in enumerate(texts):
        own = tokenizer.encode(text)
        kept, cut = own[: length - special], own[length - special :]
        if cut:
            _warn_of_cut(tokenizer.decode(cut), len(cut), length)
        whole = [*([] if tokenizer.start is None else [tokenizer.start]), *kept, tokenizer.end]
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, True
    return Tokens(ids, mask)


def _warn_of_cut(text: str, num_tokens: int, length: int) -> None:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    warnings.warn(
        f"a prompt is longer than the {length} tokens of its encoder: its last {num_tokens} tokens were cut: {shown!r}",
        stacklevel=3,
    )
