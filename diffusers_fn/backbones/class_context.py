"""Class labels for a text-conditioned network: each class is a few learned tokens."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusers_fn.backbones import embeddings, ops
from diffusers_fn.backbones.unet2d_condition import UNet2DCondition

__all__ = ["ClassContext"]


class ClassContext(nn.Module):
    """Computes net(x, t, cond) with cond a class label, which a table turns into the context that `net` attends to.

    Row k of the table is num_tokens tokens [num_tokens, context_dim], learned with the rest, as in Rombach et al.,
    "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), https://arxiv.org/abs/2112.10752, appendix
    E.2.1, for their class-conditional models. The last row, with index num_classes, is the null class of
    classifier-free guidance. A net with text_time_dims also receives a pooled text, a row of a second table, and the
    six sizes (H, W, 0, 0, H, W) of an image that was neither resized nor cropped.

    Call as `net`, with cond integer class labels [] or [B], or None for the null class; a mapping is passed to the net
    unchanged, for conditioning on texts.

    Fields:
      net: the network.
      num_classes: None, or the number of classes without the null class. With None all examples have the same context.
      num_tokens: tokens of a class.

    Raises ValueError for labels that do not fit, and for a net with class labels of its own.

    >>> net = UNet2DCondition(channels=8, channel_multipliers=(1, 2), transformer_depths=(1, 0), num_heads=2,
    ...                       context_dim=6, norm_groups=4)
    >>> x, t = jnp.zeros([2, 8, 8, 4]), jnp.array([0, 999])
    >>> params = jax.eval_shape(ClassContext(net, num_classes=10).init, jax.random.key(0), x, t)["params"]
    >>> params["context_table"].shape
    (11, 1, 6)
    """

    net: UNet2DCondition
    num_classes: int | None = None
    num_tokens: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, cond: Any = None, *, train: bool = False) -> jax.Array:
        self._check()
        net, init = self.net, nn.initializers.normal(1.0)
        rows = (self.num_classes or 0) + 1
        shape = (rows, self.num_tokens, net.text_dim or net.context_dim)
        tables = {"context": self.param("context_table", init, shape, net.param_dtype)}
        if net.text_time_dims is not None:
            each, total = net.text_time_dims
            tables["text_embeds"] = self.param("pooled_table", init, (rows, total - 6 * each), net.param_dtype)
        if isinstance(cond, Mapping):
            return net(x, t, cond, train=train)

        batch = x.shape[0]
        labels = embeddings.class_labels(cond, self.num_classes, batch)
        labels = jnp.zeros([batch], int) if labels is None else labels
        context = {name: ops.take_rows(table, labels) for name, table in tables.items()}
        if net.text_time_dims is not None:
            height, width = x.shape[1:3]
            sizes = jnp.array([height, width, 0, 0, height, width], jnp.float32)
            context["time_ids"] = jnp.broadcast_to(sizes, (batch, 6))
        return net(x, t, context, train=train)

    def _check(self) -> None:
        """Raises ValueError for fields that no network can be built from."""
        net = self.net
        if self.num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1; got {self.num_tokens}")
        if net.num_classes is not None or net.class_time or net.class_vector_dim is not None:
            raise ValueError(
                "classes are given as context here: the net's own num_classes, class_time and class_vector_dim must "
                f"be None, False and None; got {net.num_classes}, {net.class_time} and {net.class_vector_dim}"
            )
        if net.text_time_dims is not None and net.text_time_dims[1] <= 6 * net.text_time_dims[0]:
            raise ValueError(f"text_time_dims must leave room for a text and six sizes; got {net.text_time_dims}")
