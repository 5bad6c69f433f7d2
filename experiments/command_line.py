"""The command line of the binaries: flags, --config and its fields, --help, and mistakes that end in one line."""

from __future__ import annotations

import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import default_config
from experiments import compilation, lost_processes, processes, workdir
from experiments.config_files import expand_paths, expanded, load_config, override
from experiments.fields import list_fields

__all__ = ["define_flags", "define_path", "run", "run_with_config", "run_without_config"]

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<name>[\w.]+)(=(?P<value>.*))?", re.DOTALL)
_HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull")
_INTERRUPTED = 130


def define_flags() -> None:
    """Defines --config, --workdir and --list_fields."""
    flags.DEFINE_string(
        "config",
        None,
        "File of the experiment, FILE.py or FILE.py:variant. Default: the config of the run in --workdir. "
        "--config.SECTION.FIELD=VALUE changes a field; --list_fields lists all fields.",
    )
    define_path("workdir", None, "Folder of the run, for checkpoints, metrics and pictures.")
    flags.DEFINE_bool("list_fields", False, "Print all fields with value, type and meaning, and end.")
    for name in ("config", "list_fields"):  # --help lists them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def define_path(name: str, default: str | None, help: str) -> None:
    """Defines a flag whose value is a Path, with ~ expanded, or None."""
    flags.DEFINE(_PathParser(), name, default, help)
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(main: Callable[[ConfigDict, Path], Any]) -> None:
    """Runs main(config, workdir) from the command line; a user's mistake ends in one line, without a traceback.

    The config is that of --config, or else of the run in --workdir, with the fields of --config.SECTION.FIELD=VALUE.
    """

    def with_config() -> None:
        given = flags.FLAGS
        if given.list_fields:
            config = _config(given.config, given.workdir) if given.config or given.workdir else default_config()
            _override(config, overrides)
            print(list_fields(config))
            return
        config = _config(given.config, given.workdir)
        _override(config, overrides)
        if given.workdir is None:
            raise ValueError("--workdir is missing: the folder of the run, such as --workdir=runs/digits")
        main(config, given.workdir)

    overrides: list[_Override] = []
    _run(with_config, overrides, several=True)


def run_with_config(main: Callable[[ConfigDict], Any], default: Path) -> None:
    """Runs main(config) of a binary whose config is not that of a run: --config, or the file `default`."""

    def with_config() -> None:
        config = load_config(flags.FLAGS.config or str(default), of_run=False)
        for name, text in overrides:
            override(config, name, text)
        main(config)

    overrides: list[_Override] = []
    _run(with_config, overrides)


def run_without_config(main: Callable[[], Any]) -> None:
    """Runs main() of a binary that takes no config, with its flags parsed; mistakes end as in `run`."""
    _run(main, None)


class _Override(NamedTuple):
    """A field of the config on the command line: its name, such as "training.num_steps", and the text of its value."""

    name: str
    text: str


class _PathParser(flags.ArgumentParser[Path]):
    """Reads a path."""

    def parse(self, argument: str | Path) -> Path:
        if not str(argument):
            raise ValueError("a path is needed")
        return expanded(argument)

    def flag_type(self) -> str:
        return "path"


def _run(main: Callable[[], Any], overrides: list[_Override] | None, *, several: bool = False) -> None:
    """Parses the command line, with the fields of the config into `overrides`, and runs main().

    Args:
      main: of the binary.
      overrides: for the fields; None if the binary takes no config.
      several: whether it can be one of several processes.
    """
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["debug"])
    compilation.define_flags()
    if several:
        processes.define_flags()
    if any(argument in _HELP for argument in sys.argv[1:]):
        print(_help())
        raise SystemExit(0)
    try:
        _parse(sys.argv, overrides)
    except (flags.Error, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    given = flags.FLAGS
    try:
        if several:
            processes.initialize(processes.launch_of_flags())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    _configure_logging()
    compilation.use_cache(given.compilation_cache)
    with lost_processes.ending_together():
        _explained(main, given.debug)


def _explained(main: Callable[[], Any], debug: bool) -> None:
    """Runs main(); a user's mistake ends in one line."""
    try:
        main()
    except (ValueError, OSError, FloatingPointError, jax.errors.JaxRuntimeError) as error:
        if debug or (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)):
            raise
        raise SystemExit(f"error: {_message(error)}\n(--debug shows where)") from None
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None


def _configure_logging() -> None:
    """Warnings are one line each; those of orbax are left out, whose errors `Checkpoints` raises."""
    if not any(argument.startswith(("--verbosity", "-v", "--v=")) for argument in sys.argv):
        absl_logging.set_verbosity(absl_logging.WARNING)  # the default, INFO, breaks the progress bar
    absl_logging.get_absl_logger().addFilter(_is_not_of_orbax)
    logging.basicConfig(format="%(levelname)s: %(message)s")


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _message(error: Exception) -> str:
    if isinstance(error, jax.errors.JaxRuntimeError):
        return f"out of memory: lower the batch size ({str(error).splitlines()[0]:.200})"
    return str(error)


def _parse(argv: Sequence[str], overrides: list[_Override] | None) -> None:
    """Parses the flags; fields of the config go into `overrides`."""
    rest = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    if overrides is not None:
        rest, found = _split(rest)
        overrides += found
    given = flags.FLAGS(rest)
    if len(given) > 1:
        raise ValueError(f"unexpected argument {given[1]!r}: options are written --name=value")
    for name in ("config", "workdir"):
        if name in flags.FLAGS and flags.FLAGS[name].present > 1:
            raise ValueError(f"--{name} was given {flags.FLAGS[name].present} times: give it once")


def _split(argv: Sequence[str]) -> tuple[list[str], list[_Override]]:
    """Separates the fields of the config, --config.a.b=value, --config.a.b value or --noconfig.a.b, from the rest."""
    rest, overrides, waiting = [], [], list(argv)
    while waiting:
        argument = waiting.pop(0)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        text = match["value"]
        if match["no"]:
            text = "False"
        elif text is None:  # a flag by itself is true
            is_value = bool(waiting) and re.match(r"[^-]|-[\d.]", waiting[0])
            text = waiting.pop(0) if is_value else "True"
        overrides.append(_Override(match["name"], text))
    return rest, overrides


def _config(file: str | None, folder: Path | None) -> ConfigDict:
    """The config of --config, or else of the run in --workdir."""
    if file is not None:
        return load_config(file)
    if folder is None:
        raise ValueError(
            "give --config=FILE.py, the experiment, and --workdir=FOLDER; or --workdir alone, of a run that has begun"
        )
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} holds no run: train first, with --config=FILE.py and this --workdir")
    return workdir.read_config(folder)


def _override(config: ConfigDict, overrides: Sequence[_Override]) -> None:
    for name, text in overrides:
        override(config, name, text)
    expand_paths(config)


def _help() -> str:
    """The text of --help: what the binary does, and its own flags."""
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    for flag in sorted(own, key=lambda flag: (flag.name not in ("config", "workdir"), flag.name)):
        default = "" if flag.default in (None, False, []) else f" (default: {flag.default_as_str})"
        text = f"  --{flag.name}: {flag.help}{default}"
        lines += textwrap.wrap(text, 118, subsequent_indent=" " * 6)
    if "list_fields" in flags.FLAGS:
        lines += ["", "--list_fields prints every field of the config; with --config=FILE, its values in that file."]
    return "\n".join(lines)
