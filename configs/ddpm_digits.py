"""DDPM / DDIM of scikit-learn's 1,797 real handwritten digits, 8x8 pixels; the quick start.

    python -m experiments.train --config=configs/ddpm_digits.py --workdir=runs/digits

Variants:

- `mlp` (the default), class-conditional, a residual MLP on the 64 pixels: a minute on two CPU cores, after which a
  support vector machine trained on real digits recovers the class label of 99.8% of the guided samples;
- `self_conditioned`, the same with self-conditioning (Chen et al. 2022, https://arxiv.org/abs/2208.04202): 98.7% with
  a plain average (training.ema_warmup = "none"), with 50 sampler steps as well as with 100;
- `unconditional`, without labels;
- `unet`, class-conditional, a small UNet, slower on a CPU.

Sampled by DDIM with 100 steps; --config.sampler.name=ancestral is DDPM's own sampler.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

MLP = {"name": "mlp", "hidden_size": 256, "depth": 4, "dropout": 0.15}

VARIANTS = {
    "mlp": {"backbone": MLP},
    "self_conditioned": {"backbone": MLP, "self_conditioning": 1.0},
    "unconditional": {"backbone": {**MLP, "num_classes": 0}, "sampler": {"cfg_scale": 1.0}},
    "unet": {
        "backbone": {
            "name": "unet",
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (4,),
            "norm_groups": 8,
            "dropout": 0.1,
        },
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"num_classes": 10},
        sampler={"skip_type": "log_snr", "num_inference_steps": 100, "cfg_scale": 1.5},
        training={"num_steps": 3_000, "batch_size": 128},
    )
    return customise(config, **pick(VARIANTS, arg, "mlp"))
