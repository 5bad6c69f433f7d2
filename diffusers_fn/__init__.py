"""Functional, stateless JAX toolkit for diffusion models.

Every Gaussian diffusion here is x = alpha * x0 + sigma * eps; the pair (alpha, sigma) with the network's time label
is a noise level. Schedules and grids make levels, parameterizations define what a network's output means, solvers are
tables of numbers over levels, and `sample` runs them in one scan.
"""

import importlib
import typing

from diffusers_fn import grids, guidance, losses, parameterizations, processes, solvers
from diffusers_fn.denoisers import (
    Denoiser,
    Transform,
    bind,
    chain,
    clip_x0,
    dynamic_threshold,
    make_denoiser,
    map_x0,
    score,
)
from diffusers_fn.discrete import (
    MeanVariance,
    ddim_reverse_step,
    ddim_step,
    ddim_timesteps,
    denoise_step,
    forward_diffusion,
    p_mean_variance,
    p_sample,
    predict_noise_from_start,
    predict_start_from_noise,
    q_mean_variance,
    q_posterior_mean_variance,
    q_sample,
)
from diffusers_fn.edict import Coupled, couple, invert_coupled, sample_coupled
from diffusers_fn.editing import img2img, inpaint, replace_x0, slerp
from diffusers_fn.guidance import apply_guidance, cosine_guidance_schedule, linear_guidance_schedule
from diffusers_fn.inversion import invert, invert_implicit
from diffusers_fn.levels import Level, add_noise, append, log_snr, posterior, transition
from diffusers_fn.noise_schedules import (
    NoiseSchedule,
    cosine_betas,
    exponential_betas,
    laplace_betas,
    level_at,
    linear_betas,
    make_noise_schedule,
    quadratic_betas,
    respace,
    scaled_linear_betas,
    sigmoid_betas,
    sqrt_betas,
    zero_terminal_snr,
)
from diffusers_fn.parameterizations import Parameterization, Prediction, target, to_prediction
from diffusers_fn.sampling import Samples, python_scan, sample, while_scan
from diffusers_fn.solvers import Solver, start_level
from diffusers_fn.variances import Variance, fixed_large, fixed_small, learned, learned_range

# Families that many programs do without, and all that imports the networks, are imported on first use: together they
# would double the time of this import.
if typing.TYPE_CHECKING:
    from diffusers_fn import backbones, few_step, latents, likelihood, oracles, pretrained, text, training
    from diffusers_fn.from_config.autoencoder import Autoencoder, build_autoencoder
    from diffusers_fn.from_config.classifier import NoisyClassifier, build_classifier
    from diffusers_fn.from_config.defaults import customise, default_config, pick
    from diffusers_fn.from_config.diffusion import Diffusion, build, build_denoiser, build_objective
    from diffusers_fn.from_config.objectives import Objective

__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "Coupled",
    "Denoiser",
    "Diffusion",
    "Level",
    "MeanVariance",
    "NoiseSchedule",
    "NoisyClassifier",
    "Objective",
    "Parameterization",
    "Prediction",
    "Samples",
    "Solver",
    "Transform",
    "Variance",
    "add_noise",
    "append",
    "apply_guidance",
    "backbones",
    "bind",
    "build",
    "build_autoencoder",
    "build_classifier",
    "build_denoiser",
    "build_objective",
    "chain",
    "clip_x0",
    "cosine_betas",
    "cosine_guidance_schedule",
    "couple",
    "customise",
    "ddim_reverse_step",
    "ddim_step",
    "ddim_timesteps",
    "default_config",
    "denoise_step",
    "dynamic_threshold",
    "exponential_betas",
    "few_step",
    "fixed_large",
    "fixed_small",
    "forward_diffusion",
    "grids",
    "guidance",
    "img2img",
    "inpaint",
    "invert",
    "invert_coupled",
    "invert_implicit",
    "laplace_betas",
    "latents",
    "learned",
    "learned_range",
    "level_at",
    "likelihood",
    "linear_betas",
    "linear_guidance_schedule",
    "log_snr",
    "losses",
    "make_denoiser",
    "make_noise_schedule",
    "map_x0",
    "oracles",
    "p_mean_variance",
    "p_sample",
    "parameterizations",
    "pick",
    "posterior",
    "predict_noise_from_start",
    "predict_start_from_noise",
    "pretrained",
    "processes",
    "python_scan",
    "q_mean_variance",
    "q_posterior_mean_variance",
    "q_sample",
    "quadratic_betas",
    "replace_x0",
    "respace",
    "sample",
    "sample_coupled",
    "scaled_linear_betas",
    "score",
    "sigmoid_betas",
    "slerp",
    "solvers",
    "sqrt_betas",
    "start_level",
    "target",
    "text",
    "to_prediction",
    "training",
    "transition",
    "while_scan",
    "zero_terminal_snr",
]

# Name -> the module that it is imported from on first use; None for a module of its own.
_ON_FIRST_USE = {
    "Autoencoder": "from_config.autoencoder",
    "Diffusion": "from_config.diffusion",
    "NoisyClassifier": "from_config.classifier",
    "Objective": "from_config.objectives",
    "backbones": None,
    "build": "from_config.diffusion",
    "build_autoencoder": "from_config.autoencoder",
    "build_classifier": "from_config.classifier",
    "build_denoiser": "from_config.diffusion",
    "build_objective": "from_config.diffusion",
    "customise": "from_config.defaults",
    "default_config": "from_config.defaults",
    "few_step": None,
    "latents": None,
    "likelihood": None,
    "oracles": None,
    "pick": "from_config.defaults",
    "pretrained": None,
    "text": None,
    "training": None,
}


if not typing.TYPE_CHECKING:  # to a type checker every name would exist

    def __getattr__(name: str) -> typing.Any:
        if name not in _ON_FIRST_USE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name] or name}")
        globals()[name] = getattr(module, name) if _ON_FIRST_USE[name] else module
        return globals()[name]


def __dir__() -> list[str]:
    return __all__
