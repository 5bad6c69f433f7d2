"""Class-conditional DDPM of Fashion-MNIST: 60,000 photographs of garments, 28x28 pixels.

    apt-get install dataset-fashion-mnist
    python -m experiments.train --config=configs/ddpm_fashion_mnist.py --workdir=runs/fashion

Any folder with four files in MNIST's format works: --config.data.path=FOLDER. Variant `mlp` (the default) is a
residual MLP on the 784 pixels: recognisable garments after half an hour on two CPU cores. `unet` is a small UNet, for
an accelerator.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

VARIANTS = {
    "mlp": {
        "backbone": {"name": "mlp", "hidden_size": 1024, "depth": 4},
        # An MLP predicts the image more easily than 784 independent noise values.
        "parameterization": "x0",
        "loss": {"weight": "min_snr"},
        "training": {"num_steps": 10_000, "batch_size": 128, "learning_rate": 5e-4},
    },
    "unet": {
        "backbone": {
            "name": "unet",
            "channels": 64,
            "channel_multipliers": (1, 2, 2),
            "num_res_blocks": 2,
            "attention_resolutions": (14, 7),
        },
        "training": {"num_steps": 30_000, "batch_size": 128, "learning_rate": 3e-4},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "idx", "path": "/usr/share/datasets/fashion-mnist", "shape": (28, 28, 1), "num_classes": 10},
        sampler={"skip_type": "log_snr", "num_inference_steps": 100, "cfg_scale": 1.5},
    )
    return customise(config, **pick(VARIANTS, arg, "mlp"))
