"""Loss weights: the factor of |x0 - x0_hat|^2 at each level.

A weight is a function level -> S, written once for the error in x0; `output_weight` converts it to the error in the
network's output, for any parameterization. The weights below are products alpha^a sigma^b rest(level), with a `rest`
that is finite and positive at every level. The conversion adds to the powers before it computes them, so that at pure
noise (alpha = 0) and clean data (sigma = 0) the result is the limit and not 0 times infinity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusers_fn._arrays import check_positive, concrete, is_zero, namespace
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


@dataclasses.dataclass(frozen=True)
class _Product:
    """The weight alpha^alpha_power sigma^sigma_power rest(level)."""

    alpha_power: Any
    sigma_power: Any
    rest: Callable[[Level], Any]

    def __call__(self, level: Level) -> Array:
        xp = namespace(level)
        alpha, sigma = xp.asarray(level.alpha), xp.asarray(level.sigma)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            value = _power(alpha, self.alpha_power) * _power(sigma, self.sigma_power) * self.rest(level)
        return xp.broadcast_to(value, np.broadcast_shapes(alpha.shape, sigma.shape))[()]


def output_weight(weight: Weight, parameterization: Parameterization) -> Weight:
    """Returns the weight of |out - target|^2 that equals `weight` on |x0 - x0_hat|^2.

    With x fixed, an error e in x0 is an error -alpha / sigma e in eps, hence (p - q alpha / sigma) e in the output
    p x0 + q eps: |x0 - x0_hat|^2 = (sigma / (alpha q - sigma p))^2 |out - target|^2.

    At alpha = 0 and sigma = 0 the weights of this module have their limits: min_snr on the error in eps is
    min(SNR, gamma) / SNR, which is 1 at pure noise. A weight of your own is multiplied by the factor above.

    Raises:
      ValueError: if `weight` is a name or a function that returns weights; when called, if the weight of a level (not
        traced) is not finite, as that of `uniform` on the error in eps, 1 / SNR, at alpha = 0.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> round(float(output_weight(snr, epsilon)(Level(0.8, 0.6, 0.0))), 6)
    1.0
    >>> float(output_weight(min_snr(5.0), epsilon)(Level(0.0, 1.0, 0.0)))
    1.0
    """
    check_parameterization(parameterization)
    _check_weight(weight)
    product = next((product for plain, product in _PLAIN if weight is plain), weight)

    def converted(level: Level) -> Array:
        p, q = parameterization.line(level)
        if not isinstance(product, _Product):
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                value = product(level) * (np.float64(1.0) * level.sigma / (level.alpha * q - level.sigma * p)) ** 2
        elif is_zero(p):  # the determinant is alpha q
            value = _times(product, -2, 2, 1.0 / q)(level)
        elif is_zero(q):  # it is -sigma p
            value = _times(product, 0, 0, 1.0 / p)(level)
        else:
            value = _times(product, 0, 2, 1.0 / (level.alpha * q - level.sigma * p))(level)
        _check_finite(value, level, parameterization)
        return value

    return converted


def uniform(level: Level) -> Array:
    """Returns 1, shape S: the same weight for the error in x0 at every level.

    >>> float(uniform(Level(0.8, 0.6, 0.0)))
    1.0
    """
    return _UNIFORM(level)


def snr(level: Level) -> Array:
    """Returns alpha^2 / sigma^2, shape S: the unweighted loss of the epsilon parameterization.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 14.

    >>> round(float(snr(Level(0.8, 0.6, 0.0))), 4)
    1.7778
    """
    return _SNR(level)


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
    # min(SNR, gamma) = gamma alpha^2 / max(alpha^2, gamma sigma^2)
    return _Product(2, 0, lambda level: gamma / namespace(level).maximum(level.alpha**2, gamma * level.sigma**2))


def truncated_snr(level: Level) -> Array:
    """Returns max(SNR, 1), shape S (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, section 4).

    >>> float(truncated_snr(Level(0.6, 0.8, 0.0)))
    1.0
    """
    return _TRUNCATED_SNR(level)


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
    return _Product(2, 2 * gamma - 2, lambda level: (k * level.sigma**2 + level.alpha**2) ** -gamma)


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
    return _Product(0, -2, lambda level: level.alpha**2 + (level.sigma / sigma_data) ** 2)


def sigmoid(bias: float = 0.0) -> Weight:
    """Returns the weight SNR sigmoid(bias - log SNR), which is sigmoid(bias - log SNR) on the error in eps.

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", 2023,
    https://arxiv.org/abs/2303.00848; Hoogeboom et al. 2024, https://arxiv.org/abs/2410.19324, section 3.

    >>> float(sigmoid()(Level(0.5, 0.5, 0.0)))
    0.5
    """
    # SNR / (1 + SNR e^-bias)
    return _Product(2, 0, lambda level: 1.0 / (level.sigma**2 + level.alpha**2 * namespace(level, bias).exp(-bias)))


def likelihood(process: Process) -> Weight:
    """Returns the weight g^2 alpha^2 / (2 sigma^4) = -d(SNR)/dt / 2 of a process, for times uniform in [t_min, t_max].

    On the error of the score it is g^2 / 2; at pure noise it is 0. With it, t_max - t_min times the mean loss bounds
    the negative log-likelihood, in nats per dimension; another distribution of times would change the weight.

    Song et al., "Maximum Likelihood Training of Score-Based Diffusion Models", 2021, https://arxiv.org/abs/2101.09258,
    theorem 1; Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 18.

    >>> from diffusers_fn.processes import vp
    >>> round(float(likelihood(vp())(vp()(0.5))), 4)
    0.4684
    """

    def rest(level: Level) -> Array:
        xp = namespace(level)
        pure = level.alpha == 0
        # Where alpha falls to 0, g^2 grows as 1 / alpha: any positive number may stand for the product there.
        _, g2 = process.rates(process.time(xp.where(pure, 0.0, log_snr(level))[()]))
        return xp.where(pure, 1.0, level.alpha * g2 / 2)

    return _Product(1, -4, rest)


def _one(level: Level) -> float:
    return 1.0


_UNIFORM = _Product(0, 0, _one)
_SNR = _Product(2, -2, _one)
_TRUNCATED_SNR = _Product(0, -2, lambda level: namespace(level).maximum(level.alpha**2, level.sigma**2))
_PLAIN = ((uniform, _UNIFORM), (snr, _SNR), (truncated_snr, _TRUNCATED_SNR))


def _times(product: _Product, alpha_power: int, sigma_power: int, root: Any) -> _Product:
    """Returns the product times alpha^alpha_power sigma^sigma_power root^2."""
    return _Product(
        product.alpha_power + alpha_power,
        product.sigma_power + sigma_power,
        lambda level: product.rest(level) * root**2,
    )


def _power(base: Any, exponent: Any) -> Any:
    """Returns base^exponent; 1 for the exponent 0, infinity for a negative one at base = 0."""
    if not isinstance(exponent, int | float):
        return base**exponent
    if exponent == 0:
        return 1.0
    power = base ** (int(abs(exponent)) if exponent == int(exponent) else abs(exponent))
    return power if exponent > 0 else 1.0 / power


def _check_weight(weight: Weight) -> None:
    if isinstance(weight, str):
        raise ValueError(f"weight must be a function, for instance losses.{weight}; got the string {weight!r}")
    if any(weight is make for make in (min_snr, p2, edm, sigmoid, likelihood)):
        name = weight.__name__
        raise ValueError(f"losses.{name} returns a weight: call it first, losses.{name}(...)")
    if not callable(weight):
        raise ValueError(f"weight must be a function of the level, such as losses.snr; got {type(weight).__name__}")


def _check_finite(value: Any, level: Level, parameterization: Parameterization) -> None:
    known = concrete(value)
    if known is None or np.all(np.isfinite(known)):
        return
    where = tuple(np.argwhere(~np.isfinite(known))[0])
    alpha, sigma = (np.broadcast_to(np.asarray(a), known.shape)[where] for a in (level.alpha, level.sigma))
    raise ValueError(
        f"this weight on the error of a network with parameterization {parameterization.name!r} is infinite at "
        f"alpha = {alpha:g}, sigma = {sigma:g}: leave that level out, or use a weight that is bounded there "
        "(losses.min_snr, losses.sigmoid), or parameterization v"
    )
