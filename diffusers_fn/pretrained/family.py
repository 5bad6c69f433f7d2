"""What the loader must know of a family of published networks: its config, its names, its layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from diffusers_fn.pretrained.entries import Entry


class Constant(NamedTuple):
    """A tensor that checkpoints hold and the module computes by itself: position ids, a fixed table, a filter.

    Attributes:
      name: of the tensor.
      value: what it must be, to 1e-5 of its largest number, because tables are computed in several precisions.
        None accepts anything, for tensors that no output depends on.
      saved: whether the reference writes it, so that `save` writes it too and `load` misses it where it is not there.
    """

    name: str
    value: np.ndarray | None
    saved: bool = True


class Family(NamedTuple):
    """A family of published networks, as pure functions. See the package's docstring for an example.

    Attributes:
      name: how people speak of it, "dit".
      class_names: what the config.json of the reference calls it, in `_class_name`, `architectures` or `model_type`.
      from_config: the reference's config, a dict -> the linen module. ValueError for what the module cannot be.
      to_config: the module -> the reference's config. `save` refuses a module that from_config(to_config(module)) is
        not, in `different_fields`.
      entries: the module -> all its parameters, each with the tensors that it is made of.
      inputs: the module -> the positional arguments of an `init` that makes every parameter; shapes are enough.
      constants: the module -> tensors of the checkpoint that are no parameters.
      rename: a name as some older checkpoint has it -> the name in `entries` and `constants`.
      weights_name: of the file that `save` writes, where the reference looks for it.
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
    """Returns the fields of a reference's config that a module depends on, strictly: nothing is silently ignored.

    Lists come back as tuples, so that modules are hashable. Names that begin with an underscore are the reference's
    own and are left out.

    Args:
      config: the content of config.json.
      required: fields that must be there.
      optional: {field: what the reference takes where it is not there}.
      only: {field: the one value that is implemented}, which the field must have where it is there.
      unused: fields that change no output: where a file lies, how it was trained.

    Raises:
      ValueError: for missing and unknown fields and unimplemented values; the message lists them all.

    >>> config = {"_class_name": "Net", "depth": 2, "widths": [8, 16], "act_fn": "silu"}
    >>> read_config(config, required=["depth", "widths"], optional={"bias": True}, only={"act_fn": "silu"})
    {'bias': True, 'depth': 2, 'widths': (8, 16)}
    """
    optional, only = dict(optional or {}), dict(only or {})
    given = {name: _frozen(value) for name, value in config.items() if not name.startswith("_")}
    known = {*required, *optional, *only, *unused}
    problems = [f"{name} is missing" for name in required if name not in given]
    problems += [f"{name} is unknown (it is {given[name]!r})" for name in given if name not in known]
    for name, value in only.items():
        if name in given and given[name] != _frozen(value):
            problems.append(f"{name} must be {value!r}, the one implemented; it is {given[name]!r}")
    if problems:
        raise ValueError("this config does not fit the family: " + "; ".join(problems))
    fields = {**{name: _frozen(value) for name, value in optional.items()}, **given}
    return {name: fields[name] for name in fields if name in optional or name in required}


# Fields that change neither what a trained network computes nor what its parameters are.
_FREE = frozenset({"dropout", "label_dropout", "zero_init_output", "remat", "attention_fn", "native_conv", "dtype",
                   "param_dtype", "parent", "name"})  # fmt: skip


def different_fields(module: nn.Module, other: nn.Module) -> list[str]:
    """Returns in words how two modules of a class differ, in fields that make them different networks.

    >>> different_fields(nn.Dense(3), nn.Dense(3, param_dtype="bfloat16")), different_fields(nn.Dense(3), nn.Dense(4))
    ([], ['features is 3, not 4'])
    """
    one, another = _meaning(module), _meaning(other)
    return [f"{name} is {one.get(name)!r}, not {another.get(name)!r}" for name in one if one[name] != another[name]]


def _meaning(module: nn.Module) -> dict[str, Any]:
    """Returns the fields of a module that matter; what may be said in two ways is said in one."""
    found = {f.name: _frozen(getattr(module, f.name)) for f in dataclasses.fields(module) if f.name not in _FREE}
    for name, value in found.items():
        if isinstance(value, tuple) and value and isinstance(value[0], bool) and all(v is value[0] for v in value):
            found[name] = value[0]  # (False, False) is False
    if "num_heads" in found and "head_dim" in found:
        found["num_heads"] = None if found["head_dim"] is not None else found["num_heads"] or 1
    if "null_class" in found:  # the null class is one more label
        null = found.pop("null_class")
        found["num_classes"] = found["num_classes"] and found["num_classes"] + null
    if "learned_variance" in found:  # a learned variance is as many channels again
        learned, channels = found.pop("learned_variance"), found.get("out_channels") or found["in_channels"]
        found["out_channels"] = channels and channels * (1 + learned)
    return found


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
