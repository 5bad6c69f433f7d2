"""The U-Net with options per resolution (diffusers' UNet2DModel), as in Ho et al. 2020.

    python -m experiments.train --config=configs/unet2d.py --workdir=runs/unet2d

    python -m experiments.train --config=configs/unet2d.py:cifar10 --workdir=runs/unet2d_cifar10 \
        --config.data.path=FOLDER_OF_PNG_OR_JPEG_FILES

DDPM, https://arxiv.org/abs/2006.11239. Variant `digits` (the default), class-conditional, 8x8 pixels, 0.8 million
parameters, trains in three and a half minutes on two busy CPU cores. A support vector machine trained on real digits
then recovers the class label of 98.8% of the guided samples (of held-out digits: 98.9%).

For accelerators, unconditional: `cifar10`, 32x32 pixels, 35.7 million parameters, and `lsun256`, 256x256, 113.7
million: the networks of ddpm_images.py with this family's field names, for weights published in its layout.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

LARGE = {
    "sampler": {"name": "ancestral", "num_inference_steps": 1000},
    "variance": "fixed_large",
    "evaluation": {"batch_size": 100},
}
TRAINING = {
    "lr_schedule": "constant",
    "warmup_steps": 5_000,
    "ema_decay": 0.9999,
    "sample_every": 10_000,
    "checkpoint_every": 5_000,
}
ONE_LEVEL = (False, False, False, False, True, False)

VARIANTS = {
    "digits": {
        "data": {"num_classes": 10},
        "backbone": {
            "name": "unet2d",
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "down_attention": (False, True),
            "up_attention": (False, True),
            "down_resample_block": True,
            "up_resample_block": True,
            "norm_groups": 8,
            "dropout": 0.1,
        },
        "sampler": {"name": "dpmpp_2m", "skip_type": "log_snr", "num_inference_steps": 25, "cfg_scale": 1.5},
        "training": {"num_steps": 1_000, "batch_size": 64, "ema_decay": 0.995},
    },
    "cifar10": {
        **LARGE,
        "data": {"name": "images", "shape": (32, 32, 3), "resize": "crop", "num_classes": 0, "flip": True},
        "backbone": {"name": "unet2d", "dropout": 0.1},
        "training": {**TRAINING, "num_steps": 800_000, "batch_size": 128, "learning_rate": 2e-4},
    },
    "lsun256": {
        **LARGE,
        "data": {"name": "images", "shape": (256, 256, 3), "resize": "crop", "num_classes": 0},
        "backbone": {
            "name": "unet2d",
            "channels": 128,
            "channel_multipliers": (1, 1, 2, 2, 4, 4),
            "down_attention": ONE_LEVEL,
            "up_attention": ONE_LEVEL,
        },
        "training": {**TRAINING, "num_steps": 1_200_000, "batch_size": 64, "learning_rate": 2e-5},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "digits"))
