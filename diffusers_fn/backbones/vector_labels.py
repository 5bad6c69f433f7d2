"""Conditions given as vectors: one-hot class labels, and the parameters of an image's augmentation."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusers_fn.backbones.embeddings import class_labels

__all__ = ["kept_labels", "vector_conditions"]


def vector_conditions(
    cond: Any, num_classes: int | None, augment_dim: int | None, batch: int, dtype: Any
) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns (labels [B, num_classes], augment [B, augment_dim]), each None if the network has no such condition.

    cond is a class label, an integer [] or [B]; or a vector [B, num_classes], a mixture of classes; or a dict of
    "label" and "augment", either of them optional. A missing label, the label num_classes and a
    missing augmentation are zero vectors. Traced labels cannot be checked: one outside 0 .. num_classes gives NaN.

    Raises ValueError for names, dtypes and shapes that do not fit.

    >>> labels, _ = vector_conditions(jnp.array([2, 3]), 3, None, 2, jnp.float32)
    >>> labels.tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    given = dict(cond) if isinstance(cond, Mapping) else {"label": cond}
    label, augment = given.pop("label", None), given.pop("augment", None)
    if given:
        raise ValueError(f'cond may have "label" and "augment"; got {", ".join(map(str, sorted(given)))}')
    if augment is not None and augment_dim is None:
        raise ValueError("this network takes no augmentation (augment_dim=None), but cond has one")
    if augment_dim is not None:
        augment = jnp.zeros([batch, augment_dim]) if augment is None else jnp.asarray(augment)
        if augment.shape != (batch, augment_dim):
            raise ValueError(f'cond["augment"] must have shape [{batch}, {augment_dim}]; got {list(augment.shape)}')
        augment = augment.astype(dtype)
    return _label_vectors(label, num_classes, batch, dtype), augment


def _label_vectors(label: Any, num_classes: int | None, batch: int, dtype: Any) -> jax.Array | None:
    if num_classes is not None and getattr(label, "ndim", 0) == 2:
        if label.shape != (batch, num_classes):
            raise ValueError(f"label vectors must have shape [{batch}, {num_classes}]; got {list(label.shape)}")
        return jnp.asarray(label, dtype)
    labels = class_labels(label, num_classes, batch)
    if labels is None or num_classes is None:
        return None
    vectors = jax.nn.one_hot(labels, num_classes, dtype=dtype)  # zeros for the label num_classes
    return jnp.where((labels <= num_classes)[:, None], vectors, jnp.nan)


def kept_labels(labels: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Returns label vectors [B, N] each replaced by zeros with probability `rate`.

    Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), https://arxiv.org/abs/2207.12598, algorithm 1.

    >>> kept_labels(jnp.ones([2, 1]), 0.0, jax.random.key(0)).tolist()
    [[1.0], [1.0]]
    """
    keep = jax.random.bernoulli(key, 1 - rate, (labels.shape[0], 1))
    return jnp.where(keep, labels, jnp.zeros_like(labels))
