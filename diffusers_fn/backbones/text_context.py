"""A text encoder that is trained along with a text-conditioned network: token ids or token vectors to its context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.embeddings import dense_init
from diffusers_fn.backbones.spatial_transformer import CrossAttention
from diffusers_fn.backbones.transformer import FeedForward
from diffusers_fn.backbones.unet2d_condition import UNet2DCondition

__all__ = ["TextContext"]


class TextContext(nn.Module):
    """Computes net(x, t, cond) with cond the tokens of a text, which a small transformer turns into the context.

    Each token is a learned vector (of its id) or a linear map of a given vector, plus a learned vector of its position.
    A learned start token comes first, so that the empty text has a context too. `depth` blocks follow, normalised
    before each part: h <- h + attention(norm(h)), h <- h + mlp(norm(h)). All tokens of a text see each other, and
    padding is hidden from all. The encoder is trained with the rest, as in Rombach et al., "High-Resolution Image
    Synthesis with Latent Diffusion Models" (2022), https://arxiv.org/abs/2112.10752, section 3.3.

    Call as `net`, with cond either integer ids [B, num_tokens] in [0, vocab_size - 1], where 0 is padding, or with
    vector_dim floating vectors [B, num_tokens, vector_dim], where zeros are padding; None is the empty text. A mapping
    is passed to the net unchanged, for conditioning on the output of another text encoder.

    Fields:
      net: the network, with heads that divide its context_dim.
      num_tokens: tokens of a text, without the start token.
      vocab_size: number of token ids.
      vector_dim: None for ids, or the features of the given vectors.
      depth: blocks of the encoder; 0 for none.
      num_heads: heads of its attentions.

    Raises ValueError for conditions and fields that do not fit.

    >>> net = UNet2DCondition(channels=8, channel_multipliers=(1, 2), transformer_depths=(1, 0), num_heads=2,
    ...                       context_dim=6, norm_groups=4)
    >>> x, t, ids = jnp.zeros([2, 8, 8, 4]), jnp.array([0, 999]), jnp.array([[3, 5, 0], [4, 0, 0]])
    >>> module = TextContext(net, num_tokens=3, vocab_size=7, depth=1, num_heads=2)
    >>> params = jax.eval_shape(module.init, jax.random.key(0), x, t, ids)["params"]
    >>> params["token_table"]["embedding"].shape
    (7, 6)
    """

    net: UNet2DCondition
    num_tokens: int = 16
    vocab_size: int = 1024
    vector_dim: int | None = None
    depth: int = 2
    num_heads: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None, *, train: bool = False) -> jax.Array:
        self._check()
        context, mask = self._encode(cond, x.shape[0])  # also for a mapping: the parameters are the same
        given = cond if isinstance(cond, Mapping) else {"context": context, "context_mask": mask}
        return self.net(x, t, given, train=train)

    def _encode(self, cond: Any, batch: int) -> tuple[jax.Array, jax.Array]:
        """Returns the context [B, 1 + num_tokens, D], and its mask."""
        net, width = self.net, self.net.text_dim or self.net.context_dim
        types: dict[str, Any] = net.precise_types
        shape = (batch, self.num_tokens) + (() if self.vector_dim is None else (self.vector_dim,))
        if cond is None or isinstance(cond, Mapping):
            cond = jnp.zeros(shape, jnp.int32 if self.vector_dim is None else net.precise_dtype)
        cond = jnp.asarray(cond)
        self._check_cond(cond, shape)
        if self.vector_dim is None:
            seen = cond != 0
            table = ops.Embed(
                self.vocab_size, width, embedding_init=nn.initializers.normal(1.0), name="token_table", **types
            )
            h = table(cond)
        else:
            seen = jnp.any(cond != 0, axis=-1)
            h = ops.Dense(width, kernel_init=dense_init, name="vector_projection", **types)(cond)
        start = self.param("start_token", nn.initializers.normal(1.0), (1, 1, width), net.param_dtype)
        h = jnp.concatenate([jnp.broadcast_to(start, (batch, 1, width)).astype(h.dtype), h], axis=1)
        h = h + self.param("positions", nn.initializers.normal(0.1), (1, 1 + self.num_tokens, width), net.param_dtype)
        mask = jnp.concatenate([jnp.ones_like(seen[:, :1]), seen], axis=1)
        visible = mask[:, None, None, :]
        for i in range(self.depth):
            attention = CrossAttention(self.num_heads, name=f"attention_{i}", **types)
            h = h + attention(ops.LayerNorm(name=f"attention_norm_{i}", **types)(h), mask=visible)
            h = h + FeedForward(4 * width, name=f"mlp_{i}", **types)(ops.LayerNorm(name=f"mlp_norm_{i}", **types)(h))
        return ops.array(ops.LayerNorm(name="norm", **types)(h)), mask

    def _check_cond(self, cond: jax.Array, shape: tuple[int, ...]) -> None:
        kind = jnp.integer if self.vector_dim is None else jnp.floating
        if cond.shape != shape or not jnp.issubdtype(cond.dtype, kind):
            what = "integer token ids" if self.vector_dim is None else "floating token vectors"
            raise ValueError(f"cond must be {what} of shape {list(shape)}; got {cond.dtype} {list(cond.shape)}")

    def _check(self) -> None:
        """Raises ValueError for fields that no network can be built from."""
        net = self.net
        for name, value, least in (("num_tokens", self.num_tokens, 1), ("vocab_size", self.vocab_size, 2),
                                   ("depth", self.depth, 0)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}")
        width = net.text_dim or net.context_dim
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(f"num_heads must divide the features of a context token, {width}; got {self.num_heads}")
        if net.num_classes is not None or net.class_time or net.class_vector_dim is not None or net.text_time_dims:
            raise ValueError(
                "the text is given as context alone: the net's num_classes, class_time, class_vector_dim and "
                "text_time_dims must be None, False, None and None"
            )
