"""The training loop."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.checkpoints import Checkpoints
from experiments.compilation import compile_now
from experiments.curves import save_curves
from experiments.metric_log import MetricLog

__all__ = ["StopSignal", "mean_metrics", "run_loop"]


def run_loop(
    config: ConfigDict,
    workdir: Path,
    state: Any,
    start: int,
    *,
    train_steps: Callable[..., Any],
    key: jax.Array,
    batches: Iterator[Any],
    checkpoints: Checkpoints,
    log: MetricLog,
    draw: Callable[[Any, Any, Path], None],
) -> bool:
    """Trains from step `start` on, with checkpoints, metrics and pictures; returns whether num_steps were reached."""
    settings = config.training
    if start < settings.num_steps:
        first = next(batches)
        train_steps = compile_now("the training step", train_steps, state, key, first)
        batches = itertools.chain([first], batches)

    stop = StopSignal()
    step = saved = start
    window: list[dict[str, jax.Array]] = []  # metrics since the last log entry; their means are logged next
    since, when = start, time.monotonic()
    bar = tqdm(total=settings.num_steps, initial=start, unit="step", desc="training", mininterval=0.5)
    with closed_on_error(checkpoints), bar:
        while step < settings.num_steps and not stop.requested:
            state, metrics = train_steps(state, key, next(batches))
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
        return False
    draw(state.ema, state.extras, workdir / "samples.png")
    save_curves(workdir / "curve.png", log.path)
    return True


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
