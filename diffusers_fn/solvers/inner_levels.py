"""Levels inside a step."""

from __future__ import annotations

import jax
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process, at_log_snr, between

__all__ = ["level_inside"]


def level_inside(start: Level, down: Level, end: Level, last: Level, share: float, process: Process | None) -> Level:
    """Returns Level[M] at a share of the way from `start` to `down` in log SNR.

    `down` is where a step arrives before noise takes it back up to `end`; without noise both are the same level. With
    noise the level may lie beyond `end`, and without a process it is then interpolated between `start` and `last`.

    Args:
      start: Level[M].
      down: Level[M].
      end: Level[M] of the plan.
      last: Level[1], the last one of the plan.
      share: in (0, 1).
      process: the process of the plan; None interpolates, see `processes.between`.
    """
    if down is end:
        return between(start, end, share, process)
    xp = namespace(start, down, end)
    wanted = (1 - share) * log_snr(start) + share * log_snr(down)
    if process is not None:
        return at_log_snr(process, wanted)
    fraction = (wanted - log_snr(start)) / (log_snr(end) - log_snr(start))
    inside = between(start, end, xp.clip(fraction, 0.0, 1.0))
    if share <= 0.5:  # never beyond `end`, as eta <= 1
        return inside
    last = jax.tree.map(lambda a, b: xp.broadcast_to(a, np.shape(b)), last, end)
    beyond = between(start, last, xp.clip((wanted - log_snr(start)) / (log_snr(last) - log_snr(start)), 0.0, 1.0))
    return jax.tree.map(lambda a, b: xp.where(fraction > 1.0, a, b), beyond, inside)
