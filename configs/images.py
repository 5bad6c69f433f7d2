"""Your own images in a folder: presets by picture size and machine.

    python -m experiments.train --config=configs/images.py:cpu32 --workdir=runs/mine --config.data.path=FOLDER

With one sub-folder per class, `--config.data.num_classes=NUMBER` makes the model class-conditional; its pictures then
have one row per class, and `--config.sampler.cfg_scale=1.5` guides them. `--config.data.shape="(48, 64, 3)"` is another
height and width, `(32, 32, 4)` RGBA. Pictures of another size are cropped in the middle and resized: data.resize.

EDM's preconditioning, loss weight and sampler (Karras et al. 2022, https://arxiv.org/abs/2206.00364) on the UNet of
`backbones.UNet`. Noise levels are drawn as for small pictures; larger ones get more noise.

| preset | pixels | parameters | batches | time |
|---|---|---|---|---|
| `cpu32` (the default) | 32 x 32 | 3.6 million | 3,600 of 16 | half an hour on two CPU cores |
| `cpu64` | 64 x 64 | 3.6 million | 8,000 of 16 | six hours on two CPU cores (estimate) |
| `gpu32` | 32 x 32 | 38 million | 100,000 of 128 | one hour on one GPU (estimate) |
| `gpu64` | 64 x 64 | 92 million | 150,000 of 128 | five hours on one GPU (estimate) |
| `gpu128` | 128 x 128 | 95 million | 200,000 of 64 | five hours on one GPU (estimate) |

The estimates are FLOPs at 25 GFLOP/s on the CPU and at 100 TFLOP/s in bfloat16 on a GPU; only `cpu32` has been run. For
larger pictures train in latents: configs/latent.py.
"""

from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

SMALL: dict[str, Any] = {
    "name": "unet",
    "channels": 32,
    "channel_multipliers": (1, 2, 3, 4),
    "num_res_blocks": 1,
    "attention_resolutions": (),  # one attention, in the middle
    "scale_shift_norm": True,
    "norm_groups": 8,
}
LARGE: dict[str, Any] = {"name": "unet", "scale_shift_norm": True, "head_dim": 64, "dropout": 0.1, "dtype": "bfloat16"}

VARIANTS: dict[str, Any] = {
    "cpu32": {
        "data": {"shape": (32, 32, 3)},
        "backbone": SMALL,
        "training": {"num_steps": 3_600, "batch_size": 16, "learning_rate": 8e-4, "ema_decay": 0.995,
                     "sample_every": 400, "checkpoint_every": 200, "heldout_every": 400},
    },
    "cpu64": {
        "data": {"shape": (64, 64, 3)},
        "backbone": {**SMALL, "dropout": 0.1},
        "loss": {"log_sigma_mean": -0.4},
        "training": {"num_steps": 8_000, "batch_size": 16, "learning_rate": 5e-4, "ema_decay": 0.998,
                     "sample_every": 500, "checkpoint_every": 250, "heldout_every": 500},
    },
    "gpu32": {
        "data": {"shape": (32, 32, 3)},
        "backbone": {**LARGE, "attention_resolutions": (16,)},
        "training": {"num_steps": 100_000, "batch_size": 128, "learning_rate": 2e-4, "ema_decay": 0.9999},
    },
    "gpu64": {
        "data": {"shape": (64, 64, 3)},
        "backbone": {**LARGE, "channel_multipliers": (1, 2, 3, 4), "attention_resolutions": (16, 8)},
        "loss": {"log_sigma_mean": -0.4},
        "training": {"num_steps": 150_000, "batch_size": 128, "learning_rate": 2e-4, "ema_decay": 0.9999},
    },
    "gpu128": {
        "data": {"shape": (128, 128, 3)},
        "backbone": {**LARGE, "channel_multipliers": (1, 1, 2, 3, 4), "attention_resolutions": (16, 8), "remat": True},
        "loss": {"log_sigma_mean": 0.0},
        "training": {"num_steps": 200_000, "batch_size": 64, "learning_rate": 1e-4, "ema_decay": 0.9999},
    },
}  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "images", "num_classes": 0, "resize": "crop", "flip": True, "heldout_fraction": 0.05},
        noise_schedule={"process": "edm", "time_label": "log_sigma"},
        parameterization="edm",
        loss={"weight": "edm", "time_sampler": "log_normal", "log_sigma_mean": -0.8, "log_sigma_std": 1.4},
        sampler={"name": "heun", "skip_type": "karras", "num_inference_steps": 18},
        training={"sample_every": 5_000, "checkpoint_every": 2_500, "heldout_every": 2_500},
        evaluation={"batch_size": 100},
    )
    return customise(config, **pick(VARIANTS, arg, "cpu32"))
