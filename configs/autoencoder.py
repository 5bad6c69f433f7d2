"""The first stage of latent diffusion (Rombach et al. 2021, https://arxiv.org/abs/2112.10752): an autoencoder.

    python -m experiments.train --config=configs/autoencoder.py --workdir=runs/autoencoder

The second stage is configs/latent.py; experiments.encode writes latents to disk. The picture shows originals above
their reconstructions.

Variants: `digits` (the default), dense layers and latents of 16 numbers: 15 seconds on two CPU cores, mean squared
error 0.020 on held-out digits (on training digits: 0.008); a support vector machine trained on real digits classifies
99% of the reconstructions correctly. `digits_kl`, a small convolutional network with latents of 4x4x2: three minutes,
error 0.022. For accelerators, `kl_f8`: the network of Stable Diffusion's autoencoder at 256 pixels, trained on
reconstruction error and KL divergence; the published one also had a perceptual and an adversarial loss.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

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
    "digits_kl": {
        "backbone": {
            "name": "autoencoder_kl",
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 2,
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "mid_attention": False,
            "norm_groups": 8,
        },
        "loss": {"kl_weight": 1e-2},
        "training": {"num_steps": 2_000, "batch_size": 64},
    },
    "kl_f8": {
        "data": {"name": "images", "shape": (256, 256, 3), "num_classes": 0, "resize": "crop", "flip": True},
        "backbone": {"name": "autoencoder_kl"},
        "loss": {"loss_type": "l1", "kl_weight": 1e-6},
        "training": {"num_steps": 400_000, "batch_size": 32, "learning_rate": 4.5e-6, "lr_schedule": "constant"},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(customise(default_config(), task="autoencoder"), **pick(VARIANTS, arg, "digits"))
