"""Trains a model.

    python -m experiments.train --config=configs/ddpm_digits.py --workdir=runs/digits

The same command again resumes from the last checkpoint, and so does --workdir alone. The work directory gets
config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/ (a picture every training.sample_every steps) and, at
the end, samples.png and curve.png. A finished run is extended, and other settings are changed, by

    python -m experiments.train --workdir=runs/digits --config.training.num_steps=20_000 --allow_changes

--init_from=RUN or WEIGHTS starts a new run from the parameters of another one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import diffusers_fn as dfn
from experiments import data, runs, states
from experiments import workdir as workdirs
from experiments.checkpoints import Checkpoints
from experiments.grey_levels import check_loss_levels
from experiments.init_from import prepare
from experiments.loop import run_loop
from experiments.metric_log import MetricLog
from experiments.tasks import Task, make_task

__all__ = ["check_intervals", "device_batches", "start_or_resume", "train"]


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    allow_changes: bool = False,
    init_from: str | None = None,
    init_params: str = "ema",
) -> None:
    """Trains until config.training.num_steps, starting from the last checkpoint if there is one.

    SIGTERM and Ctrl-C save a checkpoint and return. A killed run loses the steps after its last checkpoint; when it is
    resumed, it repeats them bit for bit.

    Args:
      config: of the run.
      workdir: its work directory, which is locked for other processes that train.
      allow_changes: continue with other data or settings than before, see `workdir.open_workdir`.
      init_from: start a new run from the parameters of another run or of published weights, see `init_from`.
      init_params: which parameters of that run: ema or raw.

    Raises:
      ValueError: if config, data and work directory do not fit together, or another process trains there.
      FloatingPointError: if the loss is not finite; that state is not saved.
    """
    with workdirs.lock(workdir):
        _train(config, workdir, allow_changes, init_from, init_params)


def _train(config: ConfigDict, workdir: Path, allow_changes: bool, init_from: str | None, init_params: str) -> None:
    """`train`, in a locked work directory."""
    task = make_task(config, workdir)
    settings = config.training
    check_intervals(config, jax.device_count())
    key = runs.random_key(config, config.seed)
    init_key, run_key, grid_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    train_steps = states.make_train_steps(config, task.loss, task.update_extras, mesh)
    dataset = data.load(runs.data_seed(config), "train")
    runs.check_data_fits(config, dataset)
    check_loss_levels(config, dataset)
    data.batches(dataset, settings.batch_size, config.seed, flip=config.data.flip)  # checks its arguments
    examples = data.paired(config.data.pairs, dataset) if config.data.pairs else dataset
    new_state: Callable[..., Any] = functools.partial(states.new_state, config)
    if init_from is not None:
        new_state = prepare(config, workdir, task.init, source=init_from, which=init_params)
    record = data.describe(dataset, _heldout(config))
    # The last check; records config and data in a new folder.
    workdirs.open_workdir(workdir, config, create=True, allow_changes=allow_changes, record=record)
    workdirs.record_versions(workdir)

    checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
    start, state = start_or_resume(config, task, checkpoints, init_key, dataset, new_state)
    state, run_key = dfn.training.replicate((state, run_key), mesh)
    (workdir / "samples").mkdir(exist_ok=True)
    draw = task.make_pictures(dataset, grid_key)
    log = MetricLog(workdir, start)
    batches = device_batches(config, task.examples(examples, state.extras), start, mesh)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{len(dataset)} examples, {num_params:,} parameters, {jax.device_count()} {jax.default_backend()} device(s)")

    finished = run_loop(
        config,
        workdir,
        state,
        start,
        train_steps=train_steps,
        key=run_key,
        batches=batches,
        checkpoints=checkpoints,
        log=log,
        draw=draw,
    )
    if finished:
        print(f"done: samples in {workdir / 'samples.png'}, curve in {workdir / 'curve.png'}, all else in {workdir}")


def start_or_resume(
    config: ConfigDict,
    task: Task,
    checkpoints: Checkpoints,
    key: jax.Array,
    dataset: data.Dataset,
    new_state: Callable[..., Any],
) -> tuple[int, Any]:
    """Returns (step, state) of the last checkpoint, or (0, new_state(task.init, key, extras))."""
    restored = checkpoints.restore(states.state_like(config, task.init, task.extras_like))
    if restored is not None:
        print(f"resuming at step {restored[0]} of {config.training.num_steps}")
        return restored
    return 0, new_state(task.init, key, task.make_extras(dataset))


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `train` with the flags of the command line."""
    given = flags.FLAGS
    train(
        config,
        workdir,
        allow_changes=given.allow_changes,
        init_from=given.init_from,
        init_params=given.init_params,
    )


def _heldout(config: ConfigDict) -> data.Dataset | None:
    """The held-out examples; None if there are none."""
    if config.data.heldout_fraction == 0 and config.data.name != "idx":  # idx has separate held-out files
        return None
    return data.load(runs.data_seed(config), "heldout")


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


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_bool(
        "allow_changes", False, "Continue a run with other data or settings; what differs is printed and recorded."
    )
    flags.DEFINE_string(
        "init_from", None, "Start a new run from the parameters of this run (its folder), or of published weights."
    )
    flags.DEFINE_string("init_params", "ema", "Which parameters of the run in --init_from: ema or raw.")
    runs.run(main)
