"""The optimizers of diffusion training, put together from optax."""

from __future__ import annotations

import optax


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
    """Returns adam or adamw with warm-up, an optional cosine decay, gradient clipping and accumulation.

    Args:
      name: adam or adamw.
      learning_rate: its peak.
      lr_schedule: constant, or cosine (to 0 at num_steps), after a linear warm-up.
      warmup_steps: steps of the warm-up.
      num_steps: batches in the whole run, needed for cosine.
      weight_decay: for adamw.
      grad_clip: largest global norm of the gradient; 0 for no clipping.
      accumulation: batches whose mean gradient makes one update; steps of the schedule are batches all the same.

    Raises:
      ValueError: if a name is unknown or a number is out of range.

    >>> optimizer = make_optimizer("adam", learning_rate=1e-3, lr_schedule="cosine", warmup_steps=10, num_steps=100)
    >>> make_optimizer("sgd")
    Traceback (most recent call last):
    ...
    ValueError: optimizer must be adam or adamw; got 'sgd'
    """
    if name not in ("adam", "adamw"):
        raise ValueError(f"optimizer must be adam or adamw; got {name!r}")
    if lr_schedule not in ("constant", "cosine"):
        raise ValueError(f"lr_schedule must be constant or cosine; got {lr_schedule!r}")
    if not learning_rate > 0 or warmup_steps < 0 or grad_clip < 0 or weight_decay < 0 or accumulation < 1:
        raise ValueError(
            "learning_rate must be positive, warmup_steps, grad_clip and weight_decay not negative and accumulation at "
            f"least 1; got {learning_rate}, {warmup_steps}, {grad_clip}, {weight_decay} and {accumulation}"
        )
    if weight_decay and name == "adam":
        raise ValueError("weight_decay has no effect with adam: choose adamw, or set weight_decay to 0")
    if lr_schedule == "cosine" and (num_steps is None or num_steps <= warmup_steps):
        raise ValueError(f"the cosine schedule needs num_steps above warmup_steps = {warmup_steps}; got {num_steps}")

    updates = lambda batches: max(1, batches // accumulation)  # noqa: E731
    after: optax.Schedule = optax.constant_schedule(learning_rate)
    if lr_schedule == "cosine":
        assert num_steps is not None
        after = optax.cosine_decay_schedule(learning_rate, updates(num_steps - warmup_steps))
    schedule = after
    if warmup_steps:
        # Starts at learning_rate / warmup_steps, so that the first step is not lost.
        warmup = optax.linear_schedule(learning_rate / updates(warmup_steps), learning_rate, updates(warmup_steps))
        schedule = optax.join_schedules([warmup, after], [updates(warmup_steps)])

    parts = [optax.clip_by_global_norm(grad_clip)] if grad_clip else []
    parts.append(optax.adamw(schedule, weight_decay=weight_decay) if name == "adamw" else optax.adam(schedule))
    optimizer = optax.chain(*parts)
    return optax.MultiSteps(optimizer, accumulation) if accumulation > 1 else optimizer
