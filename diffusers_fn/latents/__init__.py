"""Latent diffusion: the codec (encoder and decoder), its scale, and the losses of both training stages."""

from diffusers_fn.latents.calibration import calibrate, calibrate_codec
from diffusers_fn.latents.codec import Codec, in_chunks, make_codec, reparameterize, scale_latents, scaled
from diffusers_fn.latents.first_stage import autoencoder_loss, gaussian_nll, perceptual
from diffusers_fn.latents.second_stage import in_latent_space

__all__ = [
    "Codec",
    "autoencoder_loss",
    "calibrate",
    "calibrate_codec",
    "gaussian_nll",
    "in_chunks",
    "in_latent_space",
    "make_codec",
    "perceptual",
    "reparameterize",
    "scale_latents",
    "scaled",
]


def __dir__() -> list[str]:
    return __all__
