"""Networks: flax modules that see arrays only, called as net.apply(variables, x, t, cond, train=...)."""

from diffusers_fn.backbones.mlp import MLP
from diffusers_fn.backbones.unet import UNet

__all__ = ["MLP", "UNet"]
