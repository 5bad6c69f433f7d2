"""Grids that were optimised for published networks."""

from __future__ import annotations

import numpy as np

from diffusers_fn.grids.ratios import at_ratios
from diffusers_fn.grids.sources import Source, as_process, check_num_steps, ratio_at
from diffusers_fn.levels import Level

__all__ = ["STABLE_DIFFUSION", "STABLE_DIFFUSION_XL", "VIDEO", "align_your_steps"]

# sigma / alpha at the ten steps and at the end of sampling, as published with the paper at
# https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html
STABLE_DIFFUSION = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
STABLE_DIFFUSION_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
VIDEO = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def align_your_steps(
    num_steps: int, table: tuple[float, ...] = STABLE_DIFFUSION, *, schedule: Source | None = None
) -> Level:
    """Returns the levels of an optimised table, interpolated log-linearly for another number of steps.

    Sabour et al., "Align Your Steps: Optimizing Sampling Schedules in Diffusion Models", 2024,
    https://arxiv.org/abs/2404.14507. The tables STABLE_DIFFUSION (1.5), STABLE_DIFFUSION_XL and VIDEO (Stable Video
    Diffusion) hold ten steps and the end of sampling, which is not a level of a plan here: num_steps + 1 points are
    interpolated, with log(sigma) linear in the index, and the last one is dropped. The authors also publish ten
    timesteps, for `level_at`: 999, 850, 736, 645, 545, 455, 343, 233, 124, 24 for Stable Diffusion 1.5, and 999, 845,
    730, 587, 443, 310, 193, 116, 53, 13 for XL.

    Args:
      num_steps: N, the number of levels.
      table: decreasing values of sigma / alpha, with the end of sampling.
      schedule: the noise schedule or process that the network was trained on; a ratio that exceeds its range by
        rounding (14.615 if the noisiest level is at 14.6146) is moved into it. Without one, alpha = 1 and the label is
        log(sigma) / 4.

    Raises:
      ValueError: unless num_steps >= 1, or if the ratios leave the schedule's range.

    >>> align_your_steps(3).sigma.round(3)
    array([14.615,  2.394,  0.743])
    """
    check_num_steps(num_steps)
    points = np.linspace(0.0, len(table) - 1.0, num_steps + 1)[:-1]
    sigmas = np.exp(np.interp(points, np.arange(len(table)), np.log(table)))
    if schedule is not None:
        process = as_process(schedule)
        noisiest = ratio_at(process, process.t_max)
        sigmas = np.where((sigmas > noisiest) & (sigmas < 1.001 * noisiest), noisiest, sigmas)
    return at_ratios(sigmas, schedule)
