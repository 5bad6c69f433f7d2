"""Prefixes that training code puts in front of the names of a network's tensors: "module.", "model.", "_orig_mod."."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import TypeVar

import flax.linen as nn

from diffusers_fn.pretrained.family import Family

__all__ = ["find_prefix", "without_prefix"]

_T = TypeVar("_T")


def find_prefix(names: Mapping[str, object], module: nn.Module, family: Family) -> str:
    """Returns the prefix without which the names that have it are those of the network's tensors, whole; or "".

    Names that fit as they are have the prefix "". If no names fit whole, it is the prefix with more than half of the
    network's names, if there is one, so that a message about the rest is short.

    Raises:
      ValueError: if the names fit with several prefixes; the message lists them.

    >>> from diffusers_fn.pretrained.entries import linear
    >>> family = Family("net", (), lambda config: nn.Dense(2), lambda module: {}, lambda module: linear("fc", "fc"),
    ...                 lambda module: ())
    >>> find_prefix({"module.net.fc.weight": 0, "module.net.fc.bias": 1, "module.step": 2}, nn.Dense(2), family)
    'module.net.'
    """
    constants = family.constants(module)
    needed = {name for entry in family.entries(module) for name in entry.names}
    needed |= {constant.name for constant in constants if constant.saved}
    allowed = needed | {constant.name for constant in constants}

    known: dict[str, set[str]] = collections.defaultdict(set)  # prefix -> the network's names that follow it
    for name in names:
        for prefix in _prefixes(name):
            rest = family.rename(name[len(prefix) :])
            if rest in allowed:
                known[prefix].add(rest)
    if needed <= known[""]:
        return ""
    whole = [prefix for prefix, found in known.items() if needed <= found]
    if len(whole) > 1:
        raise ValueError(f"the names fit with several prefixes; pass prefix, one of {', '.join(map(repr, whole))}")
    best = max(known, key=lambda prefix: (len(known[prefix]), -len(prefix)))
    return whole[0] if whole else best if 2 * len(known[best]) > len(needed) else ""


def without_prefix(tensors: Mapping[str, _T], prefix: str) -> dict[str, _T]:
    """Returns the tensors whose names begin with a prefix, under the rest of their names.

    >>> without_prefix({"module.a": 1, "module.b": 2, "c": 3}, "module.")
    {'a': 1, 'b': 2}
    """
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def _prefixes(name: str) -> list[str]:
    """Every prefix of a name that ends with a point, from the empty one."""
    return ["", *(name[: i + 1] for i, letter in enumerate(name) if letter == ".")]
