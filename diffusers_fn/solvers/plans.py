"""Plans, the levels [N] that a solver visits: their checks and their steps."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete
from diffusers_fn.levels import Level, log_snr

__all__ = ["check_alpha", "check_num_levels", "check_plan", "neighbours"]


def check_plan(levels: Level) -> None:
    """Raises ValueError unless levels are a plan: Level[N], noisy, finite and descending in noise.

    Traced values cannot be read and are not checked.

    >>> check_plan(Level(np.ones(2), np.array([1.0, 2.0]), np.zeros(2)))
    Traceback (most recent call last):
    ...
    ValueError: levels must descend from the noisiest to the cleanest; log SNR falls after entry 0
    """
    if not isinstance(levels, Level):
        raise ValueError(f"levels must be a plan Level[N], such as grids.karras(20); got {type(levels).__name__}")
    if not all(hasattr(leaf, "dtype") for leaf in (levels.alpha, levels.sigma, levels.t)):
        raise ValueError("levels must be Level[N] of arrays, as a grid returns it; got Python numbers or lists")
    shapes = {name: np.shape(getattr(levels, name)) for name in ("alpha", "sigma", "t")}
    if len(set(shapes.values())) != 1 or len(shapes["alpha"]) not in (1, 2) or shapes["alpha"][0] < 1:
        raise ValueError(
            f"levels must be Level[N] (or [N, B]) with N >= 1, as a grid returns them; got shapes {shapes}"
        )
    for name in ("alpha", "sigma"):
        dtype = jnp.result_type(getattr(levels, name))
        if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 32:
            raise ValueError(f"levels.{name} must be float32 or float64: {dtype} cannot resolve a plan")
    alpha, sigma = concrete(levels.alpha), concrete(levels.sigma)
    if alpha is None or sigma is None:
        return
    if not (np.all(np.isfinite(alpha)) and np.all(np.isfinite(sigma)) and np.all(alpha >= 0)):
        raise ValueError("levels must be finite with alpha >= 0")
    if np.any(sigma <= 0):
        raise ValueError(
            "every level of a plan must be noisy (sigma > 0): leave the clean level out, "
            "sample() ends with the step into sigma = 0"
        )
    falls = np.diff(log_snr(Level(alpha, sigma, 0.0)), axis=0) <= 0
    if np.any(falls):
        where = int(np.argmax(falls.reshape(falls.shape[0], -1).any(axis=1)))
        hint = ": reverse them, levels[::-1]" if np.all(falls) and falls.shape[0] > 1 else ""
        raise ValueError(
            f"levels must descend from the noisiest to the cleanest; log SNR falls after entry {where}{hint}"
        )


def check_num_levels(levels: Level, least: int) -> None:
    """Raises ValueError unless a plan has at least `least` levels.

    >>> check_num_levels(Level(np.ones(2), np.array([2.0, 1.0]), np.zeros(2)), 3)
    Traceback (most recent call last):
    ...
    ValueError: this solver needs at least 3 levels; got 2: take more steps or a lower order
    """
    given = np.shape(levels.sigma)[0]
    if given < least:
        raise ValueError(
            f"this solver needs at least {least} levels; got {given}: take more steps or a lower order"
            + (" (ddim takes one level, a single denoise)" if given == 1 else "")
        )


def neighbours(levels: Level) -> tuple[Level, Level]:
    """Returns (start, end), the levels at both ends of each of the N - 1 steps of a plan.

    >>> start, end = neighbours(Level(np.ones(3), np.array([3.0, 2.0, 1.0]), np.zeros(3)))
    >>> start.sigma, end.sigma
    (array([3., 2.]), array([2., 1.]))
    """
    return levels[:-1], levels[1:]


def check_alpha(levels: Level) -> None:
    """Raises ValueError if an alpha (not traced) is zero, where sigma / alpha is infinite."""
    alpha = concrete(levels.alpha)
    if alpha is not None and np.any(alpha == 0):
        raise ValueError(
            "this solver needs alpha > 0 at every level: sigma / alpha is infinite on pure noise; start at a level "
            "with a little signal, or use ddim, euler, heun or dpmpp_2m, which can start at alpha = 0"
        )
