"""Noise levels, the one currency of this library, and the Gaussians between two of them.

Every Gaussian diffusion is x = alpha * x0 + sigma * eps. Shapes: B is the batch; S, the shape of a level, is
[] (one level for the batch) or [B] (one an example); a plan of N levels has S = [N].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import check_data, check_per_example, expand, namespace

Array = Any  # a NumPy array on the host (float64) or a JAX array; each function returns the kind it was given


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Level:
    """A noise level: x = alpha * x0 + sigma * eps, with the time label t that the network wants.

    Attributes:
      alpha: S, the scale of the clean data.
      sigma: S, the standard deviation of the noise.
      t: S, the label handed to the network (a timestep, log sigma / 4, ...); the algebra never reads it.

    A plan Level[N] is indexed, sliced and iterated over like an array: `levels[0]`, `levels[1:]`, `for level in plan`.

    >>> Level(alpha=0.8, sigma=0.6, t=300.0)
    Level(alpha=0.8, sigma=0.6, t=300.0)
    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> levels[1:].sigma, [float(level.sigma) for level in levels]
    (array([0.6]), [0.8, 0.6])
    """

    alpha: Array
    sigma: Array
    t: Array

    def __getitem__(self, index: Any) -> Level:
        """Returns the level or levels at an index, slice or array of indices of the first axis."""
        return jax.tree.map(lambda a: a[index], self)

    def __iter__(self) -> Iterator[Level]:
        """Yields the levels along the first axis."""
        return (self[i] for i in range(np.shape(self.sigma)[0]))


def append(levels: Level, level: Level) -> Level:
    """Returns Level[N + M]: the levels followed by another level, S = [N], [M] or [] (M = 1).

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> append(levels, Level(1.0, 0.0, -1.0)).sigma
    array([0.8, 0.6, 0. ])
    """

    def join(a: Array, b: Array) -> Array:
        xp = namespace(a, b)
        b = xp.asarray(b)
        return xp.concatenate([a, b[None] if b.ndim < np.ndim(a) else b])

    return jax.tree.map(join, levels, level)


def add_noise(x0: jax.Array, noise: jax.Array, level: Level) -> jax.Array:
    """Returns x = alpha * x0 + sigma * noise, a draw of q(x | x0) at a level.

    Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239, eq. 4.

    Args:
      x0: [B, ...] clean data, floating type.
      noise: [B, ...] standard normal noise.
      level: S = [] or [B].

    Raises:
      ValueError: if shapes or dtypes do not agree.

    >>> import jax.numpy as jnp
    >>> print(add_noise(jnp.ones((2, 3)), jnp.zeros((2, 3)), Level(0.8, 0.6, 0.0))[0])
    [0.8 0.8 0.8]
    """
    check_data(x0=x0, noise=noise)
    check_level(level, x0)
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise


def log_snr(level: Level) -> Array:
    """Returns log(alpha^2 / sigma^2), shape S: +inf at the clean level, -inf, of slope 0, where alpha = 0.

    Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630, eq. 3.

    >>> float(log_snr(Level(alpha=0.5, sigma=0.5, t=0.0)))
    0.0
    """
    xp = namespace(level)
    pure = level.alpha == 0
    with np.errstate(divide="ignore"):
        ratio = 2.0 * (xp.log(xp.where(pure, 1.0, level.alpha)) - xp.log(level.sigma))
    return xp.where(pure, -np.inf, ratio)[()]


def transition(frm: Level, to: Level) -> tuple[Array, Array]:
    """Returns (ratio, var) of q(x_frm | x_to) = N(ratio * x_to, var), where `frm` is the noisier level.

    ratio = alpha_frm / alpha_to and var = sigma_frm^2 - ratio^2 sigma_to^2 (Kingma et al. 2021, eq. 29-30,
    https://arxiv.org/abs/2107.00630). Between neighbouring DDPM timesteps ratio^2 = 1 - beta and var = beta.

    >>> ratio, var = transition(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    >>> round(float(ratio), 3), round(float(var), 3)
    (0.6, 0.64)
    """
    return frm.alpha / to.alpha, frm.sigma**2 * (1.0 - snr_ratio(frm, to))


def posterior(frm: Level, to: Level) -> tuple[Array, Array, Array]:
    """Returns (coef_x0, coef_x, var) of q(x_to | x_frm, x0) = N(coef_x0 * x0 + coef_x * x_frm, var).

    With r = SNR_frm / SNR_to (between 0 and 1 since `frm` is the noisier level):

        coef_x0 = alpha_to (1 - r),   coef_x = r alpha_to / alpha_frm,   var = sigma_to^2 (1 - r)

    which is eq. 7 of Ho et al. 2020 (https://arxiv.org/abs/2006.11239) for any two levels. `to` may be the
    clean level (the result is then x0 itself) and `frm` may have alpha = 0 (the result is then q(x_to | x0)).

    >>> coef_x0, coef_x, var = posterior(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    >>> float(coef_x0), float(coef_x), float(var)
    (1.0, 0.0, 0.0)
    """
    r = snr_ratio(frm, to)
    # r * alpha_to / alpha_frm, written so that alpha_frm = 0 needs no division by it.
    coef_x = (frm.alpha / to.alpha) * (to.sigma / frm.sigma) ** 2
    return to.alpha * (1.0 - r), coef_x, to.sigma**2 * (1.0 - r)


def snr_ratio(frm: Level, to: Level) -> Array:
    """Returns SNR_frm / SNR_to, between 0 (to a clean level) and 1 (to the same level); `frm` is the noisier level.

    >>> snr_ratio(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    0.0
    """
    return root_snr_ratio(frm, to) ** 2


def root_snr_ratio(frm: Level, to: Level) -> Array:
    """Returns sqrt(SNR_frm / SNR_to), e^-h of a hop of length h in log(alpha / sigma); `frm` is the noisier level.

    >>> round(root_snr_ratio(Level(0.6, 0.8, 1.0), Level(0.8, 0.6, 0.0)), 4)
    0.5625
    """
    return (frm.alpha * to.sigma) / (frm.sigma * to.alpha)


def check_level(level: Level, x: Any) -> None:
    """Raises ValueError unless alpha and sigma have shape [] or [B], where B is x's first axis."""
    check_per_example("level.alpha", level.alpha, x)
    check_per_example("level.sigma", level.sigma, x)
