"""Unconditional DDPM with the networks of Ho et al. 2020 (https://arxiv.org/abs/2006.11239, appendix B) on a folder.

    python -m experiments.train --config=configs/ddpm_images.py:cifar10 --workdir=runs/cifar10 \
        --config.data.path=FOLDER_OF_PNG_OR_JPEG_FILES

Variants: `cifar10` (the default), 32x32 pixels, 35.7 million parameters (the paper: 800,000 steps, FID 3.17 with its
1000-step ancestral sampler), and `lsun256`, 256x256 pixels, 113.7 million. Both need accelerators; learning rate,
dropout and EMA are the paper's.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

VARIANTS = {
    "cifar10": {
        "data": {"shape": (32, 32, 3), "resize": "crop", "flip": True},
        "backbone": {"name": "unet", "dropout": 0.1},
        "training": {"num_steps": 800_000, "batch_size": 128, "learning_rate": 2e-4},
    },
    "lsun256": {
        "data": {"shape": (256, 256, 3), "resize": "crop"},
        "backbone": {"name": "unet", "channel_multipliers": (1, 1, 2, 2, 4, 4)},
        "training": {"num_steps": 1_200_000, "batch_size": 64, "learning_rate": 2e-5},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "images", "num_classes": 0},
        sampler={"name": "ancestral", "num_inference_steps": 1000},
        variance="fixed_large",
        training={
            "lr_schedule": "constant",
            "warmup_steps": 5_000,
            "ema_decay": 0.9999,
            "sample_every": 10_000,
            "checkpoint_every": 5_000,
        },
        evaluation={"batch_size": 100},
    )
    return customise(config, **pick(VARIANTS, arg, "cifar10"))
