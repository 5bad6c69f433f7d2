"""Class-conditional diffusion of scikit-learn's 8x8 handwritten digits.

    python -m experiments.train --config=configs/digits.py --workdir=runs/digits

The quick start: variant `mlp`, a residual MLP on the 64 pixels. Variant `unet` learns the same with a small UNet.
"""

from ml_collections import ConfigDict

from configs.default import customise, default_config, pick

VARIANTS = {
    "mlp": {
        "backbone": {"name": "mlp", "width": 256, "depth": 4, "num_classes": 10, "dropout": 0.15},
        "training": {"num_steps": 3_000, "batch_size": 128},
    },
    "unet": {
        "backbone": {
            "name": "unet",
            "image_size": 8,
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (4,),
            "norm_groups": 8,
            "num_classes": 10,
        },
        "training": {"num_steps": 5_000, "batch_size": 128},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(), sampler={"skip_type": "log_snr", "num_inference_steps": 100, "cfg_scale": 1.75}
    )
    return customise(config, **pick(VARIANTS, arg, "mlp"))
