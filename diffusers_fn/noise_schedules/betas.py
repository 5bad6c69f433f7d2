"""Beta sequences [T], float64 on the host: betas[t] is the variance that step t adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "check_betas",
    "cosine_betas",
    "exponential_betas",
    "laplace_betas",
    "linear_betas",
    "quadratic_betas",
    "scaled_linear_betas",
    "sigmoid_betas",
    "sqrt_betas",
    "zero_terminal_snr",
]


def linear_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T], evenly spaced from beta_start to beta_end (Ho et al. 2020, section 4).

    https://arxiv.org/abs/2006.11239. The ends are not rescaled if T differs from 1000.

    Raises:
      ValueError: if num_timesteps < 1, or unless 0 <= beta_start <= beta_end <= 1.

    >>> linear_betas(1000)[[0, -1]]
    array([0.0001, 0.02  ])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start, beta_end, int(num_timesteps), dtype=np.float64)


def scaled_linear_betas(num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """Returns betas [T] whose square roots are evenly spaced; the defaults are latent diffusion's.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752 (called `linear` in its code and `scaled_linear` in other libraries).

    Raises:
      ValueError: as `linear_betas`.

    >>> scaled_linear_betas(1000)[[0, -1]]
    array([0.00085, 0.012  ])
    """
    return quadratic_betas(num_timesteps, beta_start, beta_end)


def quadratic_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] = linspace(sqrt(beta_start), sqrt(beta_end))^2, `quad` in the code of DDPM.

    Ho et al. 2020, https://arxiv.org/abs/2006.11239.

    Raises:
      ValueError: as `linear_betas`.

    >>> quadratic_betas(3, 0.01, 0.09)
    array([0.01, 0.04, 0.09])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, int(num_timesteps), dtype=np.float64) ** 2


def sqrt_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] = sqrt(linspace(beta_start, beta_end)), `sqrt` in the code of latent diffusion.

    Rombach et al. 2022, https://arxiv.org/abs/2112.10752.

    Raises:
      ValueError: as `linear_betas`.

    >>> sqrt_betas(2, 0.01, 0.04)
    array([0.1, 0.2])
    """
    return np.sqrt(linear_betas(num_timesteps, beta_start, beta_end))


