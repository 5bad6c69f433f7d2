"""What the binaries share: the work directory of a run, its trained model, drawing many samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import diffusers_fn as dfn
from configs.default import default_config
from experiments import compilation, data
from experiments.checkpoints import Checkpoints
from experiments.files import write_text
from experiments.pictures import save_grid, save_points, save_sequences

# May change between two commands on one work directory: they do not touch what was learned.
_FREE = ("sampler", "evaluation", "latent.autoencoder_workdir", "latent.cache",
          "training.log_every", "training.sample_every", "training.checkpoint_every",
         "training.keep_checkpoints")  # fmt: skip


def define_flags() -> None:
    """Defines --config and --workdir."""
    config_flags.DEFINE_config_file(
        "config", None, "File of the experiment, FILE.py or FILE.py:variant.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and pictures.")
    flags.mark_flags_as_required(["config", "workdir"])


def run(main: Callable[[ConfigDict, Path], Any]) -> None:
    """Runs main(config, workdir) from the command line; a mistake of the user's ends in one line, not a traceback."""

    def with_flags(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        if not any(arg.startswith(("--verbosity", "-v", "--v=")) for arg in sys.argv):
            logging.set_verbosity(logging.WARNING)  # app.run's own default is INFO, which floods the progress bar
        compilation.use_cache(flags.FLAGS.compilation_cache)
        try:
            main(flags.FLAGS.config, Path(flags.FLAGS.workdir))
        except (ValueError, OSError, FloatingPointError) as error:
            if flags.FLAGS.debug:
                raise
            raise SystemExit(f"error: {error}\n(--debug shows where)") from None

    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    compilation.define_flags()
    app.run(with_flags, flags_parser=_parse_flags)


def open_workdir(workdir: Path, config: ConfigDict, *, create: bool) -> None:
    """Makes sure that a work directory belongs to a config, and records it in `config.json` when it is new.

    Raises:
      ValueError: if the directory holds a run of another config (the message lists what differs), holds other
        files, or, with create False, no run at all.
    """
    path = workdir / "config.json"
    wanted = _flat(config.to_dict())
    if not path.exists():
        if not create:
            raise ValueError(f"{workdir} holds no run: train first, with the same --config and --workdir")
        strangers = sorted(path.name for path in workdir.iterdir()) if workdir.exists() else []
        if strangers:
            raise ValueError(
                f"{workdir} is no run's folder, it holds {', '.join(strangers[:5])}: give another --workdir"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(config.to_dict(), indent=2, default=list) + "\n")
        return
    # A run of an earlier version lacks fields that came later: it ran with what is now their default.
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
    num_classes = config.backbone.get("num_classes", 0)
    if num_classes and dataset.labels is None:
        raise ValueError(
            "the model is class-conditional, but the data have no labels: set config.backbone.num_classes=0"
        )
    if num_classes and dataset.num_classes > num_classes:
        raise ValueError(
            f"the data have {dataset.num_classes} classes, the model {num_classes}: set config.backbone.num_classes"
        )


def data_seed(config: ConfigDict) -> ConfigDict:
    """Returns config.data with the run's seed, which also decides what is held out."""
    return ConfigDict({**config.data.to_dict(), "seed": config.seed})


def make_optimizer(config: ConfigDict) -> Any:
    """Returns the optimizer that config.training describes."""
    training = config.training
    return dfn.training.make_optimizer(
        training.optimizer,
        learning_rate=training.learning_rate,
        lr_schedule=training.lr_schedule,
        warmup_steps=training.warmup_steps,
        num_steps=training.num_steps,
        weight_decay=training.weight_decay,
        grad_clip=training.grad_clip,
        accumulation=training.accumulation,
    )


def state_like(config: ConfigDict, init: Callable[[jax.Array], Any], extras_like: Any = None) -> Any:
    """Returns the shapes of a run's training state, for restoring it.

    Args:
      config: of the run.
      init: (key) -> params.
      extras_like: shapes of the state's extras.
    """
    optimizer = make_optimizer(config)
    return jax.eval_shape(
        lambda key, extras: dfn.training.make_train_state(init(key), optimizer, extras), jax.random.key(0), extras_like
    )


def load_state(config: ConfigDict, workdir: Path, like: Any) -> tuple[int, Any]:
    """Returns (step, state) of the newest sound checkpoint of a work directory.

    Args:
      config: as trained, but for fields that do not touch what was learned.
      workdir: of the run.
      like: the state's shapes, of `state_like`.

    Raises:
      ValueError: if the directory holds no run, or one of another config, or no checkpoint.
    """
    open_workdir(workdir, config, create=False)
    checkpoints = Checkpoints(workdir, read_only=True)
    restored = checkpoints.restore(like)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{workdir} holds no checkpoint yet: train on")
    return restored


def draw_samples(
    diffusion: dfn.Diffusion, params: Any, seed: int, labels: np.ndarray | None, num_samples: int, batch_size: int
) -> np.ndarray:
    """Returns samples [num_samples, *shape], drawn in batches under one compiled program with a progress bar.

    Each sample has a key of its own: the same seed gives the same samples for every batch size.

    Args:
      diffusion: the model.
      params: its parameters.
      seed: of the samples.
      labels: [num_samples], or None for unconditional samples.
      num_samples: how many.
      batch_size: how many at once.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)  # 0 is for training, 2 for pairs

    def draw(params: Any, keys: jax.Array, cond: Any) -> jax.Array:
        return diffusion.sample(params, keys, keys.shape[0], cond=cond).x0

    return draw_in_batches(draw, params, key, labels, num_samples, batch_size, "sampling")


def draw_in_batches(
    draw: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    key: jax.Array,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    what: str,
) -> Any:
    """Returns what `draw` makes of a key a sample, in batches under one compiled program with a progress bar.

    Args:
      draw: (params, keys [b], labels [b] or None) -> a tree of arrays [b, ...].
      params: its parameters.
      key: that the samples' own come from.
      labels: [num_samples], or None.
      num_samples: how many.
      batch_size: how many at once; it does not change them.
      what: the progress bar's word.
    """
    batch_size = min(batch_size, num_samples)
    padded = -(-num_samples // batch_size) * batch_size
    keys = jax.random.split(key, padded)
    conds = None if labels is None else np.resize(labels, padded)
    batches = [
        (keys[start : start + batch_size], None if conds is None else conds[start : start + batch_size])
        for start in range(0, padded, batch_size)
    ]
    run, parts = compilation.compile_now("the sampler", jax.jit(draw), params, *batches[0]), []
    for batch in tqdm(batches, desc=what, unit="batch", disable=len(batches) == 1):
        parts.append(jax.tree.map(np.asarray, run(params, *batch)))
    return jax.tree.map(lambda *each: np.concatenate(each)[:num_samples], *parts)


def network_evaluations(config: ConfigDict, diffusion: dfn.Diffusion) -> int:
    """Returns how often the network is evaluated for one sample; guidance of classes evaluates it twice a time.

    Nothing is computed: the rows of the sampler are counted. The gradients of a classifier are not.
    """
    num_classes = config.backbone.num_classes
    cond = np.zeros(1, np.int32) if sampled_classes(config) else None
    key = jax.random.key(0)
    trace = jax.eval_shape(
        lambda key: diffusion.sample(diffusion.init(key), key, 1, cond=cond, emit=lambda step: step.x).trace, key
    )
    rows = jax.tree.leaves(trace)[0].shape[0]
    a_row = 1 + config.sampler.num_corrector_steps if config.sampler.name == "predictor_corrector" else 1
    guided = num_classes and config.sampler.cfg_scale != 1
    return rows * a_row * (2 if guided else 1)


def sampled_classes(config: ConfigDict) -> int:
    """Returns of how many classes samples can be asked for: the network's, or those of a classifier that guides it."""
    own = config.backbone.num_classes
    return own or (config.data.num_classes if config.sampler.classifier_workdir else 0)


def grid_labels(config: ConfigDict) -> np.ndarray | None:
    """Returns the labels of a sample grid: ten of each of the first ten classes, a row each; None without classes."""
    num_classes = config.backbone.num_classes
    return np.repeat(np.arange(min(num_classes, 10)), 10) if num_classes else None


def save_picture(path: Path, samples: np.ndarray, columns: int | None = None, reference: Any = None) -> None:
    """Writes a PNG file: images as a grid, points of the plane as a scatter plot, sequences as lines.

    Of images with other than one or three channels, such as latents, each channel is a grey image of its own, side by
    side. Vectors of other lengths have no picture.
    """
    if samples.ndim == 4:
        if samples.shape[-1] not in (1, 3):
            samples = np.concatenate(np.split(samples, samples.shape[-1], axis=-1), axis=2)
        save_grid(path, samples, columns=columns)
    elif samples.ndim == 3:
        save_sequences(path, samples, columns)
    elif samples.shape[1:] == (2,):
        save_points(path, samples, reference)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a wrong --config field, value or variant ends in one line that names the valid ones."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        message = _unknown_field(argv) or (error.args[0] if isinstance(error, KeyError) else str(error))
        if "Traceback" in message:  # from inside the config file: its last line says what is wrong
            message = message.strip().splitlines()[-1].removeprefix("ValueError: ")
        raise SystemExit(f"error: {message}") from None


def _unknown_field(argv: list[str]) -> str | None:
    """Says which --config.a.b=... names no field, and which there are; None if that is not what is wrong."""
    names = [arg.lstrip("-").split("=")[0].split(".")[1:] for arg in argv if arg.startswith(("--config.", "-config."))]
    files = [arg.split("=", 1)[1] for arg in argv if arg.startswith(("--config=", "-config="))]
    try:
        config = flags.FLAGS["config"].parser.parse(files[-1])
    except Exception:  # then the file itself is what is wrong
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
