"""The parts of a guidance: predictions for several conditions, and predictions shifted at the same x.

Shapes: B is the batch; a level has S = [] or [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, expand, split_like
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, Prediction, epsilon

__all__ = [
    "broadcast_cond",
    "inner_product",
    "one_per_example",
    "predict_both",
    "predict_each",
    "shift_by_gradient",
    "shift_output",
]


def predict_both(
    denoise: Denoiser, x: jax.Array, level: Level, cond: Any, null_cond: Any, *, batched: bool = True
) -> tuple[Prediction, Prediction]:
    """Returns the conditional and the unconditional prediction.

    Args:
      denoise: the denoiser to guide.
      x: [B, ...].
      level: S.
      cond: the condition, a pytree of arrays [B, ...]; a single class label [] serves every example.
      null_cond: "no condition", a pytree like cond whose leaves broadcast to it.
      batched: True evaluates one batch of 2B, False two batches of B (see `predict_each`).

    Raises:
      ValueError: if cond is None.

    >>> denoise = lambda x, level, cond: Prediction(x * cond[:, None], x)
    >>> with_cond, without = predict_both(denoise, jnp.ones((1, 1)), Level(0.8, 0.6, 0.0), jnp.array([3]), 0)
    >>> with_cond.x0, without.x0
    (Array([[3.]], dtype=float32), Array([[0.]], dtype=float32))
    """
    cond = one_per_example(cond, x, "classifier-free guidance")
    conditional, unconditional = predict_each(
        denoise, x, level, [cond, broadcast_cond(null_cond, cond)], batched=batched
    )
    return conditional, unconditional


def predict_each(
    denoise: Denoiser, x: jax.Array, level: Level, conds: Sequence[Any], *, batched: bool = True
) -> Sequence[Prediction]:
    """Returns K predictions for x, one for each of K conditions.

    Args:
      denoise: the denoiser.
      x: [B, ...].
      level: S.
      conds: K pytrees of arrays [B, ...].
      batched: True evaluates one batch of K B, in which the K copies of an example are neighbours, so that a batch that
        is split over devices stays on them; False evaluates K batches of B, at 1 / K of the peak memory.

    >>> denoise = lambda x, level, cond: Prediction(x * cond[:, None], x)
    >>> conds = [jnp.array([1.0]), jnp.array([2.0]), jnp.array([3.0])]
    >>> [float(p.x0[0, 0]) for p in predict_each(denoise, jnp.ones((1, 1)), Level(0.8, 0.6, 0.0), conds)]
    [1.0, 2.0, 3.0]
    """
    if not batched:
        return [denoise(x, level, cond) for cond in conds]
    num = len(conds)
    # Axes are joined and split, not repeated and sliced, since mesh axes of type Explicit may split the batch.
    interleaved = lambda *c: jnp.stack(c, axis=1).reshape(num * c[0].shape[0], *c[0].shape[1:])  # noqa: E731
    repeat = lambda a: interleaved(*[a] * num) if np.ndim(a) else a  # noqa: E731
    prediction = denoise(repeat(x), jax.tree.map(repeat, level), jax.tree.map(interleaved, *conds))
    return [jax.tree.map(lambda a, k=k: a.reshape(-1, num, *a.shape[1:])[:, k], prediction) for k in range(num)]


def one_per_example(cond: Any, x: jax.Array, what: str = "guidance") -> Any:
    """Returns cond with leaves [B, ...]: a leaf [] (one class label) is repeated for every example of x.

    Args:
      cond: a pytree of numbers or arrays.
      x: [B, ...].
      what: the guidance that needs cond, for the message.

    Raises:
      ValueError: if cond is None, or a leaf has another batch axis than x.

    >>> one_per_example(3, jnp.zeros((2, 4))).tolist()
    [3, 3]
    """
    if cond is None:
        raise ValueError(f"{what} needs cond (class labels, ...); got None: use guidance scale 1")

    def each(c: Any) -> jax.Array:
        if np.ndim(c) and np.shape(c)[0] != x.shape[0]:
            raise ValueError(
                f"cond must have the batch of x, [{x.shape[0]}, ...]: x has shape {list(x.shape)} and cond "
                f"{list(np.shape(c))}"
            )
        return split_like(jnp.broadcast_to(jnp.asarray(c), (*x.shape[:1], *np.shape(c)[1:])), x)

    return jax.tree.map(each, cond)


def broadcast_cond(other: Any, cond: Any) -> Any:
    """Returns another condition in the shapes and types of cond; its leaves must broadcast to those of cond.

    Raises:
      ValueError: if the two are different trees, or a leaf does not broadcast.

    >>> broadcast_cond(10, jnp.array([3, 4]))
    Array([10, 10], dtype=int32)
    """
    wanted, given = str(jax.tree.structure(cond)), str(jax.tree.structure(other))
    if wanted != given:
        raise ValueError(f"the null condition must be a tree like cond, {wanted}; got {given}")

    def each(c: jax.Array, n: Any) -> jax.Array:
        shape = np.shape(n)
        if len(shape) > c.ndim or any(k not in (1, size) for k, size in zip(shape[::-1], c.shape[::-1])):
            raise ValueError(
                f"the null condition must broadcast to cond: cond has shape {list(c.shape)} and the null condition "
                f"{list(shape)}"
            )
        return split_like(jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), c)

    return jax.tree.map(each, cond, other)


def shift_output(prediction: Prediction, shift: jax.Array, level: Level, on: Parameterization = epsilon) -> Prediction:
    """Returns the prediction with `shift` added to the output out = p x0 + q eps, at the same x.

    With det = alpha q - sigma p,

        x0' = x0 - sigma / det shift,    eps' = eps + alpha / det shift

    so that x = alpha x0' + sigma eps' still holds. A shift of zero changes no bit.

    Args:
      prediction: of a denoiser.
      shift: [B, ...].
      level: S.
      on: the parameterization whose output is shifted; see `parameterizations.target` for the output itself.

    Raises:
      ValueError: if a level (not traced) has det = 0, such as pure noise (alpha = 0) for epsilon, where x0 is
        undetermined.

    >>> shift_output(Prediction(jnp.ones((1, 1)), jnp.ones((1, 1))), jnp.ones((1, 1)), Level(0.5, 0.5, 0.0))
    Prediction(x0=Array([[0.]], dtype=float32), eps=Array([[2.]], dtype=float32), var_frac=None)
    """
    p, q = on.line(level)
    det = level.alpha * q - level.sigma * p
    known = concrete(det)
    if known is not None and np.any(known == 0):
        if on.name == "x0":
            raise ValueError(
                "at sigma = 0 (clean data) eps does not follow from a guided x0: use a level with sigma > 0"
            )
        raise ValueError(
            f"at alpha = 0 (pure noise) x0 does not follow from a guided {on.name}: start from a level with alpha > 0, "
            "or guide another parameterization"
        )
    x0 = prediction.x0 + expand(-level.sigma / det, shift) * shift
    return Prediction(x0, prediction.eps + expand(level.alpha / det, shift) * shift, prediction.var_frac)


def shift_by_gradient(prediction: Prediction, gradient: jax.Array, scale: ArrayLike, level: Level) -> Prediction:
    """Returns the prediction guided by the gradient in x of a log probability, eps' = eps - scale sigma gradient.

    Args:
      prediction: of a denoiser.
      gradient: [B, ...].
      scale: [], [B] or shaped to multiply x.
      level: S.

    Raises:
      ValueError: if a level (not traced) is pure noise (alpha = 0).

    >>> prediction = Prediction(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    >>> shift_by_gradient(prediction, jnp.ones((1, 1)), 2.0, Level(0.5, 0.5, 0.0)).x0  # 2 sigma^2 / alpha
    Array([[1.]], dtype=float32)
    """
    gradient = gradient.astype(prediction.eps.dtype)
    return shift_output(prediction, -(expand(scale, gradient) * expand(level.sigma, gradient)) * gradient, level)


def inner_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the inner product of each example of a with that of b, [B, 1, ..., 1] for arrays [B, ...].

    >>> inner_product(jnp.ones((2, 3)), jnp.full((2, 3), 2.0))
    Array([[6.],
           [6.]], dtype=float32)
    """
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)