def cosine_betas(num_timesteps: int, s: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Returns betas [T] of the cosine schedule, clipped at max_beta.

        alpha_bar(u) = cos^2((u + s) / (1 + s) * pi / 2),   beta_t = min(1 - alpha_bar(t+1) / alpha_bar(t), max_beta)

    with u = t / T. Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672, eq. 17.

    Raises:
      ValueError: if num_timesteps < 1, s < 0 or max_beta is not in (0, 1].

    >>> cosine_betas(1000)[-1]
    np.float64(0.999)
    """
    _check_num_timesteps(num_timesteps)
    if s < 0:
        raise ValueError(f"s, the offset of the cosine schedule, must not be negative; got {s}")
    return _betas_of(lambda u: np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, num_timesteps, max_beta)


def exponential_betas(num_timesteps: int, rate: float = 12.0, max_beta: float = 0.999) -> np.ndarray:
    """Returns betas [T], all equal, of alpha_bar(u) = e^(-rate u) with u = (t + 1) / T: `exp` in other libraries.

    Raises:
      ValueError: if num_timesteps < 1, rate is not positive or max_beta is not in (0, 1].

    >>> exponential_betas(1000)[-1].round(6)
    np.float64(0.011928)
    """
    _check_num_timesteps(num_timesteps)
    if not rate > 0:
        raise ValueError(f"rate must be positive; got {rate}")
    return _betas_of(lambda u: np.exp(-rate * u), num_timesteps, max_beta)


def laplace_betas(num_timesteps: int, max_beta: float = 0.999) -> np.ndarray:
    """Returns betas [T] of a Laplace distribution of log SNR, as other libraries define them.

        lambda(u) = -1/2 sign(1/2 - u) log(1 - 2 |1/2 - u| + 1e-6),   alpha_bar(u) = sqrt(e^lambda / (1 + e^lambda))

    with u = t / T. Hang et al., "Improved Noise Schedule for Diffusion Training", 2024,
    https://arxiv.org/abs/2407.03297, table 1 with mean 0 and b = 1/2; the square root is not in the paper.

    Raises:
      ValueError: if num_timesteps < 1 or max_beta is not in (0, 1].

    >>> laplace_betas(1000)[[0, -1]].round(4)
    array([0.0212, 0.8473])
    """
    _check_num_timesteps(num_timesteps)

    def alpha_bar(u: np.ndarray) -> np.ndarray:
        log_snr = -0.5 * np.copysign(1.0, 0.5 - u) * np.log(1.0 - 2.0 * np.abs(0.5 - u) + 1e-6)
        return np.sqrt(1.0 / (1.0 + np.exp(-log_snr)))

    return _betas_of(alpha_bar, num_timesteps, max_beta)


def sigmoid_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 2e-2) -> np.ndarray:
    """Returns betas [T] along a sigmoid: beta_start + (beta_end - beta_start) * sigmoid(linspace(-6, 6)).

    Xu et al., "GeoDiff", 2022, https://arxiv.org/abs/2203.02923.

    Raises:
      ValueError: as `linear_betas`.

    >>> sigmoid_betas(3, 0.0, 1.0).round(4)
    array([0.0025, 0.5   , 0.9975])
    """
    _check_ends(num_timesteps, beta_start, beta_end)
    sigmoid = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, int(num_timesteps), dtype=np.float64)))
    return beta_start + (beta_end - beta_start) * sigmoid


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Returns betas [T] rescaled so that the last level is pure noise and the first level is unchanged.

    sqrt(alpha_bar) is mapped linearly onto [0, its first value]. Lin et al., "Common Diffusion Noise Schedules
    and Sample Steps are Flawed", 2024, https://arxiv.org/abs/2305.08891, algorithm 1. The last beta is 1: train with
    the v or x0 parameterization, since epsilon does not determine x0 at pure noise.

    Raises:
      ValueError: if T < 2, or as `make_noise_schedule`.

    >>> zero_terminal_snr(linear_betas(1000))[-1]
    np.float64(1.0)
    """
    root = np.sqrt(np.cumprod(1.0 - check_betas(betas)))
    if root.size < 2:
        raise ValueError("zero_terminal_snr needs at least 2 timesteps; got 1")
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alphas_cumprod = root**2
    return 1.0 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])


def check_betas(betas: Any) -> np.ndarray:
    """Returns the betas as float64, or raises ValueError unless they are a vector of numbers in (0, 1].

    >>> check_betas([0.1, 0.2])
    array([0.1, 0.2])
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a vector [T] with T >= 1; got shape {betas.shape}")
    if not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
        raise ValueError(
            "betas must lie in (0, 1), only the last may be 1 (zero terminal SNR); "
            f"got values from {betas.min()} to {betas.max()}"
        )
    return betas


def _betas_of(alpha_bar: Callable[[np.ndarray], np.ndarray], num_timesteps: int, max_beta: float) -> np.ndarray:
    """min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), max_beta), [T]."""
    if not 0 < max_beta <= 1:
        raise ValueError(f"max_beta must lie in (0, 1]; got {max_beta}")
    values = alpha_bar(np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps)
    return np.minimum(1.0 - values[1:] / values[:-1], max_beta)


def _check_num_timesteps(num_timesteps: int) -> None:
    if num_timesteps != int(num_timesteps) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be an integer of at least 1; got {num_timesteps}")


def _check_ends(num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(num_timesteps)
    if not 0 <= beta_start <= beta_end <= 1:
        raise ValueError(f"betas must satisfy 0 <= beta_start <= beta_end <= 1; got {beta_start} and {beta_end}")
