"""The training loop."""

from __future__ import annotations

import collections
import contextlib
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import flops, monitor, processes, states
from experiments.checkpoints import Checkpoints, Restored
from experiments.curves import save_curves
from experiments.goodput import Goodput, described, share
from experiments.metric_log import MetricLog
from experiments.skipped import MAX_RETURNS, Recovery, gave_up
from experiments.stop import StopSignal

__all__ = ["Parts", "run_loop"]

_SLOW_CALL = 0.5  # seconds; slower calls of the training step are not dispatched before the one before has finished


class Parts(NamedTuple):
    """What the loop calls.

    Attributes:
      train_steps: (state, key, batch) -> (state, metrics [steps_per_call]), compiled.
      key: of the run.
      batches_from: (number) -> the batches from this number on.
      go_back: (accept) -> the newest checkpoint whose meta is accepted, on the devices, or the state before step 0.
      draw: (ema, extras, path), which writes a picture.
      explain: (state, step, batch, batch number) -> which examples of a skipped step's batch may be the reason.
      heldout: (ema, extras, stopped) -> metrics, None once stopped() is True; or None for none.
      profile: (step), called before each call of train_steps and at the end.
      flops: floating-point operations of a step on all devices, None if they are not known.
      goodput: the clock of the run; None for a new one.
    """

    train_steps: Callable[..., Any]
    key: jax.Array
    batches_from: Callable[[int], Iterator[Any]]
    go_back: Callable[[Callable[[dict[str, Any]], bool]], Restored]
    draw: Callable[[Any, Any, Path], None]
    explain: Callable[[Any, int, Any, int], str]
    heldout: Callable[[Any, Any, Callable[[], bool]], dict[str, float] | None] | None = None
    profile: Callable[[int], None] = lambda step: None
    flops: float | None = None
    goodput: Goodput | None = None


def run_loop(
    config: ConfigDict,
    workdir: Path,
    start: Restored,
    parts: Parts,
    checkpoints: Checkpoints,
    log: MetricLog,
    stop: StopSignal,
) -> bool:
    """Trains with checkpoints, metrics and pictures until num_steps are done or a signal arrives.

    At most two calls of the training step are in flight, one if they are slow, so that a request to stop need not wait
    for more.

    Returns:
      Whether num_steps were reached.

    Raises:
      FloatingPointError: if steps have no finite numbers, also after returns to a checkpoint.
      OSError: if a checkpoint or the metrics cannot be written.
    """
    loop = _Loop(config, workdir, start, parts, checkpoints, log, stop)
    loop.goodput.record(start.step)
    with loop.goodput.bucket("steps"):
        with _closed_on_error(checkpoints), loop.bar:
            loop.run()
        finished = loop.step >= config.training.num_steps
        if finished:
            with stop.leave_at_once(_stopped(config, loop.step)), loop.goodput.bucket("evaluation"):
                loop.draw(workdir / "samples.png")
                if processes.is_main():
                    _attempt("no curve", lambda: save_curves(workdir / "curve.png", log.path))
    loop.goodput.record(loop.step)
    if processes.is_main():
        print(described(loop.goodput.total.seconds))
    if not finished:
        print(_stopped(config, loop.step))
    return finished


