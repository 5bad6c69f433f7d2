"""Parameterizations: what the network's output means.

A parameterization is a linear combination out = p * x0 + q * eps, with (p, q) functions of the level. Together with
x = alpha * x0 + sigma * eps it is a 2x2 system for x0 and eps. The same rule holds for every parameterization, here
and in the loss weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_data, check_positive, concrete, expand, namespace, working_dtype
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, check_level

__all__ = [
    "Parameterization",
    "Prediction",
    "check_parameterization",
    "edm",
    "epsilon",
    "scaled_score",
    "score",
    "split_variance",
    "target",
    "to_prediction",
    "unit_input",
    "v",
    "velocity",
    "x0",
]


def __dir__() -> list[str]:
    return __all__


class Parameterization(NamedTuple):
    """A network output defined as out = p * x0 + q * eps.

    Attributes:
      name: for error messages.
      line: level -> (p, q), each of the level's shape S, or a Python number if it does not depend on the level.
      input_scale: level -> S, the factor of x at the network's input; None for 1.

    >>> v.line(Level(0.8, 0.6, 0.0))
    (-0.6, 0.8)
    """

    name: str
    line: Callable[[Level], tuple[Any, Any]]
    input_scale: Callable[[Level], Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """A denoiser's prediction for x [B, ...]: the clean data and the noise in it.

    Attributes:
      x0: [B, ...] the predicted clean data, E[x0 | x] for an exact denoiser.
      eps: [B, ...] the predicted noise, (x - alpha * x0) / sigma.
      var_frac: [B, ...] the learned log variance of a reverse step as a fraction between the posterior variance (0)
        and beta (1), see Nichol & Dhariwal 2021, eq. 15; None without learned variance.
    """

    x0: jax.Array
    eps: jax.Array
    var_frac: jax.Array | None = None


def target(parameterization: Parameterization, x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """Returns p * x0 + q * eps, shape [B, ...]: the network's training target.

    Args:
      parameterization: epsilon, x0, v, score, velocity or edm(sigma_data).
      x0: [B, ...] clean data.
      eps: [B, ...] the noise in x.
      level: S = [] or [B].

    Raises:
      ValueError: if the shapes differ, a dtype is not floating, or sigma is 0 (and not traced) for `score`, whose
        target is infinite there.

    >>> target(v, jnp.ones((1, 2)), jnp.zeros((1, 2)), Level(0.8, 0.6, 0.0))
    Array([[-0.6, -0.6]], dtype=float32)
    """
    check_parameterization(parameterization)
    check_data(x0=x0, eps=eps)
    check_level(level, x0)
    dtype = working_dtype(x0, eps)
    x0, eps = x0.astype(dtype), eps.astype(dtype)
    p, q = parameterization.line(level)
    if (known := concrete(q)) is not None and np.any(np.isinf(known)):
        raise ValueError(
            f"the target of parameterization {parameterization.name!r} is infinite at sigma = 0 (clean data): "
            "use a level with sigma > 0, or epsilon, x0, v or velocity"
        )
    return expand(p, x0) * x0 + expand(q, x0) * eps


def to_prediction(parameterization: Parameterization, out: jax.Array, x: jax.Array, level: Level) -> Prediction:
    """Returns the prediction (x0, eps, var_frac) from a network's output.

    Solves  alpha x0 + sigma eps = x,  p x0 + q eps = out.  With det = alpha q - sigma p:

        x0 = (q x - sigma out) / det,    eps = (alpha out - p x) / det.

    If p is the Python number 0 (epsilon, score), eps = out / q and x0 = (x - sigma eps) / alpha; likewise for q = 0.

    Args:
      parameterization: what `out` means.
      out: [B, ..., C] or [B, ..., 2C]; in the second case the last C channels are a learned variance v in
        [-1, 1] and var_frac = (v + 1) / 2 (Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, eq. 15).
      x: [B, ..., C] the noisy data.
      level: S = [] or [B].

    Raises:
      ValueError: if `out` has neither x's shape nor twice its channels, or if alpha is 0 (and not traced) for a
        parameterization with p = 0 (epsilon, score), which does not determine x0 there, or sigma is 0 for one with
        q = 0 (x0), which does not determine eps there.

    >>> out = jnp.full((1, 2), 0.5)
    >>> to_prediction(epsilon, out, jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.875, 0.875]], dtype=float32)
    """
    check_parameterization(parameterization)
    out, var_out = split_variance(out, x)
    check_data(x=x, out=out)
    check_level(level, x)
    dtype = working_dtype(out, x)
    out, x = out.astype(dtype), x.astype(dtype)
    p, q = parameterization.line(level)
    if _is_zero(p):
        _check_alpha(parameterization, level)
        eps = out if _is_one(q) else expand(1.0 / q, x) * out
        x0 = expand(1.0 / level.alpha, x) * (x - expand(level.sigma, x) * eps)
    elif _is_zero(q):
        _check_sigma(parameterization, level)
        x0 = out if _is_one(p) else expand(1.0 / p, x) * out
        eps = expand(1.0 / level.sigma, x) * (x - expand(level.alpha, x) * x0)
    else:
        det = level.alpha * q - level.sigma * p
        x0 = expand(q / det, x) * x + expand(-level.sigma / det, x) * out
        eps = expand(level.alpha / det, x) * out + expand(-p / det, x) * x
    return Prediction(x0, eps, None if var_out is None else (var_out + 1) / 2)


def split_variance(out: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns the two parts [B, ..., C] of a network's output [B, ..., C or 2C]: (output, variance or None).

    Raises:
      ValueError: if `out` has neither x's shape nor twice its channels on the last axis.

    >>> split_variance(jnp.zeros((2, 6)), jnp.zeros((2, 3)))[1].shape
    (2, 3)
    """
    if out.shape == x.shape:
        return out, None
    if out.shape[:-1] == x.shape[:-1] and out.shape[-1] == 2 * x.shape[-1]:
        mean, var = jnp.split(out, 2, axis=-1)
        return mean, var
    raise ValueError(
        f"the network's output must have x's shape {x.shape}, or twice its channels on the last axis "
        f"(learned variance); got {out.shape}"
    )


