"""Loss weights: the factor of |x0 - x0_hat|^2 at each level.

A weight is a function level -> S, written once for the error in x0; `output_weight` converts it to the error in the
network's output, for any parameterization. The weights that depend on SNR = A / S alone, with A = alpha^2 and
S = sigma^2, have a second form W(A, S) = S weight, homogeneous of degree 1, with which the product of the two remains
exact where one of its factors is infinite: at pure noise (A = 0) and for clean data (S = 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn._arrays import check_positive, concrete, floating, is_zero, namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.parameterizations import Parameterization, check_parameterization
from diffusers_fn.processes import Process

__all__ = [
    "Weight",
    "edm",
    "likelihood",
    "min_snr",
    "output_weight",
    "p2",
    "sigmoid",
    "snr",
    "truncated_snr",
    "uniform",
]

Weight = Callable[[Level], Array]


def output_weight(weight: Weight, parameterization: Parameterization) -> Weight:
    """Returns the weight of |out - target|^2 that equals `weight` on |x0 - x0_hat|^2.

    With x fixed, an error e in x0 is an error -alpha / sigma e in eps, hence (p - q alpha / sigma) e in the output
    p x0 + q eps: |x0 - x0_hat|^2 = (sigma / (alpha q - sigma p))^2 |out - target|^2. Where one of the two factors is
    infinite, the result is the limit: 1 for `min_snr` of an epsilon network at pure noise, alpha = 0.

    Raises:
      ValueError: when called, if the weight is infinite at a level (not traced).

    >>> from diffusers_fn.parameterizations import epsilon
    >>> round(float(output_weight(snr, epsilon)(Level(0.8, 0.6, 0.0))), 6)
    1.0
    """

    check_parameterization(parameterization)
    if not callable(weight) or weight in (min_snr, p2, edm, sigmoid, likelihood):
        name = getattr(weight, "__name__", repr(weight))
        advice = f": call it, losses.{name}(...)" if callable(weight) else ""
        raise ValueError(f"weight must be a function of the level, such as losses.snr; got {name}{advice}")
    form = weight.form if isinstance(weight, _Homogeneous) else _FORMS.get(weight)

    def converted(level: Level) -> Array:
        at = Level(floating(level.alpha), floating(level.sigma), level.t)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = _converted(weight, form, at, *parameterization.line(at))
        known = concrete(value)
        if known is not None and not np.all(np.isfinite(known)):
            where = {name: np.asarray(getattr(level, name)).tolist() for name in ("alpha", "sigma")}
            raise ValueError(
                f"the weight of the loss is not finite for the parameterization {parameterization.name!r} at one of "
                f"the levels {where}: choose a weight or a parameterization with a finite product there (at "
                "alpha = 0 v, x0, velocity and edm; at sigma = 0 epsilon, v, velocity and edm), or leave the level out"
            )
        return value

    return converted


def uniform(level: Level) -> Array:
    """Returns 1, shape S: the same weight for the error in x0 at every level.

    >>> uniform(Level(0.8, 0.6, 0.0))
    1.0
    """
    return 1.0 + 0.0 * level.alpha


def snr(level: Level) -> Array:
    """Returns alpha^2 / sigma^2, shape S: the unweighted loss of the epsilon parameterization.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 14.

    >>> round(float(snr(Level(0.8, 0.6, 0.0))), 4)
    1.7778
    """
    return (level.alpha / level.sigma) ** 2


def min_snr(gamma: float = 5.0) -> Weight:
    """Returns the weight min(SNR, gamma).

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
    https://arxiv.org/abs/2303.09556, section 3.4.

    Raises:
      ValueError: unless gamma is positive.

    >>> float(min_snr(1.0)(Level(0.8, 0.6, 0.0)))
    1.0
    """
    check_positive("gamma", gamma)
    return _Homogeneous(lambda a, s: namespace(a, s).minimum(a, gamma * s))


def truncated_snr(level: Level) -> Array:
    """Returns max(SNR, 1), shape S (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, section 4).

    >>> float(truncated_snr(Level(0.6, 0.8, 0.0)))
    1.0
    """
    return namespace(level).maximum(snr(level), 1.0)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    """Returns the weight SNR / (k + SNR)^gamma, which is 1 / (k + SNR)^gamma on the error in eps.

    Choi et al., "Perception Prioritized Training of Diffusion Models", 2022, https://arxiv.org/abs/2204.00227,
    eq. 8.

    Raises:
      ValueError: unless k is positive.

    >>> round(float(p2()(Level(0.8, 0.6, 0.0))), 4)
    0.64
    """
    check_positive("k", k)

    def form(a: Array, s: Array) -> Array:
        # a (s / (k s + a))^gamma, with the ratio of a and s that is at most 1.
        xp = namespace(a, s)
        ratio, noisy = xp.minimum(a, s) / xp.maximum(a, s), a <= s
        clean = xp.where(noisy, 1.0, a)
        return xp.where(noisy, a / (k + ratio) ** gamma, clean ** (1 - gamma) * (s / (1 + k * ratio)) ** gamma)

    return _Homogeneous(form)


def edm(sigma_data: float = 0.5) -> Weight:
    """Returns the weight (s^2 + sigma_data^2) / (s sigma_data)^2 with s = sigma / alpha.

    It is the unweighted loss of the edm parameterization (Karras et al. 2022, https://arxiv.org/abs/2206.00364,
    table 1 and eq. 8).

    Raises:
      ValueError: unless sigma_data is positive.

    >>> float(edm(0.5)(Level(1.0, 0.5, 0.0)))
    8.0
    """
    check_positive("sigma_data", sigma_data)
    return _Homogeneous(lambda a, s: a + s / sigma_data**2)


def sigmoid(bias: float = 0.0) -> Weight:
    """Returns the weight SNR sigmoid(bias - log SNR), which is sigmoid(bias - log SNR) on the error in eps.

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", 2023,
    https://arxiv.org/abs/2303.00848; Hoogeboom et al. 2024, https://arxiv.org/abs/2410.19324, section 3.

    >>> float(sigmoid()(Level(0.5, 0.5, 0.0)))
    0.5
    """
    factor = math.exp(-bias)

    def form(a: Array, s: Array) -> Array:
        # a s / (s + a factor), with the ratio of a and s that is at most 1.
        xp = namespace(a, s)
        ratio = xp.minimum(a, s) / xp.maximum(a, s)
        return xp.where(a <= s, a / (1 + ratio * factor), s / (ratio + factor))

    return _Homogeneous(form)


def likelihood(process: Process) -> Weight:
    """Returns the weight g^2 alpha^2 / (2 sigma^4) = -d(SNR)/dt / 2 of a process, for times uniform in [t_min, t_max].

    On the error of the score it is g^2 / 2. With it, t_max - t_min times the mean loss bounds the negative
    log-likelihood, in nats per dimension; another distribution of times would change the weight. Song et al.,
    "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258, theorem 1;
    Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 18.

    >>> from diffusers_fn.processes import vp
    >>> round(float(likelihood(vp())(vp()(0.5))), 4)
    0.4684
    """

    def weight(level: Level) -> Array:
        _, g2 = process.rates(process.time(log_snr(level)))
        return snr(level) * g2 / (2 * level.sigma**2)

    return weight


@dataclasses.dataclass(frozen=True)
class _Homogeneous:
    """A weight of the SNR a / s alone, by its form W(a, s): weight = W / s, and c W(a, s) = W(c a, c s)."""

    form: Callable[[Array, Array], Array]

    def __call__(self, level: Level) -> Array:
        value = self.form(snr(level), 1.0)
        return value[()] if isinstance(value, np.ndarray) else value


_FORMS: dict[Weight, Callable[[Array, Array], Array]] = {
    uniform: lambda a, s: s,
    snr: lambda a, s: a,
    truncated_snr: lambda a, s: namespace(a, s).maximum(a, s),
}


def _converted(weight: Weight, form: Callable[[Array, Array], Array] | None, level: Level, p: Any, q: Any) -> Array:
    """weight (sigma / det)^2 with det = alpha q - sigma p; by the form W it is W / det^2."""
    det = level.alpha * q - level.sigma * p
    if form is None:
        return weight(level) * (level.sigma / det) ** 2
    if is_zero(p):  # W / (alpha q)^2
        return form(1.0, (level.sigma / level.alpha) ** 2) / q**2
    if is_zero(q):  # W / (sigma p)^2
        return form((level.alpha / level.sigma) ** 2, 1.0) / p**2
    return form(level.alpha**2, level.sigma**2) / det**2
