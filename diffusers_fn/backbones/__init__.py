"""Networks: flax modules that see arrays only, called as net.apply(variables, x, t, cond, train=...)."""

from diffusers_fn.backbones.classifier import Classifier
from diffusers_fn.backbones.clip_text import ClipTextEncoder
from diffusers_fn.backbones.dhariwal_unet import DhariwalUNet
from diffusers_fn.backbones.mlp import MLP
from diffusers_fn.backbones.song_unet import SongUNet
from diffusers_fn.backbones.super_resolution import SuperResolution
from diffusers_fn.backbones.unet import UNet
from diffusers_fn.backbones.unet2d import UNet2D
from diffusers_fn.backbones.unet2d_condition import UNet2DCondition

__all__ = [
    "MLP",
    "Classifier",
    "ClipTextEncoder",
    "DhariwalUNet",
    "SongUNet",
    "SuperResolution",
    "UNet",
    "UNet2D",
    "UNet2DCondition",
]
