"""A multilayer perceptron that classifies noisy points, vectors and small images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import embeddings, ops

__all__ = ["MLPClassifier"]


class MLPClassifier(nn.Module):
    """Computes logits [B, num_classes] of noisy data x [B, ...] at time labels t [] or [B].

    The flattened data, concatenated with sinusoids of t and of its signed logarithm, pass `depth` residual blocks
    h <- h + dropout(silu(Dense(norm(h)))). For classifier guidance (Dhariwal and Nichol 2021,
    https://arxiv.org/abs/2105.05233, section 4) where `Classifier`, half a U-Net, is too large. Logits start at zero
    and are float32, or of x's dtype if that is wider.

    Call with x [B, ...]; t integers or floats; train=True turns on dropout, which draws from the rng collection
    "dropout".

    Fields:
      num_classes: the number of logits.
      hidden_size, depth: features of the hidden layers, and the number of blocks.
      embedding_dim: of the time features; a multiple of 4.

    >>> net = MLPClassifier(num_classes=10, hidden_size=16, depth=1, embedding_dim=8)
    >>> jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros([2, 8, 8, 1]), jnp.array([0, 999]))[0].shape
    (2, 10)
    """

    num_classes: int = 10
    hidden_size: int = 256
    depth: int = 2
    embedding_dim: int = 64
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, *, train: bool = False) -> jax.Array:
        if self.hidden_size < 1 or self.depth < 1 or self.embedding_dim < 4 or self.embedding_dim % 4:
            raise ValueError(
                "hidden_size and depth must be at least 1 and embedding_dim a multiple of 4; got "
                f"{self.hidden_size}, {self.depth} and {self.embedding_dim}"
            )
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        labels = embeddings.time_labels(t, x.shape[0], dtype)
        features = embeddings.two_scale_features(labels, self.embedding_dim)
        h = nn.Dense(self.hidden_size, name="dense_in")(jnp.concatenate([x.reshape(x.shape[0], -1), features], axis=-1))
        for i in range(self.depth):
            r = nn.Dense(self.hidden_size, name=f"block_{i}_dense")(nn.LayerNorm(name=f"block_{i}_norm")(h))
            h = h + ops.Dropout(self.dropout, deterministic=not train)(nn.silu(r))
        out = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="dense_out")
        return out(nn.LayerNorm(name="norm_out")(h)).astype(dtype)
