"""What is refused before anything is traced."""

from __future__ import annotations

import jax
import numpy as np

from diffusers_fn._arrays import concrete
from diffusers_fn.denoisers import Denoiser
from diffusers_fn.levels import Level


def check_pure_noise(denoise: Denoiser, levels: Level, x: jax.Array) -> None:
    """Lets the denoiser see a level with alpha = 0 while its numbers can be read: in a scan they are traced.

    >>> from diffusers_fn import oracles
    >>> check_pure_noise(oracles.gaussian(0.0, 1.0), Level(np.zeros(1), np.ones(1), np.ones(1)), np.zeros((1, 2)))
    """
    alpha = concrete(levels.alpha)
    if alpha is not None and np.any(alpha == 0):
        pure = jax.tree.map(lambda a: np.asarray(a)[int(np.argmax(alpha == 0))], levels)
        jax.eval_shape(lambda x: denoise(x, pure), x)
