"""Loss weights: the factor of |x0 - x0_hat|^2 at each level.

A weight is a function level -> S, written once for the error in x0; `output_weight` converts it to the error in the
network's output, for any parameterization.
"""

from __future__ import annotations

from collections.abc import Callable

from diffusers_fn._arrays import check_positive, namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.parameterizations import Parameterization
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
    p x0 + q eps: |x0 - x0_hat|^2 = (sigma / (alpha q - sigma p))^2 |out - target|^2.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> round(float(output_weight(snr, epsilon)(Level(0.8, 0.6, 0.0))), 6)
    1.0
    """

    def converted(level: Level) -> Array:
        p, q = parameterization.line(level)
        return weight(level) * (level.sigma / (level.alpha * q - level.sigma * p)) ** 2

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
    return lambda level: namespace(level).minimum(snr(level), gamma)


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
    return lambda level: snr(level) / (k + snr(level)) ** gamma


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
    return lambda level: snr(level) + 1.0 / sigma_data**2


def sigmoid(bias: float = 0.0) -> Weight:
    """Returns the weight SNR sigmoid(bias - log SNR), which is sigmoid(bias - log SNR) on the error in eps.

    Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", 2023,
    https://arxiv.org/abs/2303.00848; Hoogeboom et al. 2024, https://arxiv.org/abs/2410.19324, section 3.

    >>> float(sigmoid()(Level(0.5, 0.5, 0.0)))
    0.5
    """
    return lambda level: snr(level) / (1.0 + namespace(level).exp(log_snr(level) - bias))


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
