"""Any backbone, told of its last estimate of x0."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class SelfConditioned(nn.Module):
    """Computes net([x, x0]) for x [B, ..., C], with x0 [B, ..., C] what the network said of x at the level before.

    The net sees both along the channels and its outputs for the channels of x0 are dropped, so any backbone will do
    whose output has the shape of its input, or twice its channels for a learned variance; one with a field for its
    channels is made for 2C of them. Chen, Zhang and Hinton, "Analog Bits: Generating Discrete Data using Diffusion
    Models with Self-Conditioning" (2022), https://arxiv.org/abs/2208.04202, section 3.2. The estimate is clipped to
    [-bound, bound] on its way in, because at high noise that of an epsilon network is far outside the data.

    Call as the net, with x0 [B, ..., C] or None for no estimate yet, which is zeros; cond and train as the net. Where x
    holds each example k times over, next to each other (guidance evaluates several conditions in one batch), each x0
    is repeated as often.

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
                f"x0 must have the shape of x, {list(x.shape)}, or as many examples times less; got {list(x0.shape)}"
            )
        x0 = jnp.repeat(x0, x.shape[0] // x0.shape[0], axis=0)
        both = jnp.concatenate([x, jnp.clip(x0, -self.bound, self.bound).astype(x.dtype)], axis=-1)
        out = self.net(both, t, cond, train=train)
        parts = jnp.split(out, out.shape[-1] // both.shape[-1], axis=-1)  # the mean, and the variance if it is learned
        return jnp.concatenate([part[..., : x.shape[-1]] for part in parts], axis=-1)
