"""Models that sample in one, two or four evaluations of the network, on digits.

    python -m experiments.train --config=configs/few_step.py:mean_flow --workdir=runs/mean_flow
    python -m experiments.sample --config=configs/few_step.py:mean_flow --workdir=runs/mean_flow \\
        --config.sampler.num_inference_steps=1

Variants: `mean_flow` (the default; Geng et al. 2025, https://arxiv.org/abs/2505.13447), the average velocity between
two times, 45 seconds on two CPU cores; `consistency` (Lu & Song 2024, https://arxiv.org/abs/2410.11081), training in
continuous time, 100 seconds. Both are class-conditional, without guidance, residual MLPs on the 64 pixels. Afterwards,
of 2,000 samples in 1, 2 and 4 evaluations each, a support vector machine trained on real digits reads the class that
was asked for in 99.4%, 99.7% and 99.7% (mean_flow) and 98.4%, 97.9% and 98.3% (consistency), with recall 0.78, 0.82,
0.81 and 0.82, 0.84, 0.78; held-out digits have 98.9% and 0.95. Mean flows learn guidance with
--config.loss.guidance_scale, at no cost in sampling; a consistency model takes --config.sampler.cfg_scale, at twice the
evaluations: with 1.25 it is 99.8% and 99.6% in one and two steps, with recall 0.78 and 0.84.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.default import customise, default_config, pick

# The losses contain the derivative of the network by its time label: the label is t itself, in [0, 1]. Told 1000 t, the
# derivative is a thousand times as large, and so is its noise.
LABELS = 1

MLP = {"name": "mlp", "hidden_size": 256, "depth": 4, "num_classes": 10}
TRAINING = {"batch_size": 128, "learning_rate": 1e-3, "ema_decay": 0.9995}
# A prediction of x0 on the way is not the last word: clipped, the samples of more steps are less varied.
SAMPLER = {"skip_type": "trailing", "num_inference_steps": 2, "clip_denoised": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "mean_flow": {
        "noise_schedule": {"process": "flow", "noise_steps": LABELS},
        "backbone": MLP,
        "parameterization": "velocity",
        "loss": {"objective": "mean_flow", "time_sampler": "logit_normal", "logit_mean": -0.4, "logit_std": 1.4},
        "sampler": {"name": "jump", **SAMPLER},
        "training": {**TRAINING, "num_steps": 8_000},
    },
    "consistency": {
        "noise_schedule": {"process": "trigonometric", "noise_steps": LABELS},
        "backbone": MLP,
        "parameterization": "v",
        "loss": {"objective": "consistency", "time_sampler": "log_normal", "log_sigma_mean": 0.4, "log_sigma_std": 1.4},
        "sampler": {"name": "lcm", **SAMPLER},
        "training": {**TRAINING, "num_steps": 20_000},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "mean_flow"))
