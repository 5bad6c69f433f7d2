"""Score-based models in continuous time (Song et al. 2021, https://arxiv.org/abs/2011.13456), on digits.

    python -m experiments.train --config=configs/score_sde.py:vp --workdir=runs/score_vp

Variants: `ve` (the default), `vp`, `sub_vp`: the three processes of the paper. The network predicts the score times
sigma (parameterization epsilon, up to the sign), its time label is 1000 t, which for `ve` is linear in log sigma, and
its loss has the weight sigma^2 of denoising score matching. Sampled by the probability-flow ODE (Heun's method,
guidance scale 1.1). Other samplers, by name, with the same parameters:

    --config.sampler.name=reverse_diffusion --config.sampler.num_inference_steps=200    the reverse-time equation
    --config.sampler.name=euler_maruyama --config.sampler.num_inference_steps=200       the same, by the grid's times
    --config.sampler.name=predictor_corrector --config.sampler.num_inference_steps=200  Langevin steps between (snr,
                                                                                        num_corrector_steps)

`ve_score` predicts the score itself; --config.score_scaling multiplies the network's output. For `ve`, sigma_min and
sigma_max are fields of noise_schedule. `likelihood`: `vp` with the weight g^2 that bounds the likelihood (Song et al.
2021, https://arxiv.org/abs/2101.09258).
"""

from typing import Any

from ml_collections import ConfigDict

from configs.ddpm_digits import MLP
from diffusers_fn.from_config.defaults import customise, default_config, pick


def variant(process: str, **more: Any) -> dict[str, Any]:
    """Returns the changes for a process, updated by `more`, section by section."""
    section: dict[str, Any] = {
        "noise_schedule": {"process": process, "time_label": "step"},
        "data": {"num_classes": 10},
        "backbone": {**MLP, "dropout": 0.1},
        "loss": {"weight": "snr"},
        "scale_input": True,
        "sampler": {"name": "heun", "skip_type": "log_snr", "num_inference_steps": 30, "cfg_scale": 1.1},
        "training": {"num_steps": 10_000, "batch_size": 128},
    }
    for name, fields in more.items():
        section[name] = {**section[name], **fields} if isinstance(fields, dict) else fields
    return section


VE = {"sigma_min": 0.01, "sigma_max": 20.0}

VARIANTS = {
    "ve": variant("ve", noise_schedule=VE),
    "vp": variant("vp"),
    "sub_vp": variant("sub_vp"),
    "ve_score": variant("ve", noise_schedule=VE, parameterization="score"),
    "likelihood": variant("vp", loss={"weight": "likelihood"}),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "ve"))
