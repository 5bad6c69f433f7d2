"""U-ViT (Bao et al. 2022, https://arxiv.org/abs/2209.12152): digits, CIFAR-10, ImageNet in pixels and in latents.

    python -m experiments.train --config=configs/uvit.py --workdir=runs/uvit

    python -m experiments.train --config=configs/uvit.py:cifar10 --workdir=runs/uvit_cifar10 \
        --config.data.path=FOLDER_OF_PNG_OR_JPEG_FILES

Variant `digits` (the default), class-conditional, 8x8 pixels in patches of 2, 0.6 million parameters, trains in five
minutes on two busy CPU cores. A support vector machine trained on real digits then recovers the class label of 97.2% of
the guided samples (of held-out digits: 98.9%); they are grainier than those of `dit.py`.

For accelerators, with the paper's learning rates and batches: `cifar10`, unconditional, U-ViT-S/2, 44 million
parameters (500,000 steps, FID 3.11); `imagenet64`, class-conditional, U-ViT-M/4, 131 million (300,000 steps, FID
5.85), without a null class; `l_2` and `h_2`, 287 and 501 million, on latents [32, 32, 4] of
256x256 pixels (an .npz with `images`, float latents times 0.18215, and `labels`; FID 3.40 and 2.29 with guidance).
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

M = {"hidden_size": 768, "depth": 16, "num_heads": 12}
L = {"hidden_size": 1024, "depth": 20, "num_heads": 16}
H = {"hidden_size": 1152, "depth": 28, "num_heads": 16, "conv_out": False}

LARGE = {
    "optimizer": "adamw",
    "learning_rate": 2e-4,
    "weight_decay": 0.03,
    "lr_schedule": "constant",
    "ema_decay": 0.9999,
    "grad_clip": 0.0,
    "sample_every": 10_000,
    "checkpoint_every": 5_000,
}
LATENTS: dict = {
    "data": {"name": "arrays", "shape": (32, 32, 4), "num_classes": 1000, "heldout_fraction": 0.01, "normalize": False},
    "noise_schedule": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "loss": {"label_dropout": 0.15},
    "sampler": {"name": "dpmpp_2m", "cfg_scale": 1.4},
    "training": {**LARGE, "num_steps": 300_000, "batch_size": 1024, "warmup_steps": 5_000},
    "evaluation": {"batch_size": 50},
}

VARIANTS = {
    "digits": {
        "data": {"num_classes": 10},
        "backbone": {
            "name": "uvit",
            "hidden_size": 96,
            "depth": 4,
            "num_heads": 4,
        },
        "parameterization": "v",  # gives more weight than epsilon to high noise, where the class matters most
        "sampler": {"name": "dpmpp_2m", "skip_type": "log_snr", "num_inference_steps": 25, "cfg_scale": 1.5},
        "training": {"num_steps": 2_000, "batch_size": 64, "ema_decay": 0.995},
    },
    "cifar10": {
        "data": {"name": "images", "shape": (32, 32, 3), "resize": "crop", "num_classes": 0, "flip": True},
        "backbone": {"name": "uvit"},
        "sampler": {"name": "ancestral", "num_inference_steps": 1000},
        "training": {**LARGE, "num_steps": 500_000, "batch_size": 128, "warmup_steps": 2_500},
        "evaluation": {"batch_size": 100},
    },
    "imagenet64": {
        "data": {"name": "images", "shape": (64, 64, 3), "resize": "crop", "num_classes": 1000, "flip": True},
        "backbone": {
            "name": "uvit",
            "patch_size": 4,
            "null_class": False,
            **M,
        },
        "loss": {"label_dropout": 0.0},
        "sampler": {"name": "dpmpp_2m"},
        "training": {**LARGE, "learning_rate": 3e-4, "num_steps": 300_000, "batch_size": 1024, "warmup_steps": 5_000},
        "evaluation": {"batch_size": 100},
    },
    "l_2": {**LATENTS, "backbone": {"name": "uvit", **L}},
    "h_2": {
        **LATENTS,
        "backbone": {"name": "uvit", **H},
        "training": {**LATENTS["training"], "num_steps": 500_000},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "digits"))
