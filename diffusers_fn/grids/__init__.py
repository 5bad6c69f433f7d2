"""Grids: which noise levels a sampler visits, from the noisiest down to the last noisy one.

Each function returns Level[N] in float64 on the host (those that step through timesteps also trace, where the schedule
is traced). A plan stops at the last noisy level: the hop into sigma = 0 is the final denoise of `sample`, whatever the
solver. Any other plan is a process called with times of your own, or `at_ratios` with values of sigma / alpha.
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
