"""A new run that starts from the parameters of another run, or from published weights: fine-tuning.

    python -m experiments.train --config=configs/mine.py --workdir=runs/tuned --init_from=runs/whole

Parameters are matched by path and shape. What is not found, such as a class table with another number of classes, keeps
its initialisation. The averaged parameters (EMA) start from the same values.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn import backbones
from diffusers_fn.pretrained.safetensors_file import open_safetensors
from experiments import processes, states
from experiments.config_files import expanded
from experiments.files import write_text
from experiments.tasks import make_task
from experiments.workdir import newest_step, read_config

__all__ = ["Taken", "check_new", "load_params", "load_run", "prepare", "take"]

_FILE = "init_from.json"


class Taken(NamedTuple):
    """Which parameters of a network were taken from another one.

    Attributes:
      params: of the network, with the values that were taken.
      paths: those taken, as "block_0/kernel".
      missing: paths that the source does not have, which keep their initialisation.
      other_shape: {path: (shape of the source, shape of the network)}, which keep their initialisation.
      left_over: paths of the source that the network does not have.
    """

    params: Any
    paths: list[str]
    missing: list[str]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left_over: list[str]


def check_new(workdir: Path, source: str) -> bool:
    """Returns whether the parameters of `source` are to be taken: not if the run in `workdir` has started from them.

    Raises:
      ValueError: if the run has started from anything else.
    """
    if not newest_step(workdir):
        return True
    try:
        begun = json.loads((workdir / _FILE).read_text()).get("source")
    except (OSError, ValueError, AttributeError):
        begun = None
    if begun != str(source):
        what = f"from {begun}" if begun else "without --init_from"
        raise ValueError(f"{workdir} holds a run that started {what}: give a new --workdir, or leave out --init_from")
    return False


def prepare(
    config: ConfigDict, workdir: Path, init: Callable[[jax.Array], Any], *, source: str, which: str = "ema"
) -> Callable[[Callable[[jax.Array], Any], jax.Array, Any], Any]:
    """Returns (init, key, extras) -> the state before the first step, as `states.new_state` of the config.

    The source is read at once, and nothing is written. The function returned prints what was taken, and records it in
    WORKDIR/init_from.json. It is not called if the run in the work directory resumes.

    Args:
      config: of the new run.
      workdir: of the new run.
      init: (key) -> params of the new run.
      source: see `load_params`.
      which: of the source's parameters, see `load_params`.

    Raises:
      ValueError: if nothing can be taken, or the work directory holds a run that started from anything else.
    """
    if not check_new(workdir, source):
        return functools.partial(states.new_state, config)
    params, name = load_params(source, which)
    take(jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0))), params)  # checks that there is anything

    def new_state(init: Callable[[jax.Array], Any], key: jax.Array, extras: Any) -> Any:
        taken = take(jax.jit(init)(key), params)
        print(_report(taken, name))
        record = {"source": str(source), "what": name, **taken._asdict()}
        del record["params"]
        if processes.is_main():
            write_text(workdir / _FILE, json.dumps(record, indent=2) + "\n")
        with jax.disable_jit():  # compiled, the parameters would be constants of the program
            return states.new_state(config, lambda key: taken.params, key, extras)

    return new_state


def load_params(source: str, which: str = "ema") -> tuple[Any, str]:
    """Returns (params, description) of a run or of published weights.

    Args:
      source: the work directory of a run; or a folder or file that `dfn.pretrained.load` reads; or a .safetensors file
        whose names are the paths of the parameters, such as "block_0/kernel" or "block_0.kernel".
      which: of a run's parameters: "ema", "raw", or "ema:STD".

    Raises:
      ValueError: if there are no parameters.
    """
    path = expanded(source)
    if (path / "checkpoints").is_dir():
        _, step, params = load_run(path, which)
        return params, f"{which} parameters of {path} at step {step}"
    if not path.exists():
        raise ValueError(f"--init_from: there is no {path}: give the folder of a run, or a folder or file of weights")
    if which != "ema":
        raise ValueError(f"--init_params={which} is for runs; {path} has one set of parameters")
    try:
        return dfn.pretrained.load(path)[1], f"weights of {path}"
    except (ValueError, OSError) as error:
        if path.suffix != ".safetensors":
            raise ValueError(f"--init_from={path}: {error}") from error
        return _by_names(path), f"weights of {path}"


def load_run(workdir: Path, which: str = "ema") -> tuple[ConfigDict, int, Any]:
    """Returns (config, step, params) of the newest checkpoint of a run.

    Args:
      workdir: of the run.
      which: "ema", "raw", or "ema:STD", see `states.choose_params`.

    Raises:
      ValueError: if there is no run, or it has no such parameters.
    """
    config = read_config(workdir)
    task = make_task(config, workdir)
    step, state = states.load_state(config, workdir, states.state_like(config, task.init, task.extras_like))
    return config, step, states.choose_params(config, workdir, state, which)


def take(params: Any, source: Any) -> Taken:
    """Returns the parameters with the values of `source` where path and shape agree.

    If one network is the other one within a wrapper, paths are compared without the wrapper's name. If one has its
    blocks in a scan and the other not, the source's are stacked or taken apart.

    Raises:
      ValueError: if nothing agrees.

    >>> taken = take({"a": jnp.zeros(2), "b": jnp.zeros(3)}, {"net": {"a": jnp.ones(2), "b": jnp.ones(4)}})
    >>> taken.paths, list(taken.other_shape), taken.params["a"].tolist()
    (['a'], ['b'], [1.0, 1.0])
    """
    ours = dict(traverse_util.flatten_dict(params, sep="/"))
    theirs = max(_renamed(ours, source), key=lambda names: _number_taken(ours, names))
    paths = [path for path in ours if path in theirs and jnp.shape(theirs[path]) == jnp.shape(ours[path])]
    if not paths:
        raise ValueError(
            f"--init_from: no parameter agrees in name and shape. The network has {_some(ours)}; the source "
            f"{_some(theirs)}"
        )
    values = ours | {path: jnp.asarray(theirs[path], ours[path].dtype) for path in paths}
    common = {path: (tuple(jnp.shape(theirs[path])), tuple(jnp.shape(ours[path]))) for path in ours if path in theirs}
    return Taken(
        traverse_util.unflatten_dict(values, sep="/"),
        paths,
        [path for path in ours if path not in theirs],
        {path: shapes for path, shapes in common.items() if shapes[0] != shapes[1]},
        [path for path in theirs if path not in ours],
    )


def _by_names(path: Path) -> dict[str, Any]:
    """The tree of a .safetensors file whose names are paths."""
    flat = {name.replace(".", "/"): stored.read() for name, stored in open_safetensors(path).items()}
    tree: dict[str, Any] = traverse_util.unflatten_dict(flat, sep="/")
    return tree


def _renamed(ours: Mapping[str, Any], source: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The source's arrays by name: as they are, or with its blocks as ours are, stacked for a scan or apart; each
    also within each wrapper of ours, and without each wrapper of its own."""
    layouts = [source]
    for names, change in ((_STACKED, backbones.stack_blocks), (_APART, backbones.unstack_blocks)):
        with contextlib.suppress(ValueError, IndexError, KeyError):  # blocks of different shapes
            layouts += [change(source)] if any(names.search(path) for path in ours) else []
    return [option for each in layouts for option in _wrapped(ours, traverse_util.flatten_dict(each, sep="/"))]


