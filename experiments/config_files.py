"""Configs from files: `FILE.py`, `FILE.py:variant`, and values for single fields from the command line."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import check_complete, default_config
from experiments import own

__all__ = ["PATHS", "expand_paths", "expanded", "load_config", "override"]

# Fields that hold paths: ~ is expanded in them.
PATHS = ("data.path", "data.pairs", "latent.autoencoder_workdir", "latent.cache", "sampler.classifier_workdir")

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load_config(text: str, *, of_run: bool = True) -> ConfigDict:
    """Returns the config of `FILE.py` or `FILE.py:variant`: the value of the file's get_config(variant), locked.

    With `of_run` it must have all sections of `default_config`. What lies beside the file can be imported from then on,
    see `own.add_folder`.

    Raises:
      ValueError: if there is no such file, it fails (the message names file and line), or its config lacks sections.
    """
    name, _, variant = text.partition(":")
    path = expanded(name)
    if not path.is_file():
        raise ValueError(f"--config: there is no file {name}{_similar_files(path)}")
    own.add_folder(path)
    config = _run(path, variant)
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"{path}: get_config must return a ConfigDict, such as dfn.default_config(); got {config!r:.80}"
        )
    if not of_run:
        return config.lock()
    try:
        check_complete(config)
        lacking = [section for section in default_config() if section not in config]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}: start from dfn.default_config(), which has every field")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return own.complete(config).lock()


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets a field, such as "training.num_steps", to a value as typed on the command line.

    Raises:
      ValueError: if there is no such field, or the value is not of its type.

    >>> config = default_config()
    >>> override(config, "sampler.cfg_interval", "(0, inf)")
    >>> override(config, "noise_schedule.sigma_min", "None")
    >>> config.sampler.cfg_interval, config.noise_schedule.sigma_min
    ((0, inf), None)
    """
    section: Any = config
    *sections, field = name.split(".")
    for depth, part in enumerate([*sections, field]):
        if not isinstance(section, ConfigDict) or part not in section:
            raise ValueError(_no_field(config, section, ".".join(["config", *sections[:depth]]), part))
        if depth < len(sections):
            section = section[part]
    if isinstance(section[field], ConfigDict):
        raise ValueError(f"config.{name} is a section, with the fields {', '.join(section[field])}: set one of them")
    kind, optional = section.get_type(field), _may_be_none(config, name)
    try:
        section[field] = None if text == "None" and optional else _value(kind, text, section[field])
    except (ValueError, TypeError):
        wanted = f"{getattr(kind, '__name__', kind)}{' or None' if optional else ''}"
        raise ValueError(f"config.{name} must be of type {wanted}; got {text!r}") from None


def expand_paths(config: ConfigDict) -> ConfigDict:
    """Returns the config, changed in place: ~ is expanded in the fields that hold paths.

    >>> config = default_config()
    >>> config.data.path = "~/pictures"
    >>> expand_paths(config).data.path == str(Path.home() / "pictures")
    True
    """
    for name in PATHS:
        section, field = name.split(".")
        value = config.get(section, {}).get(field)
        if isinstance(value, str) and value.startswith("~"):
            config[section][field] = str(expanded(value))
    return config


def expanded(text: str | Path) -> Path:
    """Returns a path as given, with the home folder in place of a leading ~.

    Raises:
      ValueError: if there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(text)!r}: {error}") from error


def _run(path: Path, variant: str) -> Any:
    """Runs a config file and returns the value of its get_config."""
    module_name = f"_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config: {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ValueError(f"{path} has no function get_config: it returns the config")
        if not variant:
            return get_config()
        if not inspect.signature(get_config).parameters:
            raise ValueError(f"{path} has no variants: give --config={path} without {':' + variant!r}")
        return get_config(variant)
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise  # from this function
        raise ValueError(_where(error, path)) from error


def _where(error: BaseException, path: Path) -> str:
    """A message with the line of the config file at which an error was raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return f"{path}{f', line {lines[-1]}' if lines else ''}: {what}"


def _similar_files(path: Path) -> str:
    folders = [folder for folder in dict.fromkeys((path.parent, Path("configs"))) if folder.is_dir()]
    files = {file.name: str(file) for folder in reversed(folders) for file in sorted(folder.glob("*.py"))}
    close = difflib.get_close_matches(path.name, files, n=1, cutoff=0.75)
    close = close or difflib.get_close_matches(f"{path.name}.py", files, n=1, cutoff=0.75)
    return f"; did you mean {files[close[0]]}?" if close else f" (the current folder is {Path.cwd()})"


def _no_field(config: ConfigDict, section: Any, where: str, part: str) -> str:
    if not isinstance(section, ConfigDict):
        return f"{where} has no field {part!r}; it has no fields"
    names = [where + "." + close for close in difflib.get_close_matches(part, section, n=2)]
    if not names:  # a field of another section
        names = [f"config.{at}.{part}" for at, each in config.items() if isinstance(each, ConfigDict) and part in each]
    hint = f"; did you mean {' or '.join(names)}?" if names else ""
    return f"{where} has no field {part!r}; it has {', '.join(sorted(section))}{hint}"


def _may_be_none(config: ConfigDict, name: str) -> bool:
    """Whether a field is a placeholder, which None leaves to its default."""
    at: Any = config
    default: Any = default_config()
    for part in name.split("."):
        at = at[part]
        default = default.get(part, 0) if isinstance(default, ConfigDict) else 0
    return at is None or default is None


def _value(kind: type, text: str, present: Any) -> Any:
    """The value of a type that a text stands for; raises ValueError if it stands for none."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError
        return _BOOLEANS[text.lower()]
    if kind in (int, float):
        return kind(text)
    if kind is tuple:
        return _sequence(text, present)
    return _literal({"true": "True", "false": "False"}.get(text, text))


def _sequence(text: str, present: Any) -> tuple[Any, ...]:
    """A tuple from "(1, 2)", "[1, 2]" or "1,2"; of numbers if the present value is one of numbers."""
    value = _literal(text)
    if isinstance(value, str):
        value = [_literal(part.strip()) for part in text.strip().strip("()[]").split(",") if part.strip()]
    value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    numbers = present and all(isinstance(each, (int, float)) for each in present)
    if numbers and not all(isinstance(each, (int, float)) for each in value):
        raise ValueError
    return value


def _literal(text: str) -> Any:
    if text.lower().lstrip("+-") in ("inf", "nan"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
