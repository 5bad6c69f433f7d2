"""Processes with alpha(t) and sigma(t) in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.processes.base import Process, TimeFunction, check_ordered, make_process, on_circle, ones, sigmoid

__all__ = ["cosine", "edm", "flow", "sub_vp", "trigonometric", "ve", "vp"]


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Returns the variance-preserving process with linear beta(t), t in [0, 1], labelled by t.

        B(t) = beta_min t + (beta_max - beta_min) t^2 / 2,   alpha = exp(-B / 2),   sigma^2 = 1 - exp(-B)
        f = -beta(t) / 2,   g^2 = beta(t)

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, eq. 11 and 29. It is not DDPM's noise schedule, for which see `tabulated`. The
    networks of that paper take the label 999 t: `labelled(vp(), lambda t: 999 * t)`.

    Raises:
      ValueError: unless 0 < beta_min <= beta_max.

    >>> level = vp()(1.0)
    >>> f"{level.alpha:.6f} {level.sigma:.6f}"
    '0.006572 0.999978'
    """
    check_ordered(beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_beta(beta_min, beta_max)

    def coefficients(t: ArrayLike) -> tuple[Array, Array]:
        b = integral(t)
        xp = namespace(b)
        return xp.exp(-b / 2), xp.sqrt(-xp.expm1(-b))

    def time(log_snr: ArrayLike) -> Array:  # 1 / alpha^2 = 1 + 1 / SNR
        return inverse(namespace(log_snr).logaddexp(0.0, -log_snr))

    def rates(t: Any) -> tuple[Array, Array]:
        beta = beta_min + (beta_max - beta_min) * t
        return -beta / 2, beta

    return make_process(coefficients, time, rates, ends=(1e-3, 1.0))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Process:
    """Returns the sub-VP process: alpha of `vp` and the smaller sigma = 1 - exp(-B), t in [0, 1], labelled by t.

        f = -beta(t) / 2,   g^2 = beta(t) (1 - exp(-2 B(t)))

    Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 13 and 29.

    Raises:
      ValueError: unless 0 < beta_min <= beta_max.

    >>> f"{sub_vp()(1.0).sigma:.6f}"
    '0.999957'
    """
    check_ordered(beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_beta(beta_min, beta_max)

    def coefficients(t: ArrayLike) -> tuple[Array, Array]:
        b = integral(t)
        xp = namespace(b)
        return xp.exp(-b / 2), -xp.expm1(-b)

    def time(log_snr: ArrayLike) -> Array:  # sigma / alpha = 1 / alpha - alpha = 2 sinh(B / 2)
        xp = namespace(log_snr)
        return inverse(2 * xp.arcsinh(xp.exp(-log_snr / 2) / 2))

    def rates(t: Any) -> tuple[Array, Array]:
        beta = beta_min + (beta_max - beta_min) * t
        b = integral(t)
        return -beta / 2, -beta * namespace(b).expm1(-2 * b)

    return make_process(coefficients, time, rates, ends=(1e-3, 1.0))


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Process:
    """Returns the variance-exploding process: alpha = 1, sigma exponential in t, t in [0, 1], labelled by t.

        sigma = sigma_min (sigma_max / sigma_min)^t,   f = 0,   g^2 = 2 sigma^2 log(sigma_max / sigma_min)

    Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 9 and 29 (where sigma_min is counted as part of the
    data). The networks of that paper take the label sigma: `labelled(ve(), lambda t: ve()(t).sigma)`.

    Raises:
      ValueError: unless 0 < sigma_min < sigma_max.

    >>> f"{ve()(1.0).sigma:.6f}"
    '50.000000'
    """
    check_ordered(strictly=True, sigma_min=sigma_min, sigma_max=sigma_max)
    ratio = sigma_max / sigma_min
    log_ratio = namespace(ratio).log(ratio)
    log_min = namespace(sigma_min).log(sigma_min)

    def coefficients(t: ArrayLike) -> tuple[Array, Array]:
        sigma = namespace(t, ratio).exp(log_min + log_ratio * t)
        return ones(sigma), sigma

    def time(log_snr: ArrayLike) -> Array:
        return (-log_snr / 2 - log_min) / log_ratio

    def rates(t: Any) -> tuple[Array, Array]:
        _, sigma = coefficients(t)
        return 0.0 * sigma, 2 * log_ratio * sigma**2

    return make_process(coefficients, time, rates, ends=(1e-5, 1.0))


def cosine(s: float = 0.008) -> Process:
    """Returns the cosine process, t in [0, 1], labelled by t.

        alpha = cos(theta(t)) / cos(theta(0)),   theta(t) = (t + s) / (1 + s) * pi / 2,   alpha^2 + sigma^2 = 1
        f = -c tan(theta),   g^2 = 2 c tan(theta),   c = pi / 2 / (1 + s)

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672,
    eq. 17, without the clipping of `cosine_betas`. At t = 1 it is pure noise; t_max = 0.9946, as in DPM-Solver (Lu et
    al. 2022, https://arxiv.org/abs/2206.00927), so that log SNR is finite on a plan.

    Raises:
      ValueError: if s < 0.

    >>> cosine()(1.0).alpha
    np.float64(0.0)
    """
    if (value := concrete(s)) is not None and value < 0:
        raise ValueError(f"s, the offset of the cosine process, must not be negative; got {s}")
    c = np.pi / 2 / (1 + s)
    xp = namespace(s)
    cos_start, sin_start = xp.cos(c * s), xp.sin(c * s)

    def coefficients(t: ArrayLike) -> tuple[Array, Array]:
        # cos(theta) = sin(c (1 - t)) is 0 at t = 1; sigma^2 is a product of sines, without cancellation near t = 0.
        xp = namespace(t, c)
        sigma2 = xp.sin(c * t) * xp.sin(c * (t + 2 * s)) / cos_start**2
        return xp.sin(c * (1 - t)) / cos_start, xp.sqrt(sigma2)

    def time(log_snr: ArrayLike) -> Array:
        alpha, sigma = on_circle(log_snr)
        sin_theta = namespace(sigma, s).sqrt(sin_start**2 + (cos_start * sigma) ** 2)
        return namespace(sin_theta).arctan2(sin_theta, cos_start * alpha) / c - s

    def rates(t: Any) -> tuple[Array, Array]:
        xp = namespace(t, c)
        tan = xp.sin(c * (t + s)) / xp.sin(c * (1 - t))
        return -c * tan, 2 * c * tan

    return make_process(coefficients, time, rates, ends=(1e-3, 0.9946))


def trigonometric() -> Process:
    """Returns the process alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1], labelled by t.

        f = -(pi / 2) tan(pi t / 2),   g^2 = pi tan(pi t / 2)

    The generalised variance-preserving interpolant of SiT (Ma et al. 2024, https://arxiv.org/abs/2401.08740; time runs
    the other way in its code). It is `cosine(0)` with t_max = 1. Its log SNR, -2 log tan(pi t / 2), is the schedule of
    simple diffusion (Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093).

    >>> level = trigonometric()(0.5)
    >>> round(float(level.alpha), 6), round(float(level.sigma), 6)
    (0.707107, 0.707107)
    """
    return cosine(0.0)._replace(t_max=1.0)


def flow() -> Process:
    """Returns the linear path between data and noise: alpha = 1 - t, sigma = t, t in [0, 1], labelled by t.

        f = -1 / (1 - t),   g^2 = 2 t / (1 - t)

    Liu et al., "Flow Straight and Fast", 2023, https://arxiv.org/abs/2209.03003, eq. 1, and Lipman et al., "Flow
    Matching", 2023, https://arxiv.org/abs/2210.02747, eq. 20 (in both, time runs from noise to data). For networks
    that take the label 1000 t: `labelled(flow(), lambda t: 1000 * t)`.

    >>> flow()(0.25)
    Level(alpha=np.float64(0.75), sigma=np.float64(0.25), t=np.float64(0.25))
    """

    def time(log_snr: ArrayLike) -> Array:
        return sigmoid(-log_snr / 2)

    def rates(t: Any) -> tuple[Array, Array]:
        return -1 / (1 - t), 2 * t / (1 - t)

    return make_process(lambda t: (1 - t, t), time, rates, ends=(1e-3, 1.0))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """Returns EDM's process, with the noise level as the time: alpha = 1, sigma = t > 0, labelled by log(sigma) / 4.

        f = 0,   g^2 = 2 t

    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, section 3 and table 1. sigma_min and sigma_max are the ends of sampling, t_min and
    t_max; the process is defined for every t > 0.

    Raises:
      ValueError: unless 0 < sigma_min < sigma_max.

    >>> edm()(1.0)
    Level(alpha=np.float64(1.0), sigma=np.float64(1.0), t=np.float64(0.0))
    """
    check_ordered(strictly=True, sigma_min=sigma_min, sigma_max=sigma_max)

    def time(log_snr: ArrayLike) -> Array:
        return namespace(log_snr).exp(-log_snr / 2)

    return make_process(
        lambda t: (ones(t), t),
        time,
        lambda t: (0.0 * t, 2.0 * t),
        ends=(sigma_min, sigma_max),
        domain=(float(np.finfo(np.float32).tiny), np.inf),
        label=lambda t: namespace(t).log(t) / 4,
    )


def _linear_beta(beta_min: Any, beta_max: Any) -> tuple[TimeFunction, TimeFunction]:
    """Returns B(t), the integral of beta from 0 to t, and its inverse."""
    slope = beta_max - beta_min

    def integral(t: ArrayLike) -> Array:
        return t * (beta_min + slope * t / 2)

    def inverse(b: Any) -> Array:
        root = beta_min**2 + 2 * slope * b
        return 2 * b / (beta_min + namespace(root).sqrt(root))

    return integral, inverse
