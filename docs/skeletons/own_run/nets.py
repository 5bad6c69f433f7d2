"""A network of your own: the laws that it must meet are listed in docs/skeletons/backbone.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class MyNet(nn.Module):
    """Computes a denoiser's output [B, D] for noisy points x [B, D] at times t [] or [B].

    Fields:
      width: features of the two hidden layers.
      num_classes: None, or the number of class labels; num_classes itself is the null class.
    """

    width: int = 64
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array | None = None, *, train: bool = False) -> jax.Array:
        angles = jnp.broadcast_to(t, x.shape[:1])[:, None] / 1000.0 * jnp.array([[1.0, 4.0, 16.0]])
        h = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)
        if self.num_classes is not None:
            labels = jnp.broadcast_to(self.num_classes if cond is None else cond, x.shape[:1])
            h = jnp.concatenate([h, jax.nn.one_hot(labels, self.num_classes + 1)], axis=-1)
        for i in range(2):
            h = nn.silu(nn.Dense(self.width, name=f"hidden_{i}")(h))
        return nn.Dense(x.shape[-1], kernel_init=nn.initializers.zeros, name="out")(h)
