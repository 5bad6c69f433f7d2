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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config.conditions import takes_text
from experiments import data, flops, processes, runs, states, texts
from experiments import workdir as workdirs
from experiments.checkpoints import Checkpoints, Restored
from experiments.compilation import compile_now
from experiments.goodput import FILE, Goodput, process_age
from experiments.grey_levels import check_loss_levels
from experiments.heldout import make_heldout
from experiments.init_from import prepare
from experiments.loop import Parts, run_loop
from experiments.lost_processes import PREEMPTED, AgreedExit
from experiments.metric_log import MetricLog, Sink, indented
from experiments.monitor import memory_per_device, parameter_table, profiler
from experiments.skipped import blame
from experiments.stop import StopSignal
from experiments.tasks import Task, make_task

_POSITIVE = (
    "num_steps", "steps_per_call", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "max_skipped",
)  # fmt: skip

__all__ = ["check_intervals", "device_batches", "start_or_resume", "train"]


def train(
    config: ConfigDict,
    workdir: Path,
    *,
    allow_changes: bool = False,
    init_from: str | None = None,
    init_params: str = "ema",
    sinks: Sequence[Sink] = (),
    profile: str | None = None,
    own_process: bool = False,
) -> None:
    """Trains until config.training.num_steps, starting from the last checkpoint if there is one.

    The first SIGINT (Ctrl-C) or SIGTERM stops the run after the current step, with a checkpoint; before the first step
    and while a picture is drawn it ends the run at once. A second one ends it without saving. A killed run loses the
    steps after its last checkpoint; when it is resumed, it repeats them bit for bit.

    Exit codes of the binary: 0 if num_steps were reached, 75 (`stop.PREEMPTED`) if a signal stopped the run, which the
    same command continues, 1 after an error, 128 + the signal's number after a second signal.

    A step with a number that is not finite is skipped. After training.max_skipped of them in a row the run goes back to
    the last good checkpoint, and on with the batches after the bad ones; after three times without progress it ends.

    Args:
      config: of the run.
      workdir: its work directory, which is locked for other processes that train.
      allow_changes: continue with other data or settings than before, see `workdir.open_workdir`.
      init_from: start a new run from the parameters of another run or of published weights, see `init_from`.
      init_params: which parameters of that run: ema, raw or ema:STD.
      sinks: functions (step, metrics) -> None that get each entry of metrics.jsonl, too.
      profile: "START:STOP", the steps of which a trace is written into `profile/`.
      own_process: whether a signal may end the process, as it does for the binary, see `StopSignal`.

    Raises:
      ValueError: if config, data and work directory do not fit together, or another process trains there.
      FloatingPointError: if steps have no finite numbers, also after returns to a checkpoint.
      OSError: if a checkpoint or the metrics cannot be written.
      SystemExit: with the code PREEMPTED if the run was stopped by a signal.
    """
    age = process_age() if own_process else 0.0
    with processes.locked(workdir), StopSignal(own_process) as stop:
        goodput = Goodput(workdir / FILE if processes.is_main() else None, age)
        with stop.leave_at_once("stopped before the first step; the same command starts again"):
            trace = profiler(profile, workdir / "profile")
            start, parts, checkpoints, log = _prepare(
                config, workdir, allow_changes, init_from, init_params, sinks, goodput
            )
        finished = run_loop(config, workdir, start, parts._replace(profile=trace), checkpoints, log, stop)
    if not finished:
        raise AgreedExit(PREEMPTED)
    print(f"done: samples in {workdir / 'samples.png'}, curve in {workdir / 'curve.png'}, all else in {workdir}")


