"""ADM (Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233): digits, ImageNet at 64, 128 and 256 pixels.

    python -m experiments.train --config=configs/adm.py --workdir=runs/adm

    python -m experiments.train --config=configs/adm.py:imagenet64 --workdir=runs/imagenet64 \
        --config.data.path=FOLDER_WITH_ONE_FOLDER_PER_CLASS

Class-conditional. Variant `digits` (the default), 8x8 pixels, 0.8 million parameters, trains in five minutes on two
busy CPU cores. A support vector machine trained on real digits then recovers the class label of 99.6% of the guided
samples (of held-out digits: 98.9%).

For accelerators, the published sizes: `imagenet64` (296 million parameters), `imagenet128` (422 million) and
`imagenet256` (554 million), with FID 2.07, 5.91 and 10.94 in the paper. As published, they have no null class: only a
classifier can guide them. The paper's networks also learn the variance; here it is fixed, and the last convolution has
half the output channels.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

ADM = {
    "name": "unet",
    "scale_shift_norm": True,
    "resblock_updown": True,
    "time_cos_first": True,
    "time_freq_shift": 0.0,
    "downsample_padding": (1, 1),
    "norm_eps": 1e-5,
}


def imagenet(image_size: int, steps: int, batch_size: int, **fields: object) -> dict:
    """Returns the changes of a published size; 64 pixels have their own noise schedule and learning rate."""
    small = image_size == 64
    return {
        "data": {
            "name": "images",
            "shape": (image_size, image_size, 3),
            "resize": "crop",
            "num_classes": 1000,
            "flip": True,
        },
        "backbone": {
            **ADM,
            "head_dim": 64,
            "attention_resolutions": (32, 16, 8),
            "null_class": False,
            **fields,
        },
        "noise_schedule": {"beta_schedule": "cosine" if small else "linear"},
        "loss": {"label_dropout": 0.0},
        "sampler": {"name": "ancestral", "num_inference_steps": 250},
        "variance": "fixed_large",
        "training": {
            "optimizer": "adamw",
            "num_steps": steps,
            "batch_size": batch_size,
            "learning_rate": 3e-4 if small else 1e-4,
            "lr_schedule": "constant",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "ema_decay": 0.9999,
            "sample_every": 10_000,
            "checkpoint_every": 5_000,
        },
        "evaluation": {"batch_size": 50},
    }


VARIANTS = {
    "digits": {
        "data": {"num_classes": 10},
        "backbone": {
            **ADM,
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (4,),
            "head_dim": 32,
            "norm_groups": 8,
            "dropout": 0.1,
        },
        "sampler": {"name": "dpmpp_2m", "skip_type": "log_snr", "num_inference_steps": 25, "cfg_scale": 1.5},
        "training": {"num_steps": 1_000, "batch_size": 64, "ema_decay": 0.995},
    },
    "imagenet64": imagenet(
        64, 540_000, 2048, channels=192, channel_multipliers=(1, 2, 3, 4), num_res_blocks=3, dropout=0.1
    ),
    "imagenet128": imagenet(128, 4_360_000, 256, channels=256, channel_multipliers=(1, 1, 2, 3, 4)),
    "imagenet256": imagenet(256, 1_980_000, 256, channels=256, channel_multipliers=(1, 1, 2, 2, 4, 4)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "digits"))
