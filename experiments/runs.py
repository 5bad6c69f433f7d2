"""Shared by the binaries: command line, work directory of a run, its training state and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from diffusers_fn.from_config import derived
from diffusers_fn.from_config.defaults import default_config
from experiments import compilation, data
from experiments.files import write_text
from experiments.own import import_name as import_name

# Fields that may change between two commands on one work directory: they do not affect the trained parameters.
_FREE = ("sampler", "evaluation", "latent.autoencoder_workdir", "latent.cache", "latent.decode_batch_size",
          "training.log_every", "training.sample_every", "training.checkpoint_every",
         "training.keep_checkpoints")  # fmt: skip

PRNG_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def define_flags() -> None:
    """Defines --config and --workdir."""
    config_flags.DEFINE_config_file(
        "config", None, "File of the experiment, FILE.py or FILE.py:variant.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and pictures.")
    flags.mark_flags_as_required(["config", "workdir"])
    for name in ("config", "workdir"):  # --help lists them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(main: Callable[[ConfigDict, Path], Any]) -> None:
    """Runs main(config, workdir) from the command line; a user's mistake ends in one line, without a traceback."""

    def with_flags(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        if not any(arg.startswith(("--verbosity", "-v", "--v=")) for arg in sys.argv):
            logging.set_verbosity(logging.WARNING)  # the default, INFO, breaks the progress bar
        compilation.use_cache(flags.FLAGS.compilation_cache)
        try:
            main(flags.FLAGS.config, Path(flags.FLAGS.workdir))
        except (ValueError, OSError, FloatingPointError) as error:
            if flags.FLAGS.debug:
                raise
            raise SystemExit(f"error: {error}\n(--debug shows where)") from None

    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["debug"])
    compilation.define_flags()
    app.run(with_flags, flags_parser=parse_flags)


def open_workdir(workdir: Path, config: ConfigDict, *, create: bool) -> None:
    """Checks that a work directory belongs to a config; writes `config.json` into a new one.

    Raises:
      ValueError: if the directory holds a run of another config (the message lists the fields that differ), or other
        files, or, with create False, no run.
    """
    path = workdir / "config.json"
    wanted = _flat(config.to_dict())
    if not path.exists():
        if not create:
            raise ValueError(f"{workdir} holds no run: train first, with the same --config and --workdir")
        strangers = sorted(path.name for path in workdir.iterdir()) if workdir.exists() else []
        if strangers:
            raise ValueError(
                f"{workdir} is not the folder of a run, it holds {', '.join(strangers[:5])}: give another --workdir"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(config.to_dict(), indent=2, default=list) + "\n")
        return
    # A run of an earlier version lacks fields that were added later: it ran with their defaults.
    missed = {name: value for name, value in _flat(default_config().to_dict()).items() if name in wanted}
    held = {**missed, **_flat(json.loads(path.read_text()))}
    differing = [
        f"{name}: {held.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(set(held) | set(wanted))
        if held.get(name) != wanted.get(name) and not name.startswith(_FREE)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run of another config ({'; '.join(differing)}): "
            "give another --workdir or the same config"
        )


def check_data_fits(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError unless the data set has the shape and the labels that the model is built for."""
    if tuple(config.data.shape) != tuple(dataset.shape):
        raise ValueError(f"config.data.shape is {tuple(config.data.shape)}, but the data have shape {dataset.shape}")
    num_classes = derived.num_classes(config)
    if num_classes and dataset.labels is None:
        raise ValueError(
            "the model is class-conditional, but the data have no labels: set config.backbone.num_classes=0"
        )
    if num_classes and dataset.num_classes > num_classes:
        raise ValueError(
            f"the data have {dataset.num_classes} classes, the model {num_classes}: set config.backbone.num_classes"
        )


def data_seed(config: ConfigDict) -> ConfigDict:
    """Returns config.data with the run's seed, which also selects the held-out examples."""
    return ConfigDict({**config.data.to_dict(), "seed": config.seed})


def random_key(config: ConfigDict, seed: int) -> jax.Array:
    """Returns the key of a seed, for the generator config.prng_impl.

    Raises:
      ValueError: if there is no such generator, or the seed is not an integer of 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed must lie in 0 ... {2**32 - 1}; got {seed}")
    if config.prng_impl not in PRNG_IMPLS:
        raise ValueError(f"config.prng_impl must be one of {', '.join(PRNG_IMPLS)}; got {config.prng_impl!r}")
    return jax.random.key(seed, impl=config.prng_impl)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a wrong --config field, value or variant ends in one line that names the valid ones."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        message = _unknown_field(argv) or (error.args[0] if isinstance(error, KeyError) else str(error))
        if "Traceback" in message:  # raised inside the config file: the last line is the message
            message = message.strip().splitlines()[-1].removeprefix("ValueError: ")
        raise SystemExit(f"error: {message}") from None


def _unknown_field(argv: list[str]) -> str | None:
    """Returns the message for a --config.a.b=... that names no field, with the valid names; None for other mistakes."""
    names = [arg.lstrip("-").split("=")[0].split(".")[1:] for arg in argv if arg.startswith(("--config.", "-config."))]
    files = [arg.split("=", 1)[1] for arg in argv if arg.startswith(("--config=", "-config="))]
    try:
        config = flags.FLAGS["config"].parser.parse(files[-1])
    except Exception:  # the file itself is wrong
        return None
    for name in names:
        at = config
        for depth, part in enumerate(name):
            if not isinstance(at, ConfigDict) or part not in at:
                there = ".".join(["config", *name[:depth]])
                valid = f"it has {', '.join(sorted(at))}" if isinstance(at, ConfigDict) else "it has no fields"
                return f"{there} has no field {part!r}; {valid}"
            at = at[part]
    return None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    return [_listed(entry) for entry in value] if isinstance(value, (list, tuple)) else value