_CHOICES = "pass epsilon, x0, v, score, velocity or edm(sigma_data)"


def check_parameterization(parameterization: object) -> None:
    """Raises ValueError unless the value is a Parameterization.

    >>> check_parameterization("v")
    Traceback (most recent call last):
    ...
    ValueError: parameterization must be a Parameterization; got the string 'v': pass diffusers_fn.parameterizations.v
    """
    if isinstance(parameterization, Parameterization):
        return
    if isinstance(parameterization, str):
        names = {"sample": "x0", "v_prediction": "v", "eps": "epsilon", "flow": "velocity", "edm": "edm(0.5)"}
        name = names.get(parameterization, parameterization)
        known = name in ("epsilon", "x0", "v", "score", "velocity", "edm(0.5)")
        hint = f"pass diffusers_fn.parameterizations.{name}" if known else _CHOICES
        given = f"the string {parameterization!r}"
    elif parameterization is edm or parameterization is scaled_score:
        given = f"the function {parameterization.__name__}"  # type: ignore[attr-defined]
        hint = f"call it, {parameterization.__name__}(...)"  # type: ignore[attr-defined]
    else:
        given, hint = type(parameterization).__name__, _CHOICES
    raise ValueError(f"parameterization must be a Parameterization; got {given}: {hint}")


def _constant(p: float, q: float) -> Callable[[Level], tuple[float, float]]:
    return lambda level: (p, q)


def _is_zero(coefficient: Any) -> bool:
    return isinstance(coefficient, float) and coefficient == 0.0


def _is_one(coefficient: Any) -> bool:
    return isinstance(coefficient, float) and coefficient == 1.0


def _check_alpha(parameterization: Parameterization, level: Level) -> None:
    alpha = concrete(level.alpha)
    if alpha is not None and np.any(alpha == 0):
        raise ValueError(
            f"parameterization {parameterization.name!r} does not determine x0 at alpha = 0 (pure noise): "
            "use v, x0 or velocity, or a plan whose first level has alpha > 0"
        )


def _check_sigma(parameterization: Parameterization, level: Level) -> None:
    sigma = concrete(level.sigma)
    if sigma is not None and np.any(sigma == 0):
        raise ValueError(
            f"parameterization {parameterization.name!r} does not determine eps at sigma = 0 (clean data): "
            "use epsilon, v or velocity, or a level with sigma > 0"
        )


