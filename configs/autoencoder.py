"""The first stage of latent diffusion (Rombach et al. 2021, https://arxiv.org/abs/2112.10752): an autoencoder.

    python -m experiments.train --config=configs/autoencoder.py --workdir=runs/autoencoder

Then configs/latent.py. Variants: `digits` (the default), dense layers and latents of 16 numbers; `kl_f8`, the
autoencoder of Stable Diffusion for images of 256 pixels. The picture has originals above their reconstructions.
"""

from ml_collections import ConfigDict

from configs.default import customise, default_config, pick

VARIANTS = {
    "digits": {
        "backbone": {
            "name": "simple_autoencoder",
            "latent_dim": 16,
            "encoder_hidden_dims": (256, 256),
            "decoder_hidden_dims": (256, 256),
        },
        "loss": {"kl_weight": 1e-2},
        "training": {"num_steps": 6_000, "batch_size": 128},
    },
    "kl_f8": {
        "data": {"name": "images", "shape": (256, 256, 3), "num_classes": 0, "image_size": 256, "flip": True},
        "backbone": {"name": "autoencoder_kl"},
        "loss": {"loss_type": "l1", "kl_weight": 1e-6},
        "training": {"num_steps": 400_000, "batch_size": 32, "learning_rate": 4.5e-6, "lr_schedule": "constant"},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(customise(default_config(), task="autoencoder"), **pick(VARIANTS, arg, "digits"))
