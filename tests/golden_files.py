"""Reference numbers of other libraries, and their recorded noise for functions that take a key."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn import Denoiser, oracles

FOLDER = pathlib.Path(__file__).parent / "golden"


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of tests/golden/<name>.npz; <folder>/meta.json describes how they were made."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@functools.cache
def meta(folder: str) -> dict[str, Any]:
    """Returns tests/golden/<folder>/meta.json."""
    return json.loads((FOLDER / folder / "meta.json").read_text())


def exact_denoiser(dist: str) -> Denoiser:
    """Returns the exact denoiser of the data ("gauss" or "gmm") that the recorded trajectories were made for."""
    data = load("traj/analytic")
    if dist == "gauss":
        return oracles.gaussian(data["mu"][0], data["sd"][0])
    return oracles.mixture(data["gmm_w"], data["gmm_m"][:, 0], data["gmm_s"], independent=True)


class ReplayedNoise:
    """Replaces jax.random.normal: returns `value`, which the test sets, and checks its shape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.value: Any = None
        monkeypatch.setattr(jax.random, "normal", self)

    def __call__(self, key: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        noise = jnp.asarray(self.value, dtype)
        assert noise.shape == tuple(shape)
        return noise

    def scan(self, draws: np.ndarray) -> Callable[..., Any]:
        """Returns a lax.scan for `sample` in which row i gets draws[i] as its noise."""

        def scan(body: Any, init: Any, xs: Any) -> Any:
            def noisy_body(carry: Any, inputs: Any) -> Any:
                self.value, inputs = inputs
                return body(carry, inputs)

            return jax.lax.scan(noisy_body, init, (jnp.asarray(draws), xs))

        return scan
