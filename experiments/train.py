"""Trains a model.

    python -m experiments.train --config=configs/ddpm_digits.py --workdir=runs/digits

The same command again resumes from the last checkpoint. The work directory gets config.json, checkpoints/,
metrics.jsonl, tensorboard/, samples/ (a picture every training.sample_every steps) and, at the end, samples.png and
curve.png.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from experiments import data, runs
from experiments.checkpoints import Checkpoints
from experiments.compilation import compile_now
from experiments.curves import save_curves
from experiments.metric_log import MetricLog
from experiments.tasks import Task, make_task

__all__ = [
    "StopSignal",
    "check_intervals",
    "closed_on_error",
    "device_batches",
    "make_train_steps",
    "mean_metrics",
    "start_or_resume",
    "train",
]


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until config.training.num_steps, starting from the last checkpoint if there is one.

    SIGTERM and Ctrl-C save a checkpoint and return. A killed run loses the steps after its last checkpoint; when it is
    resumed, it repeats them bit for bit.

    Raises:
      ValueError: if config, data and work directory do not fit together.
      FloatingPointError: if the loss is not finite; that state is not saved.
    """
    task = make_task(config, workdir)
    settings = config.training
    check_intervals(config, jax.device_count())
    key = runs.random_key(config, config.seed)
    init_key, run_key, grid_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    train_steps = make_train_steps(config, task, mesh)
    dataset = data.load(runs.data_seed(config), "train")
    runs.check_data_fits(config, dataset)
    data.batches(dataset, settings.batch_size, config.seed, flip=config.data.flip)  # checks its arguments
    examples = data.paired(config.data.pairs, dataset) if config.data.pairs else dataset
    runs.open_workdir(workdir, config, create=True)  # the last check; records the config in a new folder

    checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
    start, state = start_or_resume(config, task, checkpoints, init_key, dataset)
    state, run_key = dfn.training.replicate((state, run_key), mesh)
    (workdir / "samples").mkdir(exist_ok=True)
    draw = task.make_pictures(dataset, grid_key)
    log = MetricLog(workdir, start)
    batches = device_batches(config, task.examples(examples, state.extras), start, mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{len(dataset)} examples, {num_params:,} parameters, {jax.device_count()} {jax.default_backend()} device(s)")

    if start < settings.num_steps:
        first = next(batches)
        train_steps = compile_now("the training step", train_steps, state, run_key, first)
        batches = itertools.chain([first], batches)

    stop = StopSignal()
    step = saved = start
    window: list[dict[str, jax.Array]] = []  # metrics since the last log entry; their means are logged next
    since, when = start, time.monotonic()
    bar = tqdm(total=settings.num_steps, initial=start, unit="step", desc="training", mininterval=0.5)
    with closed_on_error(checkpoints), bar:
        while step < settings.num_steps and not stop.requested:
            state, metrics = train_steps(state, run_key, next(batches))
            window.append(metrics)
            step += settings.steps_per_call
            bar.update(settings.steps_per_call)
            saving = step % settings.checkpoint_every == 0 or step == settings.num_steps
            if step % settings.log_every == 0 or saving:
                values = mean_metrics(window, step)
                elapsed = time.monotonic() - when
                values["steps_per_second"] = (step - since) / elapsed if step > since else 0.0
                window, since, when = [], step, time.monotonic()
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                log.write(step, values)
            if saving:
                checkpoints.save(step, state)
                saved = step
            if settings.sample_every and step % settings.sample_every == 0 and step < settings.num_steps:
                bar.set_description("sampling")
                draw(state.ema, state.extras, workdir / "samples" / f"{step:08d}.png")
                bar.set_description("training")
                since, when = step, time.monotonic()
    if step > saved:  # stopped between two checkpoints
        if window:
            log.write(step, mean_metrics(window, step))
        checkpoints.save(step, state)
    checkpoints.close()
    log.close()
    if step < settings.num_steps:
        print(f"stopped at step {step} of {settings.num_steps}; the same command resumes from there")
        return
    draw(state.ema, state.extras, workdir / "samples.png")
    save_curves(workdir / "curve.png", log.path)
    print(f"done: samples in {workdir / 'samples.png'}, loss curve in {workdir / 'curve.png'}, all else in {workdir}")


def make_train_steps(config: ConfigDict, task: Task, mesh: jax.sharding.Mesh) -> Any:
    """Returns train_steps(state, key, batches) -> (state, metrics), jitted: training.steps_per_call steps in one call.

    The state is donated and replicated over the mesh; batches and metrics have the steps as their first axis.
    """
    step = dfn.training.make_train_step(
        task.loss,
        runs.make_optimizer(config),
        ema_decay=config.training.ema_decay,
        update_extras=task.update_extras,
    )

    def train_steps(state: Any, key: jax.Array, batches: Any) -> Any:
        return jax.lax.scan(lambda state, batch: step(state, key, batch), state, batches)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(train_steps, donate_argnums=0, out_shardings=everywhere)


def start_or_resume(
    config: ConfigDict, task: Task, checkpoints: Checkpoints, key: jax.Array, dataset: data.Dataset
) -> tuple[int, Any]:
    """Returns (step, state) of the last checkpoint, or (0, a new state initialised with the key)."""
    restored = checkpoints.restore(runs.state_like(config, task.init, task.extras_like))
    if restored is not None:
        print(f"resuming at step {restored[0]} of {config.training.num_steps}")
        return restored
    optimizer = runs.make_optimizer(config)

    @jax.jit
    def make_state(key: jax.Array, extras: Any) -> Any:
        return dfn.training.make_train_state(task.init(key), optimizer, extras)

    return 0, make_state(key, task.make_extras(dataset))


def device_batches(
    config: ConfigDict, examples: data.Dataset, start_step: int, mesh: jax.sharding.Mesh
) -> Iterator[Any]:
    """Returns batches on the devices from a step on, stacked [steps_per_call, B, ...], with B split over the mesh."""
    settings = config.training
    batches = data.batches(examples, settings.batch_size, config.seed, start_step=start_step, flip=config.data.flip)
    if config.data.coupling == "ot":
        batches = data.coupled(batches, config.seed, start_step=start_step)
    stacks = (jax.tree.map(lambda *each: np.stack(each), *group) for group in zip(*[batches] * settings.steps_per_call))
    return (dfn.training.split_batch(stack, mesh, axis=1) for stack in stacks)


@contextlib.contextmanager
def closed_on_error(checkpoints: Checkpoints) -> Iterator[None]:
    """Waits, if training fails, until the last checkpoint is written, from which the run can resume."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            checkpoints.close()
        raise


def mean_metrics(window: list[dict[str, jax.Array]], step: int) -> dict[str, float]:
    """Returns the mean of each metric over a list of steps.

    Raises:
      FloatingPointError: if the loss is not finite.
    """
    fetched = jax.device_get(window)
    values = {name: float(np.mean([metrics[name] for metrics in fetched])) for name in fetched[0]}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss became {values['loss']} in the steps before {step}; the last checkpoint is kept: lower "
            "config.training.learning_rate or set config.training.grad_clip"
        )
    return values


def check_intervals(config: ConfigDict, num_devices: int) -> None:
    """Raises ValueError for step counts, batch sizes and kinds of pairs that do not fit together."""
    settings = config.training
    for name in ("num_steps", "steps_per_call", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
        if settings[name] < 1:
            raise ValueError(f"config.training.{name} must be at least 1; got {settings[name]}")
    for name in ("num_steps", "log_every", "checkpoint_every", "sample_every"):
        if settings[name] % settings.steps_per_call:
            raise ValueError(
                f"config.training.{name} must be a multiple of training.steps_per_call = {settings.steps_per_call}; "
                f"got {settings[name]}"
            )
    if config.data.coupling not in ("none", "ot"):
        raise ValueError(f"config.data.coupling must be none or ot; got {config.data.coupling!r}")
    plain = config.task == "diffusion" and not config.latent.enabled and config.loss.objective == "denoising"
    if config.data.coupling == "ot" and not plain:
        raise ValueError(
            "config.data.coupling = 'ot' pairs data and noise, which needs task 'diffusion' with loss.objective "
            "'denoising' and without latents: set it to 'none'"
        )
    if config.data.pairs and not (plain and config.data.coupling == "none"):
        raise ValueError(
            "config.data.pairs holds pairs of data and noise, which needs task 'diffusion' with loss.objective "
            "'denoising', data.coupling = 'none' and no latents: set it to ''"
        )
    if settings.sample_every < 0:
        raise ValueError(f"config.training.sample_every must be 0 (never) or more; got {settings.sample_every}")
    if settings.batch_size % num_devices:
        raise ValueError(
            f"config.training.batch_size must be a multiple of the {num_devices} devices; got {settings.batch_size}"
        )


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a request to stop after the current call of the training step."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # the second signal stops at once
            raise KeyboardInterrupt
        self.requested = True


if __name__ == "__main__":
    runs.define_flags()
    runs.run(train)
