"""Wraps a backbone to condition it on its previous estimate of x0."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["SelfConditioned"]


class SelfConditioned(nn.Module):
    """Computes net([x, x0]) for x [B, ..., C], with x0 [B, ..., C] the estimate of x0 from the previous step.

    x and x0 are concatenated along the channels, and the outputs for the channels of x0 are dropped. So any backbone
    may be wrapped whose output has the shape of its input, or twice its channels for a learned variance; if it has a
    field for its channels, they are 2 C. Chen, Zhang and Hinton, "Analog Bits: Generating Discrete Data using Diffusion
    Models with Self-Conditioning" (2022), https://arxiv.org/abs/2208.04202, section 3.2. The estimate is clipped to
    [-bound, bound] first, because at high noise the estimate of an epsilon network is far outside the data.

    Call as the net, with x0 [B, ..., C] or None for no estimate yet, which is zeros; cond and train as for the net. If
    x holds each example k times in a row (guidance evaluates several conditions in one batch), x0 [B / k, ..., C] is
    repeated likewise.

    Fields:
      net: a backbone.
      bound: largest absolute value of the estimate, that of the data.

    Raises ValueError for an x0 that does not fit x and a bound that is not positive.

    >>> from diffusers_fn.backbones import MLP
    >>> module, x = SelfConditioned(MLP(hidden_size=8, depth=1, embedding_dim=8)), jnp.zeros([3, 4])
    >>> out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, jnp.ones([3]))
    >>> out.shape
    (3, 4)
    """

    net: nn.Module
    bound: float = 1.0

    @nn.compact
    def __call__(
        self, x: jax.Array, t: Any, cond: Any = None, *, x0: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        if not self.bound > 0:
            raise ValueError(f"bound must be positive; got {self.bound}")
        if x0 is None:
            x0 = jnp.zeros_like(x)
        if x0.shape[1:] != x.shape[1:] or x.shape[0] % x0.shape[0]:
            raise ValueError(
                f"x0 must have the shape of x, {list(x.shape)}, or a batch that divides that of x; got {list(x0.shape)}"
            )
        x0 = jnp.repeat(x0, x.shape[0] // x0.shape[0], axis=0)
        both = jnp.concatenate([x, jnp.clip(x0, -self.bound, self.bound).astype(x.dtype)], axis=-1)
        out = self.net(both, t, cond, train=train)
        parts = jnp.split(out, out.shape[-1] // both.shape[-1], axis=-1)  # the mean, and a learned variance
        return jnp.concatenate([part[..., : x.shape[-1]] for part in parts], axis=-1)
