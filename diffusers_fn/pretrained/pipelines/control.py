"""A ControlNet within a pipeline: its image, its strength and the steps in which it is on."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn.pretrained.schedulers import Plan

__all__ = ["Control", "condition", "without_text"]


class Control(NamedTuple):
    """The image of a ControlNet, and where its residuals are added.

    Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", 2023,
    https://arxiv.org/abs/2302.05543, eq. 2; strength multiplies the second term.

    Attributes:
      image: [B or 1, H, W, C] in [0, 1]: edges, depths, poses, ...
      strength: [] or [B], a factor of its residuals; may be traced.
      start, end: the share of the steps at which it is switched on and off.
      guess_mode: deeper residuals count more, and the evaluation without a text has none (see `scaled_residuals`).
    """

    image: jax.Array
    strength: Any = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False


def condition(control: Control, plan: Plan, batch: int) -> dict[str, Any]:
    """Returns the entry "control" of the network's condition.

    Raises:
      ValueError: if start and end are not in order, or the image has another batch.
    """
    if not 0 <= control.start <= control.end <= 1:
        raise ValueError(f"start and end of the control must satisfy 0 <= start <= end <= 1; got {control[2:4]}")
    if control.image.ndim != 4 or control.image.shape[0] not in (1, batch):
        raise ValueError(
            f"the image of the control must have shape [{batch}, H, W, C]; got {list(control.image.shape)}"
        )
    timesteps = plan.timesteps
    num = len(timesteps)
    on = [i for i in range(num) if i / num >= control.start and (i + 1) / num <= control.end]
    bounds = (timesteps[on[0]], timesteps[on[-1]]) if on else (-1.0, 0.0)  # no timestep lies between these
    row = lambda value: jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))  # noqa: E731
    entry: dict[str, Any] = {
        "image": jnp.broadcast_to(control.image, (batch, *control.image.shape[1:])),
        "strength": row(control.strength),
        "first": row(bounds[0]),
        "last": row(bounds[1]),
    }
    return {**entry, "guess": row(1.0)} if control.guess_mode else entry


def without_text(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the entry for the evaluation without a text: in guess mode the ControlNet is off there."""
    return {**entry, "strength": jnp.zeros_like(entry["strength"])} if "guess" in entry else entry
