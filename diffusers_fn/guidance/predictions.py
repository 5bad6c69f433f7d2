"""What the guidances share: several conditions in one batch, and predictions that are moved along a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, expand
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, Prediction, epsilon


def one_an_example(cond: Any, x: jax.Array, what: str) -> Any:
    """Returns cond with leaves [B, ...]: a single label is every example's.

    Raises:
      ValueError: if cond is None.
    """
    if cond is None:
        raise ValueError(f"{what} needs cond (class labels, ...); got None: use guidance scale 1")
    each = lambda c: jnp.broadcast_to(c, x.shape[:1]) if jnp.ndim(c) == 0 else jnp.asarray(c)  # noqa: E731
    return jax.tree.map(each, cond)


def like(cond: Any, other: Any) -> Any:
    """Returns other, whose leaves broadcast to cond's, in cond's shapes and types."""
    return jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, other)


def evaluate(
    denoise: Denoiser, x: jax.Array, level: Level, conds: Sequence[Any], *, batched: bool
) -> Sequence[Prediction]:
    """Returns the predictions for K conditions, trees of [B, ...] each.

    batched: in one batch of K B, where an example's K stand side by side (a batch that is split over devices stays
    where it is); otherwise in K passes.
    """
    if not batched:
        return [denoise(x, level, cond) for cond in conds]
    num = len(conds)
    repeat = lambda a: jnp.repeat(a, num, axis=0)  # noqa: E731
    levels = jax.tree.map(lambda a: repeat(a) if jnp.ndim(a) else a, level)
    together = lambda *c: jnp.stack(c, axis=1).reshape(num * c[0].shape[0], *c[0].shape[1:])  # noqa: E731
    prediction = denoise(repeat(x), levels, jax.tree.map(together, *conds))
    return [jax.tree.map(lambda a, k=k: a[k::num], prediction) for k in range(num)]


def moved(prediction: Prediction, shift: jax.Array, level: Level, on: Parameterization = epsilon) -> Prediction:
    """Returns the prediction whose output out = p x0 + q eps is `shift` more, at the same x.

    With det = alpha q - sigma p, x0 changes by -sigma / det and eps by alpha / det of it. A shift of zero
    changes no bit.

    Raises:
      ValueError: if a readable level has det = 0: pure noise, where eps does not tell x0.
    """
    p, q = on.line(level)
    det = level.alpha * q - level.sigma * p
    known = concrete(det)
    if known is not None and np.any(known == 0):
        raise ValueError(
            f"at alpha = 0 (pure noise) this guidance, a shift of {on.name}, does not tell x0: start from a level with "
            "alpha > 0"
        )
    x0 = prediction.x0 + expand(-level.sigma / det, shift) * shift
    return Prediction(x0, prediction.eps + expand(level.alpha / det, shift) * shift, prediction.var_frac)


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns an example's inner product, [B, 1, ..., 1]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)
