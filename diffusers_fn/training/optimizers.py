"""Optimizers for training, composed from optax, and their learning rates."""

from __future__ import annotations

import math
from typing import Any

import optax

from diffusers_fn._arrays import check_count, check_number
from diffusers_fn.training.norms import clip_by_global_norm

__all__ = ["make_learning_rate", "make_optimizer"]


def make_optimizer(
    name: str = "adam",
    *,
    learning_rate: float = 1e-4,
    lr_schedule: str = "constant",
    warmup_steps: int = 0,
    num_steps: int | None = None,
    weight_decay: float = 0.0,
    grad_clip: float = 0.0,
    accumulation: int = 1,
) -> optax.GradientTransformation | optax.MultiSteps:
    """Returns Adam or AdamW with optional warm-up, cosine decay, gradient clipping and gradient accumulation.

    Args:
      name: "adam" or "adamw".
      learning_rate, lr_schedule, warmup_steps, num_steps, accumulation: see `make_learning_rate`; accumulation is the
        number of batches whose mean gradient makes one update.
      weight_decay: decoupled weight decay, for "adamw" only.
      grad_clip: the largest global norm of the gradient (see `clip_by_global_norm`); 0 for no clipping.

    Raises:
      ValueError: if a name is unknown or a number is out of range or not of its type.

    >>> optimizer = make_optimizer("adam", learning_rate=1e-3, lr_schedule="cosine", warmup_steps=10, num_steps=100)
    >>> make_optimizer("sgd")
    Traceback (most recent call last):
    ...
    ValueError: optimizer must be adam or adamw; got 'sgd'
    """
    if name not in ("adam", "adamw"):
        raise ValueError(f"optimizer must be adam or adamw; got {name!r}")
    check_number("weight_decay", weight_decay)
    check_number("grad_clip", grad_clip)
    schedule = make_learning_rate(
        learning_rate,
        lr_schedule=lr_schedule,
        warmup_steps=warmup_steps,
        num_steps=num_steps,
        accumulation=accumulation,
    )
    if weight_decay and name == "adam":
        raise ValueError("weight_decay has no effect with adam: use adamw, or set weight_decay to 0")
    parts: list[Any] = [clip_by_global_norm(grad_clip)] if grad_clip else []
    parts.append(optax.adamw(schedule, weight_decay=weight_decay) if name == "adamw" else optax.adam(schedule))
    optimizer = optax.chain(*parts)
    return optax.MultiSteps(optimizer, accumulation) if accumulation > 1 else optimizer


def make_learning_rate(
    learning_rate: float,
    *,
    lr_schedule: str = "constant",
    warmup_steps: int = 0,
    num_steps: int | None = None,
    accumulation: int = 1,
) -> optax.Schedule:
    """Returns (number of updates so far) -> the learning rate of the next update.

    Args:
      learning_rate: the peak.
      lr_schedule: "constant", or "cosine", which decays to 0 at num_steps; both after a linear warm-up that starts at
        the peak divided by the number of updates in the warm-up, since from 0 the first update would change nothing.
      warmup_steps: length of the warm-up in batches; with accumulation, its updates are rounded up.
      num_steps: length of the run in batches, required for "cosine"; None for no limit.
      accumulation: the number of batches per update.

    Raises:
      ValueError: if a name is unknown, a number is out of range or not of its type, or num_steps is not a multiple of
        accumulation, so that the last batches would make no update.

    >>> rate = make_learning_rate(1.0, warmup_steps=7, accumulation=4)
    >>> [float(rate(i)) for i in range(4)]
    [0.5, 0.75, 1.0, 1.0]
    """
    if lr_schedule not in ("constant", "cosine"):
        raise ValueError(f"lr_schedule must be constant or cosine; got {lr_schedule!r}")
    check_number("learning_rate", learning_rate)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive; got {learning_rate}")
    check_count("warmup_steps", warmup_steps, 0)
    check_count("accumulation", accumulation, 1)
    if num_steps is not None:
        check_count("num_steps", num_steps, 1)
        if num_steps % accumulation:
            nearest = [n for n in (num_steps - num_steps % accumulation, num_steps + -num_steps % accumulation) if n]
            raise ValueError(
                f"num_steps must be a multiple of accumulation = {accumulation}, or the last {num_steps % accumulation}"
                f" batches make no update; got {num_steps}: set it to {' or '.join(map(str, nearest))}"
            )
    if lr_schedule == "cosine" and (num_steps is None or num_steps <= warmup_steps):
        raise ValueError(f"lr_schedule cosine needs num_steps above warmup_steps = {warmup_steps}; got {num_steps}")

    warm = math.ceil(warmup_steps / accumulation)
    after: optax.Schedule = optax.constant_schedule(learning_rate)
    if lr_schedule == "cosine":
        assert num_steps is not None
        after = optax.cosine_decay_schedule(learning_rate, max(1, num_steps // accumulation - warm))
    if not warm:
        return after
    return optax.join_schedules([optax.linear_schedule(learning_rate / warm, learning_rate, warm), after], [warm])
