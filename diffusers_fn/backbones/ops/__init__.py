"""The layers of the networks: flax's, computed in the way that suits the platform.

They take the arguments of the layers of the same names in `flax.linen`, have the same parameters, and may be mixed with
them. Three things differ:

- Normalisations, activations and `modulate` return lazy arrays, which the next `Conv` or `Dense` computes together with
  its own product. `array` computes a lazy array for any other use, as in `x + array(norm(x))`.
- On a CPU, convolutions and attention are matrix products, chosen by size.
- `ConvNetwork` has the field native_conv, which selects XLA's convolution on a CPU, too.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> class Block(nn.Module):
...     @nn.compact
...     def __call__(self, x):
...         h = silu(GroupNorm(num_groups=2)(x))
...         return x + Conv(x.shape[-1], (3, 3))(h)
>>> jax.eval_shape(Block().init_with_output, jax.random.key(0), jnp.ones([1, 8, 8, 4]))[0].shape
(1, 8, 8, 4)
"""

from diffusers_fn.backbones.ops.activations import (
    ACTIVATIONS,
    Activation,
    activation,
    exact_gelu,
    quick_gelu,
    tanh_gelu,
)
from diffusers_fn.backbones.ops.attention import dot_product_attention
from diffusers_fn.backbones.ops.conv import Conv
from diffusers_fn.backbones.ops.dense import Dense, DenseGeneral
from diffusers_fn.backbones.ops.dropout import Dropout
from diffusers_fn.backbones.ops.embed import Embed, take_rows
from diffusers_fn.backbones.ops.lazy import Lazy, array, gelu, lazily, modulate, silu
from diffusers_fn.backbones.ops.network import ConvNetwork, Module
from diffusers_fn.backbones.ops.norms import GroupNorm, LayerNorm, RMSNorm

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Conv",
    "ConvNetwork",
    "Dense",
    "DenseGeneral",
    "Dropout",
    "Embed",
    "GroupNorm",
    "LayerNorm",
    "Lazy",
    "Module",
    "RMSNorm",
    "activation",
    "array",
    "dot_product_attention",
    "exact_gelu",
    "gelu",
    "lazily",
    "modulate",
    "quick_gelu",
    "silu",
    "take_rows",
    "tanh_gelu",
]


def __dir__() -> list[str]:
    return __all__
