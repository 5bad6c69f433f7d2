"""The networks of EDM (Karras et al. 2022, https://arxiv.org/abs/2206.00364): DDPM++, NCSN++ and ADM.

    python -m experiments.train --config=configs/edm_unets.py --workdir=runs/edm

    python -m experiments.train --config=configs/edm_unets.py:ddpmpp --workdir=runs/ddpmpp \
        --config.data.path=FOLDER_OF_PNG_OR_JPEG_FILES

EDM's preconditioning, weight and c_noise on DDPM's table of 1000 levels, whose sigma / alpha runs from 0.01 to 157.
Times are drawn so that log(sigma / alpha) is approximately normal with EDM's mean -1.2 and standard deviation 1.2.
Sampled by Heun's method on Karras's grid.

Variant `digits` (the default), class-conditional, a small DDPM++ on 8x8 pixels, 0.7 million parameters, trains in five
minutes on two busy CPU cores. A support vector machine trained on real digits then recovers the class label of 99.4% of
the guided samples (of held-out digits: 98.9%).

For accelerators: `ddpmpp` and `ncsnpp` (56 million parameters), unconditional, 32x32 pixels (the paper, on CIFAR-10:
FID 1.97 and 1.98 after 200 million images); `adm` (296 million), class-conditional, 64x64 pixels (ImageNet: FID 1.36
with a stochastic sampler after 2.5 billion images). The first two have the published inputs for augmentation labels,
which are zero here.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

CIFAR10 = {
    "data": {"name": "images", "shape": (32, 32, 3), "resize": "crop", "num_classes": 0, "flip": True},
    "training": {"num_steps": 400_000, "batch_size": 512, "learning_rate": 1e-3, "warmup_steps": 20_000},
}
SONG = {"name": "song_unet", "channel_multipliers": (2, 2, 2), "augment_dim": 9, "dropout": 0.13}

VARIANTS = {
    "digits": {
        "data": {"num_classes": 10},
        "backbone": {
            "name": "song_unet",
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (4,),
            "dropout": 0.1,
        },
        "sampler": {"num_inference_steps": 18, "cfg_scale": 1.5},
        "training": {
            "num_steps": 1_000,
            "batch_size": 64,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
            "sample_every": 1_000,
        },
    },
    "ddpmpp": {**CIFAR10, "backbone": SONG},
    "ncsnpp": {
        **CIFAR10,
        "backbone": {
            **SONG,
            "fourier_features": True,
            "feature_multiplier": 2,
            "input_pyramid": "residual",
            "resample_taps": (1, 3, 3, 1),
        },
    },
    "adm": {
        "data": {"name": "images", "shape": (64, 64, 3), "resize": "crop", "num_classes": 1000, "flip": True},
        "backbone": {"name": "dhariwal_unet", "dropout": 0.1},
        "training": {"num_steps": 600_000, "batch_size": 4096, "learning_rate": 1e-4, "warmup_steps": 2_500},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        noise_schedule={"time_label": "log_sigma"},
        parameterization="edm",
        loss={"weight": "edm", "time_sampler": "logit_normal", "logit_mean": -2.3, "logit_std": 1.2},
        sampler={"name": "heun", "skip_type": "karras", "num_inference_steps": 18},
        training={
            "lr_schedule": "constant",
            "ema_decay": 0.9999,
            "grad_clip": 1.0,
            "sample_every": 10_000,
            "checkpoint_every": 5_000,
        },
        evaluation={"batch_size": 100},
    )
    return customise(config, **pick(VARIANTS, arg, "digits"))