def _prepare(
    config: ConfigDict,
    workdir: Path,
    allow_changes: bool,
    init_from: str | None,
    init_params: str,
    sinks: Sequence[Sink],
    goodput: Goodput,
) -> tuple[Restored, Parts, Checkpoints, MetricLog]:
    """Returns what the loop needs: the state at the start, functions of it, checkpoints and log; all is compiled."""
    task = make_task(config, workdir)
    settings = config.training
    check_intervals(config)
    mesh = states.make_mesh(config)
    key = runs.random_key(config, config.seed)
    init_key, run_key, grid_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    heldout_key = jax.random.fold_in(key, 1)
    like = states.state_like(config, task.init, task.extras_like, mesh)
    train_steps = states.make_train_steps(config, task.loss, task.update_extras, mesh, like)
    dataset, heldout = data.load(runs.data_seed(config), "train"), _heldout(config)
    tokenizer = None
    if takes_text(config):
        (dataset, heldout), tokenizer = texts.in_place(config, workdir, dataset, heldout)
    runs.check_data_fits(config, dataset)
    check_loss_levels(config, dataset)
    threads = config.data.get("num_threads")
    data.batches(dataset, settings.batch_size, config.seed, flip=config.data.flip, num_threads=threads)  # checks them
    examples = data.paired(config.data.pairs, dataset) if config.data.pairs else dataset
    new_state: Callable[..., Any] = functools.partial(states.new_state, config, mesh=mesh)
    if init_from is not None:
        new_state = prepare(config, workdir, task.init, source=init_from, which=init_params)
    record = data.describe(dataset, heldout)
    # The last check; records config and data in a new folder.
    if processes.is_main():
        workdirs.open_workdir(workdir, config, create=True, allow_changes=allow_changes, record=record)
        workdirs.record_versions(workdir)
        if tokenizer is not None:
            texts.save(tokenizer, workdir)
        (workdir / "samples").mkdir(exist_ok=True)
    processes.wait()

    checkpoints = Checkpoints(workdir, settings.keep_checkpoints, keep_every=settings.keep_every)

    def go_back(*accept: Callable[[dict[str, Any]], bool]) -> Restored:
        found = start_or_resume(like, task, checkpoints, init_key, dataset, new_state, accept)
        where = jax.tree.map(lambda leaf: leaf.sharding, like)
        return found._replace(state=dfn.training.place(found.state, where))

    start = go_back()
    if start.step:
        print(f"resuming at step {start.step} of {settings.num_steps}")
    run_key = dfn.training.replicate(run_key, mesh)
    draw = task.make_pictures(dataset if tokenizer is None or heldout is None else heldout, grid_key)
    log = MetricLog(workdir, start.step, sinks, writes=processes.is_main())
    examples = task.examples(examples, start.state.extras)
    batches_from = lambda number: device_batches(config, examples, number, mesh)  # noqa: E731
    table = parameter_table(start.state.params)
    log.text("config", indented(config.to_json(indent=2)))
    log.text("parameters", indented(table))
    print(f"{len(dataset)} examples, {jax.device_count()} {jax.default_backend()} device(s)\n{table}")

    score = num_flops = None
    if start.step < settings.num_steps:
        batch = next(batches_from(start.step + start.meta.get("batch_offset", 0)))
        with goodput.bucket("compilation"):
            num_flops = flops.count(train_steps, start.state, run_key, batch) / settings.steps_per_call
            train_steps = compile_now("the training step", train_steps, start.state, run_key, batch)
        print(memory_per_device(train_steps))
        checkpoints.prepare(start.state)
        # With latents in place of images, or pairs of data and noise, the loss is not one of held-out images.
        if 0 < settings.heldout_every <= settings.num_steps and heldout and examples is dataset:
            score = make_heldout(
                task.loss,
                task.level_loss,
                heldout,
                settings.batch_size,
                heldout_key,
                start.state.ema,
                start.state.extras,
                mesh,
            )
    losses = jax.jit(lambda params, *args: task.loss(params, *args)[0])

    def explain(state: Any, step: int, batch: Any, number: int) -> str:
        extras = () if state.extras is None else (state.extras,)
        found = processes.gather(losses(state.params, jax.random.fold_in(run_key, step), batch, *extras))
        indices = data.batch_indices(examples, settings.batch_size, config.seed, number)
        return blame(found, indices, dataset.names)

    parts = Parts(train_steps, run_key, batches_from, go_back, draw, explain, score, flops=num_flops, goodput=goodput)
    return start, parts, checkpoints, log


def start_or_resume(
    like: Any,
    task: Task,
    checkpoints: Checkpoints,
    key: jax.Array,
    dataset: data.Dataset,
    new_state: Callable[..., Any],
    accept: Sequence[Callable[[dict[str, Any]], bool]] = (),
) -> Restored:
    """Returns the newest checkpoint that is accepted, else the newest, else new_state(task.init, key, extras).

    `like` has the shapes and shardings of the state.
    """
    for accepted in (*accept, lambda meta: True):
        restored = checkpoints.restore(like, accepted)
        if restored is not None:
            return restored
    return Restored(0, new_state(task.init, key, task.make_extras(dataset)), {})


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `train` with the flags of the command line."""
    given = flags.FLAGS
    train(
        config,
        workdir,
        allow_changes=given.allow_changes,
        init_from=given.init_from,
        init_params=given.init_params,
        profile=given.profile,
        own_process=True,
    )


def _heldout(config: ConfigDict) -> data.Dataset | None:
    """The held-out examples; None if there are none."""
    return data.load(runs.data_seed(config), "heldout") if data.has_heldout(config.data) else None


def device_batches(
    config: ConfigDict, examples: data.Dataset, start_step: int, mesh: jax.sharding.Mesh
) -> Iterator[Any]:
    """Returns batches on the devices from a step on, stacked [steps_per_call, B, ...], with B split over the mesh."""
    settings = config.training
    rows = processes.local_rows(settings.batch_size, mesh)
    coupled = config.data.coupling == "ot"  # of all rows of a batch, which each process reads
    batches = data.batches(
        examples,
        settings.batch_size,
        config.seed,
        start_step=start_step,
        flip=config.data.flip,
        rows=None if coupled else rows,
        num_threads=config.data.get("num_threads"),
        num_workers=config.data.get("num_workers", 0),
    )
    if coupled:
        whole = data.coupled(batches, config.seed, start_step=start_step)
        batches = (jax.tree.map(lambda each: each[rows], batch) for batch in whole)
    stacks = (jax.tree.map(lambda *each: np.stack(each), *group) for group in zip(*[batches] * settings.steps_per_call))
    return (dfn.training.split_batch(stack, mesh, axis=1) for stack in stacks)


def check_intervals(config: ConfigDict) -> None:
    """Raises ValueError for step counts and kinds of pairs that do not fit together."""
    settings = config.training
    for name in _POSITIVE:
        if settings[name] < 1:
            raise ValueError(f"config.training.{name} must be at least 1; got {settings[name]}")
    for name in ("sample_every", "heldout_every", "ema_snapshot_every", "keep_every"):
        if settings[name] < 0:
            raise ValueError(f"config.training.{name} must be 0 (never) or more; got {settings[name]}")
    for name in ("num_steps", "log_every", "checkpoint_every", "keep_every", "sample_every", "ema_snapshot_every"):
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


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_bool(
        "allow_changes", False, "Continue a run with other data or settings; what differs is printed and recorded."
    )
    flags.DEFINE_string(
        "init_from", None, "Start a new run from the parameters of this run (its folder), or of published weights."
    )
    flags.DEFINE_string("profile", None, "START:STOP: write a trace of these steps into WORKDIR/profile.")
    flags.DEFINE_string("init_params", "ema", "Which parameters of the run in --init_from: ema, raw or ema:STD.")
    runs.run(main)
