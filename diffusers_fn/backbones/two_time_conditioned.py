"""Wraps a backbone to condition it on a second time label."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["TwoTimeConditioned"]


class TwoTimeConditioned(nn.Module):
    """Computes an output [B, ..., C] for x [B, ..., C] at a pair of times: the start t and the end r of a step.

    x gets one more channel, which holds t - r, and the output for that channel is dropped. So any backbone may be
    wrapped whose output has the shape of its input; if it has a field for its channels, they are C + 1. For few-step
    models: Geng et al., "Mean Flows for One-step Generative Modeling" (2025),
    https://arxiv.org/abs/2505.13447, who embed t and t - r instead.

    Call with x [B, ..., C]; t a pair (t, r), each [] or [B], or t alone for (t, t); cond and train as for the net.

    Fields:
      net: a backbone.
      label_scale: divides t - r in its channel, for labels that are larger than times: 1000 for timesteps.

    >>> from diffusers_fn.backbones import MLP
    >>> module, x = TwoTimeConditioned(MLP(hidden_size=8, depth=1, embedding_dim=8)), jnp.zeros([3, 4])
    >>> out, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x, (jnp.ones([3]), jnp.zeros([3])))
    >>> out.shape
    (3, 4)
    """

    net: nn.Module
    label_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, t: Any, cond: Any = None, *, train: bool = False) -> jax.Array:
        t, r = t if isinstance(t, tuple) else (t, t)
        length = jnp.broadcast_to(jnp.asarray((t - r) / self.label_scale, x.dtype), x.shape[:1])
        channel = jnp.broadcast_to(length.reshape((-1,) + (1,) * (x.ndim - 1)), (*x.shape[:-1], 1))
        out = self.net(jnp.concatenate([x, channel], axis=-1), t, cond, train=train)
        return out[..., : x.shape[-1]]
