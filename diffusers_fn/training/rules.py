"""Which axes of a network's parameters are split over the axes fsdp and tensor of a mesh, by parameter path.

In attention the heads are split over tensor, in an mlp the hidden units: the first layer's output and the second one's
input, so that only the second one's output is summed over devices (Shoeybi et al., "Megatron-LM" (2019),
https://arxiv.org/abs/1909.08053, section 3). A residual block of convolutions is treated alike: the output channels of
the first, the input channels of the second. Biases of the second layers are added after the sum and are not split.
A spec names a parameter's last axes; see `sharding.shardings`.
"""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import PartitionSpec as P

from diffusers_fn.training.sharding import Rules

__all__ = ["RULES"]

_ATTENTION: Rules = (
    (r"qkv/kernel$", P("fsdp", None, "tensor", None)),  # [D, 3, heads, head_dim]
    (r"qkv/bias$", P(None, "tensor", None)),
    (r"attention(_\d+)?/out/kernel$", P("tensor", None, "fsdp")),  # [heads, head_dim, D]
)
_TOKENS: Rules = (
    *_ATTENTION,
    (r"mlp/dense_0/kernel$", P("fsdp", "tensor")),
    (r"mlp/dense_0/bias$", P("tensor")),
    (r"mlp/dense_1/kernel$", P("tensor", "fsdp")),
    (r"modulation/kernel$", P("fsdp", "tensor")),
    (r"modulation/bias$", P("tensor")),
    (r"skip/kernel$", P(None, "fsdp")),
    (r"time_0/kernel$", P("fsdp", "tensor")),
    (r"time_0/bias$", P("tensor")),
    (r"time_1/kernel$", P("tensor", "fsdp")),
    (r"(class_table/embedding|positions)$", P(None, "fsdp")),
)
_PIXELS: Rules = (
    *_ATTENTION,
    (r"block_\d+/conv_0/kernel$", P(None, None, "fsdp", "tensor")),  # [height, width, in, out]
    (r"block_\d+/conv_0/bias$", P("tensor")),
    (r"block_\d+/conv_1/kernel$", P(None, None, "tensor", "fsdp")),
    (r"time_0/kernel$", P("fsdp", "tensor")),
    (r"time_0/bias$", P("tensor")),
    (r"time_1/kernel$", P("tensor", "fsdp")),
)
_SEQUENCES: Rules = (
    (r"block_\d+/conv_0/kernel$", P(None, "fsdp", "tensor")),  # [length, in, out]
    (r"block_\d+/conv_1/kernel$", P(None, "tensor", "fsdp")),
    *_PIXELS,
)
# The input of GEGLU (feed_in) is not split over tensor: its two halves would lie on different devices.
_TEXT_CONDITIONED: Rules = (
    (r"attention/(query|key|value)/kernel$", P("fsdp", "tensor")),  # [D, heads head_dim]
    (r"(self|cross)_attention/out/kernel$", P("tensor", "fsdp")),
    *_PIXELS,
)
_UNITS: Rules = (
    (r"block_\d+_dense_0/kernel$", P("fsdp", "tensor")),
    (r"block_\d+_dense_0/bias$", P("tensor")),
    (r"block_\d+_dense_1/kernel$", P("tensor", "fsdp")),
    (r"time_0/kernel$", P("fsdp", "tensor")),
    (r"time_0/bias$", P("tensor")),
    (r"time_1/kernel$", P("tensor", "fsdp")),
)

RULES: Mapping[str, Rules] = {
    "dit": _TOKENS,
    "uvit": _TOKENS,
    "unet": _PIXELS,
    "unet2d": _PIXELS,
    "song_unet": _PIXELS,
    "dhariwal_unet": _PIXELS,
    "unet1d": _SEQUENCES,
    "unet2d_condition": _TEXT_CONDITIONED,
    "classifier": _PIXELS,
    "autoencoder_kl": _PIXELS,
    "mlp": _UNITS,
    "mlp_classifier": (),
    "simple_autoencoder": (),
}
