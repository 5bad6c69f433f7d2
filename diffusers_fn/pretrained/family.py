"""A family of published networks as a record of pure functions: config, tensor names, tensor layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from diffusers_fn.pretrained.entries import Entry

__all__ = ["Constant", "Family", "different_fields", "read_config"]


class Constant(NamedTuple):
    """A tensor that checkpoints hold and the module computes itself: position ids, a fixed table, a filter.

    Attributes:
      name: the tensor's name in the checkpoint.
      value: its value, to within 1e-5 of its largest absolute value: references compute tables in different
        precisions. None accepts any value, for tensors on which no output depends.
      saved: whether the reference stores it. If so, `save` writes it and `load` requires it.
    """

    name: str
    value: np.ndarray | None
    saved: bool = True


class Family(NamedTuple):
    """A family of published networks as a record of pure functions. The package's docstring has an example.

    Attributes:
      name: the family's name in `FAMILIES`, e.g. "dit".
      class_names: the reference's class names in config.json (`_class_name`, `architectures` or `model_type`).
      from_config: the reference's config, a dict -> the linen module. ValueError for a config that no module has.
      to_config: the module -> the reference's config. `save` refuses a module that differs from
        from_config(to_config(module)), as `different_fields` compares them.
      entries: the module -> one `Entry` per parameter, with the tensors from which it is made.
      inputs: the module -> the positional arguments with which `init` makes every parameter; shapes are enough.
      constants: the module -> the checkpoint's tensors that are not parameters.
      rename: a tensor's name in older checkpoints -> its name in `entries` and `constants`.
      weights_name: the name of the weights file that `save` writes, the one that the reference looks for.
    """

    name: str
    class_names: tuple[str, ...]
    from_config: Callable[[Mapping[str, Any]], nn.Module]
    to_config: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], Sequence[Entry]]
    inputs: Callable[[Any], tuple[Any, ...]]
    constants: Callable[[Any], Sequence[Constant]] = lambda module: ()
    rename: Callable[[str], str] = lambda name: name
    weights_name: str = "model.safetensors"


def read_config(
    config: Mapping[str, Any],
    *,
    required: Sequence[str] = (),
    optional: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    unused: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the fields of a reference's config on which a module depends; unknown fields are refused, not ignored.

    Lists are returned as tuples, so that modules are hashable. Fields that begin with an underscore are metadata and
    are left out.

    Args:
      config: the content of config.json.
      required: fields that the config must have.
      optional: {field: the reference's default}.
      only: {field: the only value that is implemented}, for fields that a config may have with that value alone.
      unused: fields that change no output, e.g. paths and training settings.

    Raises:
      ValueError: for missing fields, unknown fields and unimplemented values; the message lists all of them.

    >>> config = {"_class_name": "Net", "depth": 2, "widths": [8, 16], "act_fn": "silu"}
    >>> read_config(config, required=["depth", "widths"], optional={"bias": True}, only={"act_fn": "silu"})
    {'bias': True, 'depth': 2, 'widths': (8, 16)}
    """
    optional, only = dict(optional or {}), dict(only or {})
    given = {name: _as_tuples(value) for name, value in config.items() if not name.startswith("_")}
    known = {*required, *optional, *only, *unused}
    problems = [f"{name} is missing" for name in required if name not in given]
    problems += [f"{name} is unknown (it is {given[name]!r})" for name in given if name not in known]
    for name, value in only.items():
        if name in given and given[name] != _as_tuples(value):
            problems.append(f"{name} must be {value!r}, the only implemented value; got {given[name]!r}")
    if problems:
        raise ValueError("this config does not fit the family: " + "; ".join(problems))
    fields = {**{name: _as_tuples(value) for name, value in optional.items()}, **given}
    return {name: fields[name] for name in fields if name in optional or name in required}


# Fields that change neither the outputs of a trained network nor its parameters.
_FREE = frozenset({"dropout", "label_dropout", "zero_init_output", "remat", "attention_fn", "native_conv", "dtype",
                   "param_dtype", "parent", "name"})  # fmt: skip


def different_fields(module: nn.Module, other: nn.Module) -> list[str]:
    """Returns the differences, one phrase per field, that make two modules of one class different networks.

    >>> different_fields(nn.Dense(3), nn.Dense(3, param_dtype="bfloat16")), different_fields(nn.Dense(3), nn.Dense(4))
    ([], ['features is 3, not 4'])
    """
    one, another = _defining_fields(module), _defining_fields(other)
    return [f"{name} is {one.get(name)!r}, not {another.get(name)!r}" for name in one if one[name] != another[name]]


def _defining_fields(module: nn.Module) -> dict[str, Any]:
    """Returns the fields that define the network, in one canonical form where several forms are equivalent."""
    found = {f.name: _as_tuples(getattr(module, f.name)) for f in dataclasses.fields(module) if f.name not in _FREE}
    for name, value in found.items():
        if isinstance(value, tuple) and value and isinstance(value[0], bool) and all(v is value[0] for v in value):
            found[name] = value[0]  # (False, False) is the same as False
    if "num_heads" in found and "head_dim" in found:
        found["num_heads"] = None if found["head_dim"] is not None else found["num_heads"] or 1
    if "null_class" in found:  # the null class is one more row of the table
        null = found.pop("null_class")
        found["num_classes"] = found["num_classes"] and found["num_classes"] + null
    if "learned_variance" in found:  # a learned variance doubles the output channels
        learned, channels = found.pop("learned_variance"), found.get("out_channels") or found["in_channels"]
        found["out_channels"] = channels and channels * (1 + learned)
    return found


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
