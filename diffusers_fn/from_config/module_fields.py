"""The fields of a linen module that a config can hold: numbers, strings, flags and sequences; no functions."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any, NamedTuple

__all__ = ["Field", "described", "fits", "plain_fields", "tupled"]

_LINEN = ("parent", "name")  # fields that linen adds to every module


class Field(NamedTuple):
    """A field of a module: its name, declared type and default."""

    name: str
    type: Any
    default: Any


def plain_fields(module: type) -> list[Field]:
    """Returns the fields of a linen module class that are plain data or dtypes (declared Any).

    >>> from diffusers_fn.backbones import UViT
    >>> {field.name: described(field.type) for field in plain_fields(UViT)}["image_size"]
    'int or (int, int)'
    """
    hints = typing.get_type_hints(module)
    fields = [Field(f.name, hints[f.name], f.default) for f in dataclasses.fields(module)]
    return [f for f in fields if f.name not in _LINEN and not _is_function(f.type)]


def fits(value: Any, declared: Any) -> bool:
    """Returns whether a value has a declared type; an int is also a float, a bool is not a number.

    >>> fits((1, (2, 3)), collections.abc.Sequence[int | collections.abc.Sequence[int]]), fits(True, int | None)
    (True, False)
    """
    arguments = typing.get_args(declared)
    if declared is Any:
        return True
    if _is_union(declared):
        return any(fits(value, part) for part in arguments)
    if arguments:  # a sequence
        if not isinstance(value, (list, tuple)):
            return False
        if typing.get_origin(declared) is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(fits(v, part) for v, part in zip(value, arguments))
        return all(fits(v, arguments[0]) for v in value)
    if declared in (int, float):
        return isinstance(value, (int, declared)) and not isinstance(value, bool)
    return isinstance(value, declared)


def described(declared: Any) -> str:
    """Returns a declared type in words.

    >>> described(int | collections.abc.Sequence[float] | None)
    'int, sequence of float or None'
    """
    arguments = typing.get_args(declared)
    if _is_union(declared):
        *most, last = map(described, arguments)
        return f"{', '.join(most)} or {last}"
    if typing.get_origin(declared) is tuple and Ellipsis not in arguments:
        return f"({', '.join(map(described, arguments))})"
    if arguments:
        inner = described(arguments[0])
        return f"sequence of {f'({inner})' if ' ' in inner else inner}"
    return "None" if declared is type(None) else getattr(declared, "__name__", str(declared))


def tupled(value: Any) -> Any:
    """Returns the value with lists replaced by tuples, so that a module with it as a field can be hashed.

    >>> tupled([1, [2, 3]])
    (1, (2, 3))
    """
    return tuple(map(tupled, value)) if isinstance(value, (list, tuple)) else value


def _is_union(declared: Any) -> bool:
    return typing.get_origin(declared) in (types.UnionType, typing.Union)


def _is_function(declared: Any) -> bool:
    parts = typing.get_args(declared) if _is_union(declared) else (declared,)
    return any(collections.abc.Callable in (part, typing.get_origin(part)) for part in parts)
