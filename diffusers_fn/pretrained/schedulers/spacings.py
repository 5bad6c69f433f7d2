"""Timesteps and sigmas of a loop, with the arithmetic of the reference: ties, ends and drifts are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn.grids.times import beta_quantile
from diffusers_fn.pretrained.schedulers.kinds import Options

__all__ = [
    "NAMES",
    "exponential_sigmas",
    "flow_shifted",
    "given_timesteps",
    "karras_sigmas",
    "respaced",
    "stretched",
    "time_shifted",
    "timesteps_with_end",
    "timesteps_without_end",
    "trailing",
]

NAMES = ("linspace", "leading", "trailing")


def timesteps_with_end(options: Options, num_steps: int, *, fractional: bool = False) -> np.ndarray:
    """Returns N timesteps of which the last is (near) 0: DDPM, DDIM, PNDM and, fractional, the classes in sigma.

    >>> timesteps_with_end({"num_train_timesteps": 1000, "timestep_spacing": "leading", "steps_offset": 1}, 4)
    array([751., 501., 251.,   1.])
    """
    total, offset = options["num_train_timesteps"], options.get("steps_offset", 0)
    match options["timestep_spacing"]:
        case "linspace":
            steps = np.linspace(0, total - 1, num_steps)[::-1]
            return steps if fractional else steps.round()
        case "leading":
            return (np.arange(num_steps) * (total // num_steps))[::-1] + float(offset)
        case _:
            return trailing(total, total, num_steps)


def timesteps_without_end(options: Options, num_steps: int, last: int) -> np.ndarray:
    """Returns N timesteps of N + 1 spaced ones without the last, t = 0: DPM-Solver, UniPC, DEIS and SA-Solver.

    Args:
      options: timestep_spacing and steps_offset.
      num_steps: N.
      last: the number of timesteps up to the noisiest one in use.
    """
    match options.get("timestep_spacing", "linspace"):
        case "linspace":
            return np.linspace(0, last - 1, num_steps + 1).round()[::-1][:-1]
        case "leading":
            stride = last // (num_steps + 1)
            return (np.arange(num_steps + 1) * stride)[::-1][:-1] + float(options["steps_offset"])
        case _:
            return trailing(last, options["num_train_timesteps"], num_steps)


def trailing(last: int, total: int, num_steps: int) -> np.ndarray:
    """Returns round(last), round(last - total / N), ... less 1; without the step N + 1 (t = -1) that rounding may add.

    >>> trailing(1000, 1000, 3)
    array([999., 666., 332.])
    """
    return (np.arange(last, 0, -(total / num_steps)).round() - 1.0)[:num_steps]


def given_timesteps(run: Options, options: Options, num_steps: int) -> np.ndarray | None:
    """Returns the timesteps that `plan` was given, checked; None if it was given none."""
    if (timesteps := run.get("timesteps")) is None:
        return None
    timesteps = np.asarray(timesteps, np.float64)
    total = options["num_train_timesteps"]
    if timesteps.ndim != 1 or np.any(np.diff(timesteps) >= 0) or timesteps[0] >= total or timesteps[-1] < 0:
        raise ValueError(f"timesteps must be a descending list of numbers from {total - 1} to 0; got {timesteps}")
    if (used := [name for name in ("use_karras_sigmas", *_GRIDS, "use_lu_lambdas") if options.get(name)]) != []:
        raise ValueError(f"timesteps cannot be given with {used[0]}, which makes timesteps of its own")
    return timesteps


_GRIDS = ("use_exponential_sigmas", "use_beta_sigmas")


def respaced(options: Options, sigmas: np.ndarray, num_steps: int) -> np.ndarray | None:
    """Returns N sigmas between the ends of given ones, by use_karras_sigmas and others; None where none is set.

    sigma_min and sigma_max replace the ends in classes that have these options.
    """
    low = sigmas[-1] if (given := options.get("sigma_min")) is None else given
    high = sigmas[0] if (given := options.get("sigma_max")) is None else given
    if options.get("use_karras_sigmas"):
        return karras_sigmas(low, high, num_steps)
    if options.get("use_lu_lambdas") or options.get("use_exponential_sigmas"):
        return exponential_sigmas(low, high, num_steps)
    if options.get("use_beta_sigmas"):
        return low + (high - low) * beta_quantile(1.0 - np.linspace(0.0, 1.0, num_steps), 0.6, 0.6)
    return None


def karras_sigmas(low: float, high: float, ramp: Any, rho: float = 7.0) -> np.ndarray:
    """Returns Karras et al.'s sigmas, https://arxiv.org/abs/2206.00364, eq. 5; ramp: N, or [N] numbers in [0, 1].

    >>> karras_sigmas(0.002, 80.0, 3).round(4)
    array([8.0000e+01, 2.5152e+00, 2.0000e-03])
    """
    ramp = np.linspace(0.0, 1.0, ramp) if isinstance(ramp, int | np.integer) else np.asarray(ramp, np.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_sigmas(low: float, high: float, num_steps: int) -> np.ndarray:
    """Returns sigmas evenly spaced in their logarithm, from high to low.

    >>> exponential_sigmas(0.01, 100.0, 3)
    array([1.e+02, 1.e+00, 1.e-02])
    """
    return np.exp(np.linspace(np.log(high), np.log(low), num_steps))


def flow_shifted(sigmas: Any, shift: float) -> Any:
    """Returns shift sigma / (1 + (shift - 1) sigma): Esser et al. 2024, https://arxiv.org/abs/2403.03206, eq. 23.

    >>> flow_shifted(np.array([1.0, 0.5]), 3.0)
    array([1.  , 0.75])
    """
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def time_shifted(sigmas: np.ndarray, mu: float, kind: str) -> np.ndarray:
    """Returns the dynamic shift, by e^mu ("exponential") or mu ("linear") in place of a constant.

    >>> bool(np.isclose(time_shifted(np.array([0.5]), np.log(3.0), "exponential"), 0.75)[0])
    True
    """
    shift = np.exp(mu) if kind == "exponential" else mu
    return shift / (shift + (1.0 / sigmas - 1.0))


def stretched(sigmas: np.ndarray, terminal: float) -> np.ndarray:
    """Returns sigmas stretched so that the last one is `terminal`.

    >>> stretched(np.array([1.0, 0.5]), 0.1)
    array([1. , 0.1])
    """
    signal = 1.0 - sigmas
    return 1.0 - signal / (signal[-1] / (1.0 - terminal))
