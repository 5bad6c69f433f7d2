"""EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364) on digits: preconditioning, log-normal sigma, Heun.

    python -m experiments.train --config=configs/edm.py --workdir=runs/edm

Variants: `digits` (the default), the preconditioned network F with its loss weight, log sigma drawn from a normal
distribution, and Heun's method on the paper's grid; `stochastic`, the same network with the paper's stochastic sampler
and its --config.sampler.s_churn, s_min, s_max and s_noise. The networks of the paper are in configs/edm_unets.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ddpm_digits import MLP
from diffusers_fn.from_config.defaults import customise, default_config, pick

DIGITS: dict[str, Any] = {
    "noise_schedule": {"process": "edm", "time_label": "log_sigma"},
    "data": {"num_classes": 10},
    "backbone": MLP,
    "parameterization": "edm",
    "sigma_data": 0.75,  # of the digits' pixels
    "loss": {"time_sampler": "log_normal", "log_sigma_mean": -0.4, "log_sigma_std": 1.2},
    "sampler": {"name": "heun", "skip_type": "karras", "num_inference_steps": 18, "cfg_scale": 1.0,
                "clip_denoised": False},
    "training": {"num_steps": 4_000, "batch_size": 128},
}  # fmt: skip

VARIANTS = {
    "digits": DIGITS,
    "stochastic": {
        **DIGITS,
        "sampler": {**DIGITS["sampler"], "name": "heun_churn", "num_inference_steps": 64, "s_churn": 20.0,
                    "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003},
    },
}  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "digits"))
