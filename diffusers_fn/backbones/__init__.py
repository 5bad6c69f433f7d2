"""Networks: flax modules of arrays alone, called as net.apply(variables, x, t, cond, train=...)."""

from diffusers_fn.backbones import controlnet, diagonal_gaussian, ops, tiling
from diffusers_fn.backbones.autoencoder_kl import AutoencoderKL
from diffusers_fn.backbones.class_context import ClassContext
from diffusers_fn.backbones.classifier import Classifier
from diffusers_fn.backbones.clip_text import ClipTextEncoder
from diffusers_fn.backbones.controlnet import ControlNet
from diffusers_fn.backbones.dhariwal_unet import DhariwalUNet
from diffusers_fn.backbones.dit import DiT
from diffusers_fn.backbones.flux import Flux
from diffusers_fn.backbones.mlp import MLP
from diffusers_fn.backbones.mlp_classifier import MLPClassifier
from diffusers_fn.backbones.mmdit import MMDiT
from diffusers_fn.backbones.pixart import PixArt
from diffusers_fn.backbones.placement import batches_split
from diffusers_fn.backbones.scans import stack_blocks, unstack_blocks
from diffusers_fn.backbones.self_conditioned import SelfConditioned
from diffusers_fn.backbones.simple_autoencoder import SimpleAutoencoder, SimpleDecoder, SimpleEncoder
from diffusers_fn.backbones.song_unet import SongUNet
from diffusers_fn.backbones.super_resolution import SuperResolution
from diffusers_fn.backbones.t5 import T5Encoder
from diffusers_fn.backbones.text_context import TextContext
from diffusers_fn.backbones.two_time_conditioned import TwoTimeConditioned
from diffusers_fn.backbones.unet import UNet
from diffusers_fn.backbones.unet1d import UNet1D
from diffusers_fn.backbones.unet2d import UNet2D
from diffusers_fn.backbones.unet2d_condition import UNet2DCondition
from diffusers_fn.backbones.uvit import UViT

__all__ = [
    "MLP",
    "AutoencoderKL",
    "ClassContext",
    "Classifier",
    "ClipTextEncoder",
    "ControlNet",
    "DhariwalUNet",
    "DiT",
    "Flux",
    "MLPClassifier",
    "MMDiT",
    "PixArt",
    "SelfConditioned",
    "SimpleAutoencoder",
    "SimpleDecoder",
    "SimpleEncoder",
    "SongUNet",
    "SuperResolution",
    "T5Encoder",
    "TextContext",
    "TwoTimeConditioned",
    "UNet",
    "UNet1D",
    "UNet2D",
    "UNet2DCondition",
    "UViT",
    "batches_split",
    "controlnet",
    "diagonal_gaussian",
    "ops",
    "stack_blocks",
    "tiling",
    "unstack_blocks",
]


def __dir__() -> list[str]:
    return __all__