def _minus_inverse(value: Any) -> Array:
    """Returns -1 / value, minus infinity at 0."""
    with np.errstate(divide="ignore"):
        inverse: Array = namespace(value).divide(-1.0, value)
        return inverse


# eps: Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 11-12. It does not determine x0 where alpha = 0.
epsilon = Parameterization("epsilon", _constant(0.0, 1.0))

# The clean data ("sample" in other libraries). It does not determine eps where sigma = 0.
x0 = Parameterization("x0", _constant(1.0, 0.0))

# v = alpha eps - sigma x0: Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, section 4 and appendix D.
v = Parameterization("v", lambda level: (-level.sigma, level.alpha))

# The score, grad_x log q(x | x0) = -eps / sigma: Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 7.
score = Parameterization("score", lambda level: (0.0, _minus_inverse(level.sigma)))

# The velocity of the straight path, eps - x0: Liu et al. 2022, https://arxiv.org/abs/2209.03003, eq. 1 (here time
# runs from data to noise).
velocity = Parameterization("velocity", _constant(-1.0, 1.0))


def edm(sigma_data: float = 0.5) -> Parameterization:
    """Returns the parameterization by EDM's preconditioned output F: x0_hat = c_skip x + c_out F(c_in x).

    With s = sigma / alpha (EDM has alpha = 1) and d = sigma_data:

        c_skip = d^2 / (s^2 + d^2),   c_out = s d / sqrt(s^2 + d^2),   c_in = 1 / sqrt(s^2 + d^2)

    acting on x / alpha. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1 and eq. 7. The paper's c_noise = log(sigma) / 4 is the level's t.

    Args:
      sigma_data: standard deviation of the data.

    Raises:
      ValueError: unless sigma_data is positive.

    >>> p, q = edm(0.5).line(Level(alpha=1.0, sigma=0.5, t=0.0))
    >>> round(float(p), 4), round(float(q), 4)
    (1.4142, -0.7071)
    """
    check_positive("sigma_data", sigma_data)

    def line(level: Level) -> tuple[Array, Array]:
        # F = (x0 - c_skip x / alpha) / c_out with x / alpha = x0 + s eps:
        # p = (1 - c_skip) / c_out = s / (d sqrt(s^2 + d^2)),  q = -c_skip s / c_out = -d / sqrt(s^2 + d^2).
        # Multiplied out by alpha, so that pure noise (alpha = 0) is a level like any other.
        return level.sigma / (sigma_data * root(level)), -sigma_data * level.alpha / root(level)

    def root(level: Level) -> Array:
        return namespace(level).sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)

    return Parameterization(f"edm({sigma_data})", line, unit_input(sigma_data))


def unit_input(sigma_data: float = 0.5) -> Callable[[Level], Array]:
    """Returns the `input_scale` 1 / sqrt(sigma^2 + (sigma_data alpha)^2), which gives the input unit variance.

    It is c_in of Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1, for any parameterization:
    `epsilon._replace(input_scale=unit_input(0.5))`. It is needed where x grows with sigma (alpha = 1).

    Raises:
      ValueError: unless sigma_data is positive.

    >>> round(float(unit_input(0.6)(Level(1.0, 0.8, 0.0))), 6)
    1.0
    """
    check_positive("sigma_data", sigma_data)

    def input_scale(level: Level) -> Array:
        return 1.0 / namespace(level).sqrt(level.sigma**2 + (sigma_data * level.alpha) ** 2)

    return input_scale


def scaled_score(scale: float = 1.0) -> Parameterization:
    """Returns the parameterization of a network whose output times `scale` is the score.

        score = scale * out,    so    out = -eps / (scale sigma)

    Raises:
      ValueError: unless scale is positive.

    >>> scaled_score(2.0).line(Level(0.8, 0.5, 0.0))
    (0.0, np.float64(-1.0))
    """
    check_positive("scale", scale)
    return (
        score
        if scale == 1
        else Parameterization(f"scaled_score({scale})", lambda level: (0.0, _minus_inverse(scale * level.sigma)))
    )
