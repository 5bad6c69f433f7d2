"""Grids: the noise levels of a sampling plan, from the noisiest down to the last noisy one.

Each function returns Level[N] in float64 on the host (the grids of timesteps can also be traced, with the schedule). A
plan stops at the last noisy level: the step to sigma = 0 is the final denoise of `sample`, for every solver. For any
other plan, call a process with your own times, or `at_ratios` with your own values of sigma / alpha.
"""

from diffusers_fn.grids.align_your_steps import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, VIDEO, align_your_steps
from diffusers_fn.grids.ratios import at_ratios, cosine, exponential, karras, polyexponential
from diffusers_fn.grids.times import beta, power_t, uniform_log_snr, uniform_t
from diffusers_fn.grids.timesteps import drop_last, leading, linspace, quadratic, round_labels, snap, trailing

__all__ = [
    "STABLE_DIFFUSION",
    "STABLE_DIFFUSION_XL",
    "VIDEO",
    "align_your_steps",
    "at_ratios",
    "beta",
    "cosine",
    "drop_last",
    "exponential",
    "karras",
    "leading",
    "linspace",
    "polyexponential",
    "power_t",
    "quadratic",
    "round_labels",
    "snap",
    "trailing",
    "uniform_log_snr",
    "uniform_t",
]


def __dir__() -> list[str]:
    return __all__
