"""Rules that combine a conditional and an unconditional prediction; at scale 1 each returns the conditional one."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, expand
from diffusers_fn.guidance.predictions import inner, moved
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, Prediction, epsilon, target, x0


class Rule(Protocol):
    """Combines two predictions for x into the guided one."""

    def __call__(self, better: Prediction, worse: Prediction, scale: Any, level: Level) -> Prediction:
        """Returns the guided prediction.

        Args:
          better: the conditional prediction (for autoguidance, the better model's).
          worse: the unconditional prediction (the worse model's).
          scale: [], or [B, 1, ...] that broadcasts to x; 1 returns `better`.
          level: S = [] or [B].
        """
        ...


def apply_guidance(noise_pred_cond: jax.Array, noise_pred_uncond: jax.Array, guidance_scale: Any) -> jax.Array:
    """Returns uncond + scale * (cond - uncond), written (1 - scale) uncond + scale cond.

    In that form scale 1 is the conditional prediction and scale 0 the unconditional one, bit for bit. Ho &
    Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598, eq. 6 with
    scale = 1 + w.

    Args:
      noise_pred_cond: [B, ...].
      noise_pred_uncond: [B, ...].
      guidance_scale: [] or [B].

    >>> apply_guidance(jnp.ones((1, 2)), jnp.zeros((1, 2)), 7.5)
    Array([[7.5, 7.5]], dtype=float32)
    """
    scale = expand(guidance_scale, noise_pred_cond)
    return (1 - scale) * noise_pred_uncond + scale * noise_pred_cond


def linear(better: Prediction, worse: Prediction, scale: Any, level: Level) -> Prediction:
    """Returns worse + scale * (better - worse), the plain rule (see `apply_guidance`); it is linear, so both x0 and eps
    follow it. A learned variance is the better prediction's.

    >>> better, worse = (Prediction(jnp.full((1, 1), x), jnp.full((1, 1), x)) for x in (1.0, 0.5))
    >>> linear(better, worse, 3.0, Level(0.8, 0.6, 0.0)).x0
    Array([[2.]], dtype=float32)
    """
    x0 = apply_guidance(better.x0, worse.x0, scale)
    return Prediction(x0, apply_guidance(better.eps, worse.eps, scale), better.var_frac)


def rescaled(phi: Any = 0.7, *, on: Parameterization = epsilon) -> Rule:
    """Returns the rule that draws the guided output's spread to the conditional's, so that contrast stays.

        out' = phi * out * std(out_cond) / std(out) + (1 - phi) * out

    with the standard deviations over an example. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are
    Flawed", 2024, https://arxiv.org/abs/2305.08891, eq. 15-16; `guidance_rescale` elsewhere. The output there is the
    network's, so the result depends on what it puts out: name it in `on`.

    Args:
      phi: [] or [B] in [0, 1], may be traced; 0 is the plain rule.
      on: the parameterization of the network, epsilon, v, ...

    Raises:
      ValueError: if a readable phi is outside [0, 1].

    >>> better, worse = (Prediction(jnp.array([x]), jnp.array([x])) for x in ([1.0, -1.0], [0.5, -0.5]))
    >>> rescaled(1.0)(better, worse, 3.0, Level(0.8, 0.6, 0.0)).eps
    Array([[ 1., -1.]], dtype=float32)
    """
    known = concrete(phi)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f"phi must lie in [0, 1], for instance 0.7; got {phi}")

    def rule(better: Prediction, worse: Prediction, scale: Any, level: Level) -> Prediction:
        guided = linear(better, worse, scale, level)
        wanted, out = (target(on, p.x0, p.eps, level) for p in (better, guided))
        ratio = _ratio(_variance(wanted), _variance(out))
        return moved(guided, expand(phi, out) * (ratio - 1) * out, level, on)

    return rule


def projected(eta: Any = 0.0, norm_threshold: Any = None, *, on: Parameterization = x0) -> Rule:
    """Returns the rule of adaptive projected guidance (APG), for large scales without oversaturation.

        out' = out_cond + (scale - 1) (d_orthogonal + eta d_parallel),    d = (out_cond - out_uncond) min(1, r / |d|)

    where the parallel part is that along out_cond. Sadat et al., "Eliminating Oversaturation and Artifacts of High
    Guidance Scales in Diffusion Models", 2024, https://arxiv.org/abs/2410.02416, algorithm 1, without its momentum
    (`projected_with_momentum` has it). eta = 1 without a threshold is the plain rule.

    Args:
      eta: [] or [B], may be traced; how much of the parallel part is kept.
      norm_threshold: [] or [B], r, for latents of Stable Diffusion 2.5 to 15; None for none.
      on: what is combined: x0 in the paper; name the network's own to do as other libraries' guiders do.

    Raises:
      ValueError: if a readable norm_threshold is not positive.

    >>> better, worse = (Prediction(jnp.array([x]), jnp.array([x])) for x in ([1.0, 0.0], [0.0, -1.0]))
    >>> projected()(better, worse, 3.0, Level(0.8, 0.6, 0.0)).x0
    Array([[1., 2.]], dtype=float32)
    """
    check_threshold(norm_threshold)

    def rule(better: Prediction, worse: Prediction, scale: Any, level: Level) -> Prediction:
        out, other = (target(on, p.x0, p.eps, level) for p in (better, worse))
        update = projected_update(out - other, out, eta, norm_threshold)
        return moved(better, (expand(scale, out) - 1) * update, level, on)

    return rule


def check_threshold(norm_threshold: Any) -> None:
    """Raises ValueError unless norm_threshold is None, positive or unreadable."""
    known = None if norm_threshold is None else concrete(norm_threshold)
    if known is not None and not np.all(known > 0):
        raise ValueError(f"norm_threshold must be positive, or None for none; got {norm_threshold}")


def projected_update(d: jax.Array, along: jax.Array, eta: Any, norm_threshold: Any) -> jax.Array:
    """Returns d, shortened to norm_threshold, with only eta of its part along `along`; [B, ...]."""
    if norm_threshold is not None:
        d = d * jnp.minimum(1.0, _ratio(expand(norm_threshold, d) ** 2, inner(d, d)))
    square = inner(along, along)
    parallel = jnp.where(square > 0, inner(d, along) / jnp.where(square > 0, square, 1.0), 0.0) * along
    return d + (expand(eta, d) - 1) * parallel


def _variance(a: jax.Array) -> jax.Array:
    """[B, 1, ..., 1], over an example."""
    centred = a - jnp.mean(a, axis=tuple(range(1, a.ndim)), keepdims=True)
    return inner(centred, centred)


def _ratio(wanted: jax.Array, given: jax.Array) -> jax.Array:
    """sqrt(wanted / given); 1 where given is zero."""
    some = (given > 0) & (wanted > 0)
    root = jnp.sqrt(jnp.where(some, wanted, 1.0) / jnp.where(some, given, 1.0))
    return jnp.where(some | (given <= 0), root, 0.0)
