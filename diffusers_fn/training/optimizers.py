"""Optimizers for training, composed from optax."""

from __future__ import annotations

import optax

__all__ = ["make_optimizer"]


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
      learning_rate: the peak learning rate.
      lr_schedule: "constant", or "cosine", which decays to 0 at num_steps; both after a linear warm-up.
      warmup_steps: length of the warm-up in batches.
      num_steps: length of the run in batches, required for "cosine".
      weight_decay: decoupled weight decay, for "adamw" only.
      grad_clip: the largest global norm of the gradient; 0 for no clipping.
      accumulation: the number of batches whose mean gradient makes one update. warmup_steps and num_steps count
        batches, not updates.

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
            "learning_rate must be positive, warmup_steps, grad_clip and weight_decay at least 0, and accumulation at "
            f"least 1; got {learning_rate}, {warmup_steps}, {grad_clip}, {weight_decay} and {accumulation}"
        )
    if weight_decay and name == "adam":
        raise ValueError("weight_decay has no effect with adam: use adamw, or set weight_decay to 0")
    if lr_schedule == "cosine" and (num_steps is None or num_steps <= warmup_steps):
        raise ValueError(f"lr_schedule cosine needs num_steps above warmup_steps = {warmup_steps}; got {num_steps}")

    updates = lambda batches: max(1, batches // accumulation)  # noqa: E731
    after: optax.Schedule = optax.constant_schedule(learning_rate)
    if lr_schedule == "cosine":
        assert num_steps is not None
        after = optax.cosine_decay_schedule(learning_rate, updates(num_steps - warmup_steps))
    schedule = after
    if warmup_steps:
        # Starts at learning_rate / warmup_steps: from 0 the first update would change nothing.
        warmup = optax.linear_schedule(learning_rate / updates(warmup_steps), learning_rate, updates(warmup_steps))
        schedule = optax.join_schedules([warmup, after], [updates(warmup_steps)])

    parts = [optax.clip_by_global_norm(grad_clip)] if grad_clip else []
    parts.append(optax.adamw(schedule, weight_decay=weight_decay) if name == "adamw" else optax.adam(schedule))
    optimizer = optax.chain(*parts)
    return optax.MultiSteps(optimizer, accumulation) if accumulation > 1 else optimizer