class _Loop:
    """The state of the loop: of the last dispatched step, and of the steps that have finished since the last entry."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        start: Restored,
        parts: Parts,
        checkpoints: Checkpoints,
        log: MetricLog,
        stop: StopSignal,
    ):
        self.config, self.workdir = config, workdir
        self.settings = types.SimpleNamespace(**config.training.to_dict())  # quicker to read than a ConfigDict
        self.parts, self.checkpoints, self.log, self.stop = parts, checkpoints, log, stop
        self.step, self.state = start.step, start.state
        self.recovery = Recovery(**{name: start.meta[name] for name in Recovery._fields if name in start.meta})
        self.saved, self.skipped = start.step, 0
        self.flight: collections.deque[_Call] = collections.deque()
        self.goodput = Goodput() if parts.goodput is None else parts.goodput
        self.peak_flops = self.settings.peak_flops or flops.peak(jax.devices()[0].device_kind)
        self.pace = 1.0 + _SLOW_CALL  # seconds of the last call; unknown at first
        self.finished_at = 0.0
        self.window = _Window(start.step)
        self.bar = tqdm(
            total=self.settings.num_steps,
            initial=start.step,
            unit="step",
            desc="training",
            mininterval=0.5,
            disable=not processes.is_main(),
        )

    def run(self) -> None:
        """Trains; at its end all is saved."""
        settings = self.settings
        self._open_batches()
        while self.step < settings.num_steps and self.stop.may_call():
            self._dispatch()
            due = self._due()
            while self.flight and (due.anything or len(self.flight) >= self._depth()):
                self._finish()
            if due.anything and due.step == self.step and not self.flight:  # not gone back
                self._attend(due)
        while self.flight:
            self._finish()
        if self.step > self.saved:  # stopped between two checkpoints
            if self.window.calls:
                self._write_metrics({})
            self._save()
        self.parts.profile(self.settings.num_steps)
        with self.goodput.bucket("checkpoints"):
            self.checkpoints.close()

    def draw(self, path: Path) -> None:
        """Draws a picture; a failure is printed and does not end the run."""
        state = self.state
        with self.goodput.bucket("evaluation"):
            _attempt(f"no picture of step {self.step}", lambda: self.parts.draw(state.ema, state.extras, path))
        if processes.is_main() and path.exists():
            self.log.picture("samples", self.step, path)

    def _open_batches(self) -> None:
        if self.step < self.settings.num_steps:
            with self.goodput.bucket("data"):
                self.batches = self.parts.batches_from(self.step + self.recovery.batch_offset)
                self.batch = next(self.batches)

    def _dispatch(self) -> None:
        """Starts the next call, and fetches the batch after it meanwhile."""
        self.parts.profile(self.step)
        began = time.monotonic()
        self.state, metrics = self.parts.train_steps(self.state, self.parts.key, self.batch)
        self.step += self.settings.steps_per_call
        self.flight.append(_Call(self.step, metrics, self.batch, began))
        if self.step < self.settings.num_steps:
            began = time.monotonic()
            self.batch = next(self.batches)
            if metrics["loss"].is_ready():  # the devices had nothing to do at the end
                waited = time.monotonic() - began
                self.window.waited += waited
                self.goodput.move(waited, "steps", "data")

    def _depth(self) -> int:
        """The calls in flight, two at most; the same in all processes, which must act on skipped steps alike."""
        if processes.several():
            return 2
        return 1 if self.stop.requested or self.pace > _SLOW_CALL else 2

    def _finish(self) -> None:
        """Waits for the oldest call in flight and counts its steps."""
        call = self.flight.popleft()
        skipped = np.atleast_1d(np.asarray(call.metrics["skipped"]) > 0)
        now = time.monotonic()
        self.pace, self.finished_at = now - max(call.began, self.finished_at), now
        self.bar.update(len(skipped))
        self.window.calls.append(call.metrics)
        self.recovery = self.recovery.after(skipped.tolist())
        if skipped.any():
            self._report(call, skipped)
        if self.recovery.in_a_row >= self.settings.max_skipped:
            self._go_back(call.step)
        elif call.step % self.settings.log_every == 0 and not self._due(call.step).entry:
            self._write_metrics({}, call.step)

    def _due(self, step: int | None = None) -> _Due:
        return _due(self.settings, self.step if step is None else step, self.parts.heldout is not None)

    def _attend(self, due: _Due) -> None:
        """Does what is due after a step, when no other one is in flight."""
        scores = {}
        if due.heldout and self.parts.heldout is not None:
            with self.goodput.bucket("evaluation"):
                scores = self.parts.heldout(self.state.ema, self.state.extras, self.stop.agreed) or {}
        if due.entry:
            self._write_metrics(scores)
        if (due.saving and not self.recovery.in_a_row) or due.last:
            self._save()
        if due.snapshot:
            with self.goodput.bucket("checkpoints"):
                states.save_snapshot(self.workdir, self.step, self.state)
        if due.picture and not self.recovery.in_a_row and not self.stop.agreed():
            if self.step > self.saved:
                self._save()
            with self.goodput.bucket("checkpoints"):
                self.checkpoints.wait()
            self.bar.set_description("sampling")
            with self.stop.leave_at_once(_stopped(self.config, self.step)):
                self.draw(self.workdir / "samples" / f"{self.step:08d}.png")
            self.bar.set_description("training")
        self.window.start_clock()
        self.finished_at = time.monotonic()

    def _write_metrics(self, scores: dict[str, float], step: int | None = None) -> None:
        step = self.step if step is None else step
        values = self.window.values(step)
        values |= monitor.speeds(
            values["steps_per_second"], self.settings.batch_size, self.parts.flops, self.peak_flops
        )
        self.goodput.record(step)
        values["goodput"] = share(self.goodput.total.seconds)
        values |= {"learning_rate": states.learning_rate(self.config, step), **monitor.device_memory(), **scores}
        self.window = _Window(step)
        self.bar.set_postfix(loss=f"{values['loss']:.4f}")
        self.log.write(step, values)

    def _save(self) -> None:
        self.recovery = self.recovery.saved(self.step)
        with self.goodput.bucket("checkpoints"):
            self.checkpoints.save(self.step, self.state, self.recovery._asdict())
        self.goodput.record(self.step)
        self.saved = self.step

    def _report(self, call: _Call, skipped: np.ndarray) -> None:
        """Prints, for the first skipped step and then ten times as many each time, which examples it had."""
        before, self.skipped = self.skipped, self.skipped + int(skipped.sum())
        if len(str(before)) == len(str(self.skipped)) and before:
            return
        index = int(np.argmax(skipped))
        step = call.step - len(skipped) + index  # the number of steps before it
        batch = jax.tree.map(lambda each: each[index], call.batch)
        why = self.parts.explain(self.state, step, batch, step + self.recovery.batch_offset)
        tqdm.write(f"step {step + 1} was skipped ({self.skipped} so far): {why}")

    def _go_back(self, step: int) -> None:
        """Goes back to the last good checkpoint, and on with the batches after the bad ones."""
        if self.recovery.returns >= MAX_RETURNS:
            raise gave_up(step, self.config.training.learning_rate)
        self.flight.clear()
        self.checkpoints.wait()
        good = self.parts.go_back(lambda meta: not meta.get("in_a_row"))
        self.checkpoints.discard_after(good.step)
        tqdm.write(
            f"{self.recovery.in_a_row} steps in a row were skipped: back from step {step} to {good.step}, and on with "
            "the batches after the bad ones"
        )
        self.recovery = self.recovery.going_back(step, good.step)
        self.state, self.step, self.saved = good.state, good.step, good.step
        self.log.rewind(good.step)
        self.goodput.record(good.step, back=True)
        self.window = _Window(good.step)
        self.bar.n = good.step
        self.bar.refresh()
        self._open_batches()


class _Call(NamedTuple):
    """A call of the training step in flight: the step at its end, its metrics, its batch, the time of its start."""

    step: int
    metrics: dict[str, jax.Array]
    batch: Any
    began: float


class _Due(NamedTuple):
    """What is due after a step."""

    step: int
    last: bool
    saving: bool
    heldout: bool
    picture: bool
    snapshot: bool

    @property
    def anything(self) -> bool:
        return any(self[1:])

    @property
    def entry(self) -> bool:
        """Whether metrics are written together with it."""
        return self.last or self.saving or self.heldout


def _due(settings: types.SimpleNamespace, step: int, has_heldout: bool) -> _Due:
    def every(steps: int) -> bool:
        return steps > 0 and step % steps == 0

    last = step >= settings.num_steps
    return _Due(
        step,
        last,
        saving=every(settings.checkpoint_every) or every(settings.keep_every),
        heldout=has_heldout and step % settings.heldout_every < settings.steps_per_call,
        picture=every(settings.sample_every) and not last,
        snapshot=every(settings.ema_snapshot_every),
    )


class _Window:
    """The calls since the last entry of the log, whose means are written next."""

    def __init__(self, start: int):
        self.calls: list[dict[str, jax.Array]] = []
        self.waited = 0.0
        self._start = start
        self.start_clock()

    def start_clock(self) -> None:
        """Leaves out the time until now, of a picture or of a compilation; only right after an entry."""
        if not self.calls:
            self._when = time.monotonic()

    def values(self, step: int) -> dict[str, float]:
        """Returns the means over the steps that were not skipped, the number of those that were, and the speed."""
        fetched = jax.device_get(self.calls)
        metrics = {name: np.concatenate([np.atleast_1d(each[name]) for each in fetched]) for name in fetched[0]}
        taken = metrics.pop("skipped") == 0
        elapsed = max(time.monotonic() - self._when, 1e-9)
        values = {name: float(np.mean(each[taken])) if taken.any() else float("nan") for name, each in metrics.items()}
        values["skipped"] = float(np.sum(~taken))
        values["steps_per_second"] = (step - self._start) / elapsed
        values["data_wait"] = min(1.0, self.waited / elapsed)  # share of the time
        return values


def _stopped(config: ConfigDict, step: int) -> str:
    return f"stopped at step {step} of {config.training.num_steps}; the same command resumes from there"


def _attempt(failure: str, write: Callable[[], Any]) -> None:
    """Calls a function whose failure does not end the run, but is printed."""
    try:
        write()
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        tqdm.write(f"{failure}: {(str(error).splitlines() or [repr(error)])[0][:200]}")


@contextlib.contextmanager
def _closed_on_error(checkpoints: Checkpoints) -> Iterator[None]:
    """Waits, if training fails, until the last checkpoint is written, from which the run can resume."""
    try:
        yield
    except KeyboardInterrupt:  # the second signal: at once
        raise
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to report
            checkpoints.close()
        raise
