"""What a run has to know of its data, to notice that they are others: counts, order, content and split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.data.dataset import Dataset, hash_each, source_hashes

__all__ = ["Record", "compare", "describe"]


class Record(NamedTuple):
    """Description of both splits of a data set.

    Attributes:
      summary: what JSON can hold: number of examples, shape, classes, and checksums of content, order and split.
      hashes: "train" and "heldout" -> uint64, one number per example, in the order of the split.
    """

    summary: dict[str, Any]
    hashes: dict[str, np.ndarray]


def describe(train: Dataset, heldout: Dataset | None) -> Record:
    """Returns the record of a data set; `heldout` is None if nothing is held out.

    The number of an example is a 64-bit BLAKE2b hash of its values; of examples that are read on demand, of what
    identifies them: relative name and size of the file, and the place in a file of many, or in the data set.

    >>> d = Dataset(np.array([[0.5], [1.0]], np.float32), None, (1,), 0)
    >>> describe(d, None).summary["train"], compare(describe(d, None), describe(d, None))
    (2, [])
    """
    parts = {"train": train} if heldout is None else {"train": train, "heldout": heldout}
    hashes = {name: _hashes(part) for name, part in parts.items()}
    hashes.setdefault("heldout", np.zeros(0, np.uint64))
    labels = [np.zeros(0, np.int32) if part.labels is None else part.labels for part in parts.values()]
    names = [part.names for part in parts.values()]
    both = np.concatenate([hashes["train"], hashes["heldout"]])
    summary: dict[str, Any] = {
        "train": len(hashes["train"]),
        "heldout": len(hashes["heldout"]),
        "shape": [int(n) for n in train.shape],
        "num_classes": int(train.num_classes),
        "class_names": None if train.class_names is None else [str(name) for name in train.class_names],
        "absent_classes": _absent(train),
        "identity": "content" if isinstance(train.images, np.ndarray) else "files",
        "content": _checksum([np.sort(both)]),
        "order": _checksum([hashes["train"]]),
        "split": _checksum([np.sort(hashes["train"]), np.sort(hashes["heldout"])]),
        "labels": _checksum([np.asarray(part, np.int32) for part in labels]),
        "captions": _captions(parts.values()),
        "names": None if None in names else _checksum(["\n".join(part).encode() for part in names if part is not None]),
        "heldout_also_in_train": int(np.isin(hashes["heldout"], hashes["train"]).sum()),
    }
    return Record(summary, hashes)


def compare(old: Record, new: Record) -> list[str]:
    """Returns in what two records differ, one sentence each; an empty list if they are of the same data and split."""
    differences = _counts(old.summary, new.summary)
    before, now = old.summary, new.summary
    for name, text in (("shape", "shape of an example"), ("num_classes", "number of classes")):
        if before.get(name) != now.get(name):
            differences.append(f"the {text} was {before.get(name)} and is {now.get(name)}")
    if before.get("class_names") != now.get("class_names"):
        differences.append(f"the classes were {_listed(before)} and are {_listed(now)}")
    if before.get("identity") != now.get("identity"):  # read on demand there, in memory here, or the reverse
        if not differences and before.get("names") != now.get("names"):
            differences.append("other files, or the same in another split")
        return differences + _labels(before, now, differences)
    train, heldout = ((old.hashes[part], new.hashes[part]) for part in ("train", "heldout"))
    if not (np.array_equal(*train) and np.array_equal(*heldout)):
        differences += _examples(train, heldout)
    return differences + _labels(before, now, differences)


def _counts(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    sizes = [(record.get("train"), record.get("heldout")) for record in (before, now)]
    if sizes[0] == sizes[1]:
        return []
    return ["{} training and {} held-out examples are now {} and {}".format(*sizes[0], *sizes[1])]


def _labels(before: dict[str, Any], now: dict[str, Any], differences: Sequence[str]) -> list[str]:
    """Labels and captions are only compared if the examples are the same; captions if they are conditions in both."""
    if differences:
        return []
    found = ["the labels differ"] if before.get("labels") != now.get("labels") else []
    captions = before.get("captions"), now.get("captions")
    return found + (["the captions differ"] if None not in captions and captions[0] != captions[1] else [])


def _captions(parts: Iterable[Dataset]) -> str | None:
    """The checksum of the captions, if they are conditions."""
    texts = [part.captions for part in parts if part.text is not None and part.captions is not None]
    return _checksum(["\0".join(each).encode() for each in texts]) if texts else None


def _examples(train: tuple[np.ndarray, np.ndarray], heldout: tuple[np.ndarray, np.ndarray]) -> list[str]:
    """Differences between examples; each argument is (old, new)."""
    old, new = np.concatenate([train[0], heldout[0]]), np.concatenate([train[1], heldout[1]])
    differences = []
    appeared, gone = int((~np.isin(new, old)).sum()), int((~np.isin(old, new)).sum())
    if appeared or gone:
        differences.append(f"{appeared} of {len(new)} examples are new or changed, {gone} of {len(old)} are gone")
    elif _same_set(*train) and _same_set(*heldout):
        differences.append("the same examples in another order, so that a resumed run draws other batches")
    elif _same_set(old, new):
        differences.append("the same examples in another split (data.heldout_fraction or seed)")
    else:
        differences.append("some examples occur more or less often than before")
    trained_on, held_out = np.isin(heldout[1], train[0]), np.isin(train[1], heldout[0])
    if trained_on.any():
        differences.append(f"{int(trained_on.sum())} of {len(trained_on)} held-out examples were trained on")
    if held_out.any():
        differences.append(f"{int(held_out.sum())} of {len(held_out)} training examples were held out before")
    return differences


def _same_set(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.sort(a), np.sort(b))


def _absent(train: Dataset) -> list[int]:
    """The classes that no training example has."""
    present = range(train.num_classes) if train.labels is None else np.unique(np.asarray(train.labels))
    return [int(label) for label in np.setdiff1d(np.arange(train.num_classes), present)]


def _listed(summary: dict[str, Any]) -> str:
    names = summary.get("class_names")
    return "without names" if not names else ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _hashes(dataset: Dataset) -> np.ndarray:
    images = dataset.images
    if isinstance(images, np.ndarray):
        rows = np.ascontiguousarray(images)
        hashes = hash_each(memoryview(row).cast("B") if row.size else b"" for row in rows)
    else:
        hashes = source_hashes(images, np.arange(len(images)))
    if dataset.noise is not None:
        hashes = hashes ^ _hashes(Dataset(dataset.noise, None, dataset.shape, 0))
    return hashes


def _checksum(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
