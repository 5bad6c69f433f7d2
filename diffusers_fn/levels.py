"""Noise levels, and the Gaussians between two of them.

Every Gaussian diffusion is x = alpha * x0 + sigma * eps. Shapes: B is the batch size; S, the shape of a level, is
[] (one level for the whole batch) or [B] (one level per example); a plan of N levels has S = [N].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import EllipsisType
from typing import TYPE_CHECKING

import jax
import numpy as np

from diffusers_fn._arrays import check_data, check_per_example, expand, namespace
from diffusers_fn._types import Array, ArrayLike

__all__ = [
    "Array",
    "Level",
    "add_noise",
    "append",
    "check_level",
    "log_snr",
    "posterior",
    "root_snr_ratio",
    "snr_ratio",
    "transition",
]


def __dir__() -> list[str]:
    return __all__


_Index = int | np.integer | slice | EllipsisType | None | Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Level:
    """A noise level: x = alpha * x0 + sigma * eps, with the time label t of the network.

    Attributes:
      alpha: S, the scale of the clean data.
      sigma: S, the standard deviation of the noise.
      t: S, the network's input for the level (a timestep, log sigma / 4, ...); no formula here reads it.

    A plan Level[N] is indexed, sliced and iterated like an array: `levels[0]`, `levels[1:]`, `for level in levels`.

    >>> Level(alpha=0.8, sigma=0.6, t=300.0)
    Level(alpha=0.8, sigma=0.6, t=300.0)
    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> levels[1:].sigma, [float(level.sigma) for level in levels]
    (array([0.6]), [0.8, 0.6])
    """

    alpha: Array
    sigma: Array
    t: Array

    if TYPE_CHECKING:  # a level is made of numbers too

        def __init__(self, alpha: ArrayLike, sigma: ArrayLike, t: ArrayLike) -> None: ...

    def __getitem__(self, index: _Index | tuple[_Index, ...]) -> Level:
        """Returns the level or levels at `index`: an integer, a slice, an array of integers or booleans, or a tuple.

        Raises:
          IndexError: if this is a single level, or an integer is out of range (JAX alone would clamp it).
        """
        size = self._size()
        if isinstance(index, int | np.integer) and not -size <= index < size:
            raise IndexError(f"level {index} is out of range for a plan of {size} levels")
        return jax.tree.map(lambda values: values[index], self)

    def __iter__(self) -> Iterator[Level]:
        """Yields the levels along the first axis."""
        return (self[i] for i in range(self._size()))

    def _size(self) -> int:
        """Returns the number of levels."""
        if np.ndim(self.sigma) == 0:
            raise IndexError("a single level (S = []) cannot be indexed or iterated over; a plan Level[N] can")
        return np.shape(self.sigma)[0]


def append(levels: Level, level: Level) -> Level:
    """Returns the levels [N] followed by another level: Level[N + 1], or Level[N + M] if `level` is a plan [M].

    Levels [N, B] are followed by a level [] or [B], or by a plan [M, B].

    >>> levels = Level(np.array([0.6, 0.8]), np.array([0.8, 0.6]), np.array([1.0, 0.0]))
    >>> append(levels, Level(1.0, 0.0, -1.0)).sigma
    array([0.8, 0.6, 0. ])
    """

    def join(a: Array, b: Array) -> Array:
        xp = namespace(a, b)
        b = xp.asarray(b)
        return xp.concatenate([a, xp.broadcast_to(b, np.shape(a)[1:])[None] if b.ndim < np.ndim(a) else b])

    return jax.tree.map(join, levels, level)


def add_noise(x0: jax.Array, noise: jax.Array, level: Level) -> jax.Array:
    """Returns x = alpha * x0 + sigma * noise, shape [B, ...]: a draw from q(x | x0) at a noise level.

    Ho et al., "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239, eq. 4.

    Args:
      x0: [B, ...] clean data, floating type.
      noise: [B, ...] standard normal noise.
      level: S = [] or [B].

    Raises:
      ValueError: if the shapes differ or a dtype is not floating.

    >>> import jax.numpy as jnp
    >>> print(add_noise(jnp.ones((2, 3)), jnp.zeros((2, 3)), Level(0.8, 0.6, 0.0))[0])
    [0.8 0.8 0.8]
    """
    check_data(x0=x0, noise=noise)
    check_level(level, x0)
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise


def log_snr(level: Level) -> Array:
    """Returns log(alpha^2 / sigma^2), shape S: +inf at the clean level, -inf with derivative 0 where alpha = 0.

    Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630, eq. 3.

    >>> float(log_snr(Level(alpha=0.5, sigma=0.5, t=0.0)))
    0.0
    """
    xp = namespace(level)
    pure = level.alpha == 0
    with np.errstate(divide="ignore"):
        ratio = 2.0 * (xp.log(xp.where(pure, 1.0, level.alpha)) - xp.log(level.sigma))
    return xp.where(pure, -np.inf, ratio)[()]


def transition(noisier: Level, cleaner: Level) -> tuple[Array, Array]:
    """Returns (ratio, var) of q(x_noisier | x_cleaner) = N(ratio * x_cleaner, var), shape S each.

        ratio = alpha_noisier / alpha_cleaner,   var = sigma_noisier^2 - ratio^2 sigma_cleaner^2

    Kingma et al., "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630, eq. 29-30.
    Between neighbouring DDPM timesteps ratio^2 = 1 - beta and var = beta.

    >>> ratio, var = transition(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    >>> round(float(ratio), 3), round(float(var), 3)
    (0.6, 0.64)
    """
    return noisier.alpha / cleaner.alpha, noisier.sigma**2 * (1.0 - snr_ratio(noisier, cleaner))


def posterior(noisier: Level, cleaner: Level) -> tuple[Array, Array, Array]:
    """Returns (coef_x0, coef_x, var) of q(x_cleaner | x_noisier, x0) = N(coef_x0 * x0 + coef_x * x_noisier, var).

    With r = SNR_noisier / SNR_cleaner, in [0, 1]:

        coef_x0 = alpha_cleaner (1 - r),   coef_x = r alpha_cleaner / alpha_noisier,   var = sigma_cleaner^2 (1 - r)

    which is eq. 7 of Ho et al. 2020 (https://arxiv.org/abs/2006.11239) for any two levels, shape S each. `cleaner` may
    be the clean level (the result is then x0 itself), and `noisier` may have alpha = 0 (then it is q(x_cleaner | x0)).

    >>> coef_x0, coef_x, var = posterior(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    >>> float(coef_x0), float(coef_x), float(var)
    (1.0, 0.0, 0.0)
    """
    r = snr_ratio(noisier, cleaner)
    # r * alpha_cleaner / alpha_noisier, written so that alpha_noisier = 0 needs no division by it.
    coef_x = (noisier.alpha / cleaner.alpha) * (cleaner.sigma / noisier.sigma) ** 2
    return cleaner.alpha * (1.0 - r), coef_x, cleaner.sigma**2 * (1.0 - r)


def snr_ratio(noisier: Level, cleaner: Level) -> Array:
    """Returns SNR_noisier / SNR_cleaner, shape S: 0 if `cleaner` is the clean level, 1 if both are the same level.

    >>> snr_ratio(Level(0.6, 0.8, 1.0), Level(1.0, 0.0, 0.0))
    0.0
    """
    return root_snr_ratio(noisier, cleaner) ** 2


def root_snr_ratio(noisier: Level, cleaner: Level) -> Array:
    """Returns sqrt(SNR_noisier / SNR_cleaner), shape S: e^-h for a step of length h in log(alpha / sigma).

    >>> round(root_snr_ratio(Level(0.6, 0.8, 1.0), Level(0.8, 0.6, 0.0)), 4)
    0.5625
    """
    return (noisier.alpha * cleaner.sigma) / (noisier.sigma * cleaner.alpha)


def check_level(level: Level, x: ArrayLike) -> None:
    """Raises ValueError unless `level` is a Level whose alpha and sigma have shape [] or [B], B the first axis of x.

    >>> check_level(Level(0.8, 0.6, 0.0), np.zeros((2, 3)))
    """
    if not isinstance(level, Level):
        raise ValueError(
            f"level must be a Level, such as process(t) or level_at(schedule, t); got {type(level).__name__}"
        )
    check_per_example("level.alpha", level.alpha, x)
    check_per_example("level.sigma", level.sigma, x)
