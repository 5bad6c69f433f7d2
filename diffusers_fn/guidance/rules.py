"""Rules: how guidance combines two predictions for x. At scale 1 each rule returns the better one, bit for bit.

A rule of your own is a function like `linear`. `classifier_free(scale, null_cond, rule=rule)` and
`autoguidance(worse, scale, rule=rule)` evaluate the networks and apply it.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_callable, check_per_example, concrete, expand
from diffusers_fn._types import ArrayLike
from diffusers_fn.guidance.predictions import inner_product, shift_output
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, Prediction, epsilon, target, x0

__all__ = [
    "Rule",
    "apply_guidance",
    "check_rule",
    "check_threshold",
    "linear",
    "projected",
    "projected_update",
    "rescaled",
]


class Rule(Protocol):
    """Combines two predictions for x into the guided one."""

    def __call__(self, better: Prediction, worse: Prediction, scale: Any, level: Level) -> Prediction:
        """Returns the guided prediction.

        Args:
          better: the prediction to guide towards: the conditional one, or the guided model's in autoguidance.
          worse: the prediction to guide away from: the unconditional one, or the worse model's.
          scale: [] or [B, 1, ..., 1], multiplies arrays like x; scale 1 must return `better`.
          level: S = [] or [B].
        """
        ...


def apply_guidance(noise_pred_cond: jax.Array, noise_pred_uncond: jax.Array, guidance_scale: ArrayLike) -> jax.Array:
    """Returns (1 - scale) uncond + scale cond, [B, ...].

    It equals uncond + scale (cond - uncond); in this form scale 1 is the conditional prediction and scale 0 the
    unconditional one, bit for bit. Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022,
    https://arxiv.org/abs/2207.12598, eq. 6 with scale = 1 + w.

    Args:
      noise_pred_cond: [B, ...] the conditional prediction.
      noise_pred_uncond: [B, ...] the unconditional prediction.
      guidance_scale: [] or [B].

    >>> apply_guidance(jnp.ones((1, 2)), jnp.zeros((1, 2)), 7.5)
    Array([[7.5, 7.5]], dtype=float32)
    """
    scale = expand(guidance_scale, noise_pred_cond)
    return (1 - scale) * noise_pred_uncond + scale * noise_pred_cond


def linear(better: Prediction, worse: Prediction, scale: ArrayLike, level: Level) -> Prediction:
    """Returns worse + scale (better - worse) for x0 and for eps, the rule of `classifier_free` (see `apply_guidance`).

    A learned variance is that of the better prediction.

    >>> better, worse = (Prediction(jnp.full((1, 1), x), jnp.full((1, 1), x)) for x in (1.0, 0.5))
    >>> linear(better, worse, 3.0, Level(0.8, 0.6, 0.0)).x0
    Array([[2.]], dtype=float32)
    """
    x0 = apply_guidance(better.x0, worse.x0, scale)
    return Prediction(x0, apply_guidance(better.eps, worse.eps, scale), better.var_frac)


def rescaled(phi: ArrayLike = 0.7, *, on: Parameterization = epsilon) -> Rule:
    """Returns the rule that rescales the guided output towards the standard deviation of the conditional output.

        out' = phi * out * std(out_cond) / std(out) + (1 - phi) * out

    with standard deviations over the entries of each example. It avoids overexposed images at large scales. Lin et al.,
    "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, https://arxiv.org/abs/2305.08891, eq. 15-16
    (`guidance_rescale` in other libraries). The formula is applied to the network's output, so the result depends on
    the parameterization `on`.

    Args:
      phi: [] or [B] in [0, 1], may be traced; 0 is the rule `linear`.
      on: the parameterization of the network: epsilon, v, ...

    Raises:
      ValueError: if phi (not traced) is outside [0, 1].

    >>> better, worse = (Prediction(jnp.array([x]), jnp.array([x])) for x in ([1.0, -1.0], [0.5, -0.5]))
    >>> rescaled(1.0)(better, worse, 3.0, Level(0.8, 0.6, 0.0)).eps
    Array([[ 1., -1.]], dtype=float32)
    """
    known = concrete(phi)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f"phi must lie in [0, 1], for instance 0.7; got {phi}")

    def rule(better: Prediction, worse: Prediction, scale: ArrayLike, level: Level) -> Prediction:
        check_per_example("phi", phi, better.x0)
        guided = linear(better, worse, scale, level)
        out_cond, out = (target(on, p.x0, p.eps, level) for p in (better, guided))
        ratio = _sqrt_ratio(_variance(out_cond), _variance(out))
        return shift_output(guided, expand(phi, out) * (ratio - 1) * out, level, on)

    return rule


def projected(eta: ArrayLike = 0.0, norm_threshold: ArrayLike | None = None, *, on: Parameterization = x0) -> Rule:
    """Returns the rule of adaptive projected guidance (APG), which avoids oversaturation at large scales.

        out' = out_cond + (scale - 1) (d_orthogonal + eta d_parallel),    d = (out_cond - out_uncond) min(1, r / |d|)

    where d_parallel is the component of d along out_cond. Sadat et al., "Eliminating Oversaturation and Artifacts of
    High Guidance Scales in Diffusion Models", 2024, https://arxiv.org/abs/2410.02416, algorithm 1 without momentum (see
    `projected_with_momentum`). eta = 1 without a threshold is the rule `linear`.

    Args:
      eta: [] or [B], may be traced; the fraction of the parallel component that is kept.
      norm_threshold: [] or [B], r, the largest norm of d; None for no limit. 2.5 to 15 for latents of Stable Diffusion.
      on: the parameterization in which outputs are combined: x0 in the paper, the network's own in other libraries.

    Raises:
      ValueError: if norm_threshold (not traced) is not positive.

    >>> better, worse = (Prediction(jnp.array([x]), jnp.array([x])) for x in ([1.0, 0.0], [0.0, -1.0]))
    >>> projected()(better, worse, 3.0, Level(0.8, 0.6, 0.0)).x0
    Array([[1., 2.]], dtype=float32)
    """
    check_threshold(norm_threshold)

    def rule(better: Prediction, worse: Prediction, scale: ArrayLike, level: Level) -> Prediction:
        check_per_example("eta", eta, better.x0)
        out, other = (target(on, p.x0, p.eps, level) for p in (better, worse))
        update = projected_update(out - other, out, eta, norm_threshold)
        return shift_output(better, (expand(scale, out) - 1) * update, level, on)

    return rule


def check_rule(rule: object) -> None:
    """Raises ValueError unless rule is a function, and not one that returns rules.

    >>> check_rule(linear)
    >>> check_rule(rescaled)
    Traceback (most recent call last):
    ...
    ValueError: rule must be a Rule; got the function rescaled: call it first, rescaled(...)
    """
    if rule is rescaled or rule is projected:
        name = "rescaled" if rule is rescaled else "projected"
        raise ValueError(f"rule must be a Rule; got the function {name}: call it first, {name}(...)")
    check_callable("rule", rule, "guidance.rescaled(0.7)")


def check_threshold(norm_threshold: ArrayLike | None) -> None:
    """Raises ValueError if norm_threshold (not traced) is not positive.

    >>> check_threshold(2.5)
    """
    known = None if norm_threshold is None else concrete(norm_threshold)
    if known is not None and not np.all(known > 0):
        raise ValueError(f"norm_threshold must be positive, or None for none; got {norm_threshold}")


def projected_update(d: jax.Array, along: jax.Array, eta: ArrayLike, norm_threshold: ArrayLike | None) -> jax.Array:
    """Returns d [B, ...], limited to the norm norm_threshold, with its component along `along` multiplied by eta.

    >>> projected_update(jnp.array([[3.0, 4.0]]), jnp.array([[1.0, 0.0]]), 0.0, 2.5)
    Array([[0., 2.]], dtype=float32)
    """
    if norm_threshold is not None:
        check_per_example("norm_threshold", norm_threshold, d)
        d = d * jnp.minimum(1.0, _sqrt_ratio(expand(norm_threshold, d) ** 2, inner_product(d, d)))
    square = inner_product(along, along)
    parallel = jnp.where(square > 0, inner_product(d, along) / jnp.where(square > 0, square, 1.0), 0.0) * along
    return d + (expand(eta, d) - 1) * parallel


def _variance(a: jax.Array) -> jax.Array:
    """The sum of squared deviations from the mean of each example, [B, 1, ..., 1]."""
    centred = a - jnp.mean(a, axis=tuple(range(1, a.ndim)), keepdims=True)
    return inner_product(centred, centred)


def _sqrt_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(a / b) with finite gradients; 1 where b is zero."""
    positive = (b > 0) & (a > 0)
    root = jnp.sqrt(jnp.where(positive, a, 1.0) / jnp.where(positive, b, 1.0))
    return jnp.where(positive | (b <= 0), root, 0.0)
