"""The steps of DDPM and DDIM on a noise schedule, one function each, named and written as in the papers.

They take a network's output, never the network. Whole sampling loops are `sample` with `solvers.ancestral` and
`solvers.ddim`; the tests compare every step here with a row of those solvers.
"""

from diffusers_fn.discrete.ddim import ddim_reverse_step, ddim_step, ddim_timesteps
from diffusers_fn.discrete.ddpm import MeanVariance, denoise_step, p_mean_variance, p_sample
from diffusers_fn.discrete.forward import (
    forward_diffusion,
    predict_noise_from_start,
    predict_start_from_noise,
    q_mean_variance,
    q_posterior_mean_variance,
    q_sample,
)

__all__ = [
    "MeanVariance",
    "ddim_reverse_step",
    "ddim_step",
    "ddim_timesteps",
    "denoise_step",
    "forward_diffusion",
    "p_mean_variance",
    "p_sample",
    "predict_noise_from_start",
    "predict_start_from_noise",
    "q_mean_variance",
    "q_posterior_mean_variance",
    "q_sample",
]


def __dir__() -> list[str]:
    return __all__
