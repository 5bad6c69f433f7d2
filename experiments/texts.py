"""Captions and prompts as conditions: config.text.kind turns texts into token ids or token vectors, on the host.

words: a text in lower case is cut into runs of letters and digits; all else separates. Id 0 is padding, 1 any unknown
word, and 2, 3, ... are the most frequent words of the training captions (of equally frequent ones the first in the
alphabet), text.vocab_size ids in all. WORKDIR/text.json keeps them, so that sampling needs no data.

bytes: the UTF-8 bytes of a text as it is; byte b has the id b + 1, and 0 is padding.

table: ids of the folder's tokenizer.json (without its special tokens) select rows of its table of token vectors, the
only matrix in its .safetensors file, which stays as it is. PyPI's `wordllama` has such files.

encoder: see `text_encoder`.

Texts are cut to text.num_tokens tokens. A text without tokens is "no condition".

text.path may be moved between training and sampling. For table and encoder, WORKDIR/text.json keeps some features of
the vectors of a fixed text, by which files of another model are recognised and refused.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusers_fn.from_config.conditions import TEXT_KINDS, takes_text, text_fields
from diffusers_fn.pretrained.safetensors_file import open_safetensors
from diffusers_fn.text.extra import import_extra
from experiments import data
from experiments.files import write_text
from experiments.text_encoder import Cached, encoder_vectors

__all__ = [
    "FILE",
    "Texts",
    "in_place",
    "load_texts",
    "make_texts",
    "of_prompts",
    "save",
    "vocabulary",
    "words_of",
]

FILE = "text.json"
UNKNOWN = 1
_FIRST_WORD = 2
_WORD = re.compile(r"[^\W_]+")
_MISSING = ("refuse", "empty")
_PROBE = "red heart"  # the text of which WORKDIR/text.json keeps features
_PROBED = 4  # features of each token


class Texts(NamedTuple):
    """A tokenizer, and the vectors of its tokens if they are given.

    Attributes:
      encode: (texts) -> token ids [n, num_tokens], or vectors [n, num_tokens, vector_dim] float32: conditions.
      record: what WORKDIR/text.json keeps.
      unknown: (text) -> its words that are not in the vocabulary.
    """

    encode: Callable[[Sequence[str]], np.ndarray]
    record: dict[str, Any]
    unknown: Callable[[str], list[str]] = lambda text: []


def words_of(text: str) -> list[str]:
    """Returns the words of a text: runs of letters and digits, in lower case.

    >>> words_of("Red heart: dark-skin tone!")
    ['red', 'heart', 'dark', 'skin', 'tone']
    """
    return _WORD.findall(text.lower())


def vocabulary(captions: Sequence[str], vocab_size: int) -> list[str]:
    """Returns the words with the ids 2, 3, ..., at most vocab_size - 2: frequent ones first, then by alphabet.

    >>> vocabulary(["red heart", "blue heart"], 4)
    ['heart', 'blue']
    """
    counts = collections.Counter(word for caption in captions for word in words_of(caption))
    return sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - _FIRST_WORD]


def make_texts(config: ConfigDict, captions: Sequence[str]) -> Texts:
    """Returns the tokenizer of a new run; the vocabulary of `words` is that of its training captions.

    Raises:
      ValueError: if a field of config.text has no meaning, or config.text.path holds no such files.
    """
    words = vocabulary(captions, config.text.vocab_size) if config.text.kind == "words" else None
    texts = _texts(config, words)
    return texts._replace(record=texts.record | {"probe": _probe(config, texts)})


def load_texts(config: ConfigDict, workdir: Path) -> Texts:
    """Returns the tokenizer of a run that has begun. No data are read.

    Raises:
      ValueError: as `make_texts`; if the work directory has no vocabulary, or config.text.path holds another model.
    """
    if not takes_text(config):
        raise ValueError("this model takes no text: config.text.kind is 'none'")
    path = workdir / FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        words, before = record["words"], record["probe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, the vocabulary of the run, cannot be read: {error}") from error
    texts = _texts(config, words)
    now = _probe(config, texts)
    if (before is None) != (now is None) or len(before or ()) != len(now or ()) or not _close(before, now):
        raise ValueError(
            f"config.text.path = {config.text.path!r} holds other token vectors than those of the training ({path}): "
            "set it to the folder that the run was trained with"
        )
    return texts._replace(record=record)


def of_prompts(config: ConfigDict, workdir: Path, prompts: Sequence[str]) -> np.ndarray:
    """Returns prompts as conditions of a run's model, [n, ...]; words that its vocabulary lacks are printed.

    Raises:
      ValueError: as `load_texts`.
    """
    texts = load_texts(config, workdir)
    for prompt in dict.fromkeys(prompts):
        if unknown := texts.unknown(prompt):
            print(f"prompt {prompt!r}: unknown words: {', '.join(dict.fromkeys(unknown))}")
    return texts.encode(prompts)


def in_place(config: ConfigDict, workdir: Path, *parts: data.Dataset | None) -> tuple[Any, Texts]:
    """Returns (the data sets with their tokens as conditions, the tokenizer): that of the run, or a new one.

    Args:
      config: with texts.
      workdir: of the run.
      *parts: the training data, of whose captions a new vocabulary is made, and others; None stays None.

    Raises:
      ValueError: as `make_texts`; if examples have no caption, see text.missing.
    """
    captions = [None if part is None else _captions(config, part) for part in parts]
    texts = load_texts(config, workdir) if (workdir / FILE).exists() else make_texts(config, captions[0] or ())
    cache = workdir / "text_vectors" if config.text.kind == "encoder" else None
    rows = TokenRows(config, texts, [own for own in captions if own is not None], cache)
    made = [
        None if part is None else dataclasses.replace(part, captions=own, text=rows.of(own or ()))
        for part, own in zip(parts, captions)
    ]
    return made, texts


def save(texts: Texts, workdir: Path) -> None:
    """Writes WORKDIR/text.json."""
    write_text(workdir / FILE, json.dumps(texts.record, indent=1, ensure_ascii=False) + "\n")


class TokenRows:
    """The conditions of all captions of a run, once for each different one; on disk in the folder `cache`, if any."""

    def __init__(self, config: ConfigDict, texts: Texts, captions: Sequence[Sequence[str]], cache: Path | None):
        different = sorted({text for part in captions for text in part})
        self._position = {text: number for number, text in enumerate(different)}
        if cache is None:
            self._rows: Any = texts.encode(different)
        else:
            about = {"path": config.text.path, "num_tokens": config.text.num_tokens}
            self._rows = Cached(cache, about, different, texts.encode)

    def of(self, captions: Sequence[str]) -> OfExamples:
        """Returns the conditions [n, *S] of examples with these captions."""
        return OfExamples(self._rows, np.array([self._position[text] for text in captions]))


class OfExamples:
    """The conditions of examples, [n, *S], read as `conditions[indices]`."""

    def __init__(self, rows: Any, index: np.ndarray):
        self._rows, self._index = rows, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, indices: Any, /) -> np.ndarray:
        rows: np.ndarray = self._rows[self._index[indices]]
        return rows


def _probe(config: ConfigDict, texts: Texts) -> list[float] | None:
    """Some features of the vectors of a fixed text; None for token ids, which no file defines."""
    if not TEXT_KINDS[config.text.kind].vectors:
        return None
    return [float(value) for value in texts.encode([_PROBE])[0, :, :_PROBED].ravel()]


def _close(before: list[float] | None, now: list[float] | None) -> bool:
    """Whether features are equal up to the rounding of another device."""
    return before is None or now is None or np.allclose(before, now, rtol=1e-2, atol=1e-3)


def _captions(config: ConfigDict, dataset: data.Dataset) -> tuple[str, ...]:
    """The captions of all examples; "" for none where config.text.missing allows it."""
    missing = config.text.missing
    if missing not in _MISSING:
        raise ValueError(f"config.text.missing must be one of {', '.join(_MISSING)}; got {missing!r}")
    captions = ("",) * len(dataset) if dataset.captions is None else tuple(dataset.captions)
    absent = [i for i, caption in enumerate(captions) if not caption.strip()]
    if absent and (missing == "refuse" or len(absent) == len(captions)):
        names = dataset.names
        first = f"example {absent[0]}" if names is None else f"the first is {names[absent[0]]}"
        remedy = "" if len(absent) == len(captions) else ", or set config.text.missing to 'empty'"
        raise ValueError(
            f"config.text.kind is {config.text.kind!r}, but {len(absent)} of {len(captions)} examples have no caption "
            f"({first}): add `text` in metadata.jsonl or a .txt file beside each picture{remedy}"
        )
    return captions


def _texts(config: ConfigDict, words: list[str] | None) -> Texts:
    fields, kind = text_fields(config), config.text.kind
    assert fields is not None
    length, record = fields["num_tokens"], {"kind": kind, "words": words}
    if kind == "words":
        ids = {word: number for number, word in enumerate(words or (), _FIRST_WORD)}
        return Texts(
            lambda texts: _padded(
                [[ids.get(word, UNKNOWN) for word in words_of(text)] for text in texts], texts, length
            ),
            record,
            lambda text: [word for word in words_of(text) if word not in ids],
        )
    if kind == "bytes":
        return Texts(lambda texts: _padded([[b + 1 for b in text.encode()] for text in texts], texts, length), record)
    folder = Path(config.text.path).expanduser()
    if not config.text.path or not folder.is_dir():
        raise ValueError(
            f"config.text.path must be a folder, for config.text.kind = {kind!r}; got {config.text.path!r}"
        )
    if kind == "encoder":
        return Texts(encoder_vectors(folder, length, fields["vector_dim"]), record)
    return Texts(_table_vectors(folder, length, fields["vector_dim"]), record)


def _padded(rows: Sequence[Sequence[int]], texts: Sequence[str], length: int) -> np.ndarray:
    """Token ids [n, length] int32, cut or filled up with zeros."""
    cut = [text for row, text in zip(rows, texts) if len(row) > length]
    if cut:
        print(f"{len(cut)} texts have more than config.text.num_tokens = {length} tokens and are cut: {cut[0][:80]!r}")
    ids = np.zeros((len(rows), length), np.int32)
    for row, own in zip(ids, rows):
        row[: len(own)] = own[:length]
    return ids


def _table_vectors(folder: Path, length: int, dim: int) -> Callable[[Sequence[str]], np.ndarray]:
    """The vectors of the tokens of texts: rows of a table."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1 or not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"config.text.path = {str(folder)!r} must hold tokenizer.json and one .safetensors file, the table; it has "
            f"{', '.join(sorted(each.name for each in folder.iterdir())[:5]) or 'no files'}"
        )
    matrices = {name: stored for name, stored in open_safetensors(files[0]).items() if len(stored.shape) == 2}
    if len(matrices) != 1:
        raise ValueError(f"{files[0]} must hold one matrix, the table of token vectors; it has {len(matrices)}")
    table = next(iter(matrices.values())).read()
    if table.shape[1] != dim:
        raise ValueError(
            f"{files[0]} has vectors of {table.shape[1]} features: set config.text.vector_dim to that; got {dim}"
        )
    tokenizers: Any = import_extra("tokenizers")
    try:
        fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    fast.no_padding()
    fast.no_truncation()
    if fast.get_vocab_size(with_added_tokens=False) > len(table):
        raise ValueError(f"{folder}: the tokenizer has more tokens than the table's {len(table)} rows: they do not fit")

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = [[i + 1 for i in fast.encode(text, add_special_tokens=False).ids] for text in texts]
        ids = _padded(rows, texts, length)
        vectors = np.asarray(table[np.maximum(ids - 1, 0)], np.float32)
        return np.where(ids[..., None] > 0, vectors, np.float32(0))

    return encode
