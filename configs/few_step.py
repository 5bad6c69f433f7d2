"""Models that sample in one, two or four steps, on digits.

    python -m experiments.train --config=configs/few_step.py:mean_flow --workdir=runs/mean_flow
    python -m experiments.sample --config=configs/few_step.py:mean_flow --workdir=runs/mean_flow \\
        --config.sampler.num_inference_steps=1

Variants: `mean_flow` (the default, Geng et al. 2025, https://arxiv.org/abs/2505.13447), an average velocity between two
times, guidance learned by the network; `consistency` (Lu & Song 2024, https://arxiv.org/abs/2410.11081),
continuous-time consistency training. --config.sampler.num_inference_steps is 2; try 1 and 4.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.default import customise, default_config, pick

# The losses contain the derivative of the network by time: labels from 0 to 2, for with 1000 it is a thousand times as
# large, and so is its noise.
LABELS = 2

MLP = {"name": "mlp", "width": 256, "depth": 4, "num_classes": 10}
TRAINING = {"num_steps": 8_000, "batch_size": 128, "learning_rate": 1e-3, "ema_decay": 0.9995}

VARIANTS: dict[str, dict[str, Any]] = {
    "mean_flow": {
        "noise_schedule": {"process": "flow", "t_min": 1e-4, "noise_steps": LABELS},
        "backbone": MLP,
        "parameterization": "velocity",
        "loss": {"objective": "mean_flow", "guidance_scale": 1.25},
        "sampler": {"name": "jump", "skip_type": "trailing", "num_inference_steps": 2, "clip_denoised": False},
        "training": TRAINING,
    },
    "consistency": {
        "noise_schedule": {"process": "trigonometric", "t_max": 0.99, "noise_steps": LABELS},
        "backbone": MLP,
        "parameterization": "v",
        "loss": {"objective": "consistency"},
        "sampler": {"name": "lcm", "skip_type": "trailing", "num_inference_steps": 2, "cfg_scale": 1.2},
        "training": TRAINING,
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "mean_flow"))
