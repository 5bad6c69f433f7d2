"""Grids in the noise-to-data ratio sigma / alpha, called sigma here as in the papers with alpha = 1.

They take the ends sigma_min and sigma_max, and a `schedule`: a noise schedule or a process. The levels are those
of the schedule, and its ends are the defaults. Without a schedule they are EDM's: alpha = 1, sigma from 80 to
0.002, and the label log(sigma) / 4.
"""

from __future__ import annotations

import numpy as np

from diffusers_fn._types import ArrayLike
from diffusers_fn.grids.sources import Source, as_process, check_num_steps, ratio_at
from diffusers_fn.levels import Level
from diffusers_fn.processes import at_log_snr, edm

__all__ = ["at_ratios", "cosine", "exponential", "karras", "polyexponential"]


def at_ratios(sigmas: ArrayLike, schedule: Source | None = None) -> Level:
    """Returns the levels at given values of sigma / alpha [N], noisiest first.

    Args:
      sigmas: [N], positive and decreasing.
      schedule: the noise schedule or process of the levels; without one alpha = 1 and the label is log(sigma) / 4.

    Raises:
      ValueError: if the values do not decrease, are not positive or leave the range of the schedule.

    >>> at_ratios([4.0, 1.0]).sigma
    array([4., 1.])
    """
    sigmas = np.asarray(sigmas, np.float64)
    if sigmas.ndim != 1 or sigmas.size == 0 or not np.all(sigmas > 0) or np.any(np.diff(sigmas) >= 0):
        raise ValueError(f"sigmas must be a decreasing list of positive numbers, without the final 0; got {sigmas}")
    if schedule is None:
        return edm()(sigmas)
    return at_log_snr(as_process(schedule), -2.0 * np.log(sigmas))


def karras(
    num_steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    *,
    schedule: Source | None = None,
) -> Level:
    """Returns EDM's levels, evenly spaced in sigma^(1/rho) from sigma_max to sigma_min.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, eq. 5. With a schedule, the grid is in its sigma / alpha; the
    levels of a noise schedule are labelled by fractional timesteps (interpolated in log SNR).

    Raises:
      ValueError: unless num_steps >= 1 and 0 < sigma_min < sigma_max and rho > 0; with a schedule, if the grid
        leaves the schedule's range of sigma / alpha.

    >>> karras(3).sigma.round(4)
    array([8.0000e+01, 2.5152e+00, 2.0000e-03])
    """
    if not rho > 0:
        raise ValueError(f"karras needs rho > 0; got {rho}")
    sigma_max, sigma_min = _ends("karras", num_steps, sigma_min, sigma_max, schedule)
    return at_ratios(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps) ** rho, schedule)


def exponential(
    num_steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    schedule: Source | None = None,
) -> Level:
    """Returns levels evenly spaced in log(sigma), from sigma_max to sigma_min.

    It is the limit of `karras` for large rho, and equal to `uniform_log_snr` on the schedule.

    Raises:
      ValueError: as `karras`.

    >>> exponential(3, 0.01, 100.0).sigma.round(6)
    array([1.e+02, 1.e+00, 1.e-02])
    """
    return polyexponential(num_steps, sigma_min, sigma_max, 1.0, schedule=schedule)


def polyexponential(
    num_steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 1.0,
    *,
    schedule: Source | None = None,
) -> Level:
    """Returns levels with log(sigma) = log(sigma_min) + u^rho log(sigma_max / sigma_min), u evenly spaced from 1 to 0.

    rho = 1 is `exponential`; a larger rho is denser near the data. The name is from K. Crowson's k-diffusion,
    https://github.com/crowsonkb/k-diffusion.

    Raises:
      ValueError: as `karras`.

    >>> polyexponential(3, 0.01, 100.0, 2.0).sigma.round(6)
    array([1.e+02, 1.e-01, 1.e-02])
    """
    if not rho > 0:
        raise ValueError(f"polyexponential needs rho > 0; got {rho}")
    sigma_max, sigma_min = _ends("polyexponential", num_steps, sigma_min, sigma_max, schedule)
    u = np.linspace(1.0, 0.0, num_steps) ** rho
    return at_ratios(np.exp(np.log(sigma_min) + u * (np.log(sigma_max) - np.log(sigma_min))), schedule)


def cosine(
    num_steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    schedule: Source | None = None,
) -> Level:
    """Returns levels evenly spaced in the angle arctan(sigma), the time of the cosine schedule.

    alpha = cos(angle), sigma = sin(angle) on the circle: Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672,
    eq. 17, with s = 0.

    Raises:
      ValueError: as `karras`.

    >>> cosine(3, 0.5, 2.0).sigma.round(6)
    array([2. , 1. , 0.5])
    """
    sigma_max, sigma_min = _ends("cosine", num_steps, sigma_min, sigma_max, schedule)
    return at_ratios(np.tan(np.linspace(np.arctan(sigma_max), np.arctan(sigma_min), num_steps)), schedule)


def _ends(
    name: str, num_steps: int, sigma_min: float | None, sigma_max: float | None, schedule: Source | None
) -> tuple[float, float]:
    """Returns (sigma_max, sigma_min), by default those of the schedule."""
    check_num_steps(num_steps)
    process = edm() if schedule is None else as_process(schedule)
    if sigma_min is None:
        sigma_min = float(ratio_at(process, process.t_min))
    if sigma_max is None:
        sigma_max = float(ratio_at(process, process.t_max))
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"{name} needs 0 < sigma_min < sigma_max < inf; got {sigma_min} and {sigma_max}")
    return sigma_max, sigma_min