_STACKED = re.compile(r"(^|/)(in_|out_)?blocks/")
_APART = re.compile(r"(^|/)(block|in|out)_\d+/")


def _wrapped(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[dict[str, Any]]:
    options = [dict(theirs)]
    for top in dict.fromkeys(path.partition("/")[0] for path in ours):
        options.append({f"{top}/{path}": value for path, value in theirs.items()})
    for top in dict.fromkeys(path.partition("/")[0] for path in theirs):
        options.append({path.removeprefix(f"{top}/"): value for path, value in theirs.items()})
    return options


def _number_taken(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> int:
    return sum(path in theirs and jnp.shape(theirs[path]) == jnp.shape(ours[path]) for path in ours)


def _report(taken: Taken, name: str) -> str:
    flat = traverse_util.flatten_dict(taken.params, sep="/")
    count = sum(flat[path].size for path in taken.paths)
    lines = [f"started from the {name}: {len(taken.paths)} of {len(flat)} arrays taken, {count:,} numbers"]
    for path, (there, here) in taken.other_shape.items():
        lines.append(f"  not taken: {path}, which has shape {list(there)} there and {list(here)} here")
    lines += [f"  not taken: {path}, which is not there" for path in taken.missing]
    if taken.left_over:
        lines.append(f"  left over: {_some(taken.left_over)}")
    return "\n".join(lines)


def _some(paths: Any, limit: int = 8) -> str:
    paths = list(paths)
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")
