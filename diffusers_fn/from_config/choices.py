"""Names and numbers in a config: looking them up, and the messages where they are not allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

__all__ = ["Requirement", "check_requirements", "choose", "fraction", "listed"]


class Requirement(NamedTuple):
    """Values that other fields of a config must have for a name to be allowed.

    Attributes:
      values: {"section.field": value}.
      reason: completes the sentence "config.loss.objective is 'vlb', which ...".
    """

    values: Mapping[str, Any]
    reason: str


def choose(field: str, name: Any, options: Mapping[str, Any]) -> Any:
    """Returns options[name].

    Raises:
      ValueError: if there is no such option; the message names the field and lists them.

    >>> choose("optimizer", "adam", {"adam": 1})
    1
    """
    if not isinstance(name, str) or name not in options:
        raise ValueError(f"config.{field} must be one of {', '.join(sorted(options))}; got {name!r}")
    return options[name]


def fraction(field: str, value: float) -> float:
    """Returns the value of a field that must lie in [0, 1].

    >>> fraction("loss.label_dropout", 0.1)
    0.1
    """
    if not 0 <= value <= 1:
        raise ValueError(f"config.{field} must lie in [0, 1]; got {value}")
    return float(value)


def listed(words: Sequence[str], last: str = "and") -> str:
    """Returns the words as a list in a sentence.

    >>> listed(["a", "b", "c"], "or")
    'a, b or c'
    """
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def check_requirements(config: ConfigDict, field: str, requirements: Sequence[Requirement]) -> None:
    """Raises ValueError unless the config meets the requirements of the name in `field`, "section.field".

    >>> config = ConfigDict({"loss": {"objective": "vlb", "weight": "simple"}})
    >>> check_requirements(config, "loss.objective", [Requirement({"loss.weight": "simple"}, "has its own weight")])
    """
    for required, reason in requirements:
        found = {name: _field(config, name) for name in required}
        if found != dict(required):
            wanted = listed([f"{name} to {value!r}" for name, value in required.items()])
            got = listed([repr(value) for value in found.values()])
            raise ValueError(f"config.{field} is {_field(config, field)!r}, which {reason}: set {wanted}; got {got}")


def _field(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value
