"""Batches of training examples: their checks, their noise, their labels after label dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import _random
from diffusers_fn._arrays import check_data, concrete
from diffusers_fn.from_config.choices import fraction

__all__ = ["check_images", "check_labels", "draw_noise", "make_batch_reader"]


def make_batch_reader(
    shape: tuple[int, ...], conditions: Any, label_dropout: float
) -> Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, Any]]:
    """Returns (key, batch) -> (x0 [B, *shape], cond [B, *S]): images and conditions, some replaced by "no condition".

    cond is None for an unconditional model.

    Args:
      shape: of one example.
      conditions: what the model is conditioned on, see `conditions.make_conditions`; None for nothing.
      label_dropout: probability of "no condition": the null class, or the empty text.

    Raises:
      ValueError: if label_dropout does not lie in [0, 1].

    >>> from diffusers_fn.from_config.conditions import make_conditions
    >>> from diffusers_fn.from_config.defaults import default_config
    >>> read_batch = make_batch_reader((2,), make_conditions(default_config(), num_classes=3), label_dropout=1.0)
    >>> read_batch(jax.random.key(0), {"image": jnp.zeros((2, 2)), "label": jnp.array([0, 1])})[1]
    Array([3, 3], dtype=int32)
    """
    label_dropout = fraction("loss.label_dropout", label_dropout)

    def read_batch(key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
        x0 = check_images(batch, shape)
        if conditions is None:
            return x0, None
        cond = conditions.check(batch.get(conditions.entry), x0.shape[0], False)
        drop = _random.draw(jax.random.uniform, key, cond.shape[:1], jnp.float32) < label_dropout
        drop = drop.reshape(drop.shape + (1,) * (cond.ndim - drop.ndim))
        return x0, jnp.where(drop, jnp.asarray(conditions.null, cond.dtype), cond)

    return read_batch


def check_images(batch: Mapping[str, jax.Array], shape: tuple[int, ...], name: str = "image") -> jax.Array:
    """Returns batch[name], [B, *shape].

    Raises:
      ValueError: if it is missing, of another shape, not of floating type, or not finite where that can be read.

    >>> check_images({"image": jnp.zeros((4, 2))}, (2,)).shape
    (4, 2)
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"a batch must be a dict such as {{{name!r}: x}}; got {type(batch).__name__}")
    if name not in batch:
        raise ValueError(f"a batch needs the entry {name!r}; got {sorted(batch)}")
    image = batch[name]
    check_data(**{name: image})
    if image.shape[1:] != shape:
        raise ValueError(
            f"{name}s must have shape [B, {', '.join(map(str, shape))}] (config.data.shape); got {list(image.shape)}"
        )
    values = concrete(image)
    if values is not None and not np.isfinite(values).all():
        raise ValueError(f"{name}s must be finite; got NaN or infinite values")
    return image


def draw_noise(key: jax.Array, batch: Mapping[str, jax.Array], x0: jax.Array) -> jax.Array:
    """Returns the noise of each example [B, ...]: batch["noise"] where data and noise are coupled, else drawn.

    Raises:
      ValueError: if the batch's noise has another shape than x0.

    >>> draw_noise(jax.random.key(0), {"noise": jnp.ones((1, 2))}, jnp.zeros((1, 2)))
    Array([[1., 1.]], dtype=float32)
    """
    return check_images(batch, x0.shape[1:], "noise") if "noise" in batch else _random.normal(key, x0)


def check_labels(labels: Any, num_classes: int, batch_size: int, *, allow_null: bool) -> jax.Array:
    """Returns class labels as an array, integers [] or [batch_size] in [0, num_classes - 1].

    With allow_null, num_classes is allowed too: the null class.

    Raises:
      ValueError: if they are missing, of another shape or type, or out of range where that can be read.

    >>> check_labels(np.array([0, 2]), num_classes=3, batch_size=2, allow_null=False)
    Array([0, 2], dtype=int32)
    """
    if labels is None:
        raise ValueError("this model is class-conditional (config.data.num_classes): the batch needs 'label'")
    if not isinstance(labels, jax.Array) and np.asarray(labels).dtype.kind not in "iu":
        raise ValueError(f"labels must be integers of shape [] or [{batch_size}]; got {labels!r}")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape not in ((), (batch_size,)):
        raise ValueError(f"labels must be integers of shape [] or [{batch_size}]; got {labels.dtype} {labels.shape}")
    values = concrete(labels)
    if values is not None and values.size and (values.min() < 0 or values.max() >= num_classes + allow_null):
        null = f" or be {num_classes} for no class" if allow_null else ""
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}]{null}; got {values.min()} to {values.max()}: correct them or "
            "config.data.num_classes"
        )
    return labels
