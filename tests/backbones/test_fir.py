"""Halving and doubling with a filter: means, the simplest filter, transposition, and which filters there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.backbones import blocks
from diffusers_fn.backbones.fir import fir_down, fir_up

X = jnp.asarray(np.random.default_rng(0).standard_normal([2, 4, 6, 3]), jnp.float32)
FILTERS = [(1, 1), (1, 3, 3, 1), (1, 2, 5, 1), (1, 5, 10, 10, 5, 1)]


def test_two_taps_are_the_mean_and_the_repetition():
    np.testing.assert_allclose(fir_down(X, (1, 1)), blocks.average_pool(X), atol=1e-6)
    np.testing.assert_allclose(fir_up(X, (1, 1)), blocks.nearest(X), atol=1e-6)


def test_four_taps_interpolate_linearly():
    line = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones([1, 8, 1, 1])
    inside = fir_up(line)[0, 4, 2:-2, 0]
    np.testing.assert_allclose(inside, np.arange(2, 14) / 2 - 0.25, atol=1e-6)  # pixel centres at (i + 1/2) / 2 - 1/2


@pytest.mark.parametrize("taps", FILTERS)
def test_constants_stay_inside(taps):
    ones = jnp.ones([1, 12, 12, 2])
    border = len(taps) // 2
    np.testing.assert_allclose(fir_down(ones, taps)[:, border:-border, border:-border], 1, atol=1e-6)
    if taps == taps[::-1]:  # else its even and its odd taps have different sums
        np.testing.assert_allclose(fir_up(ones, taps)[:, len(taps) : -len(taps), len(taps) : -len(taps)], 1, atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_doubling_is_four_times_the_transpose_of_halving(taps):
    small = jnp.asarray(np.random.default_rng(1).standard_normal([2, 2, 3, 3]), jnp.float32)
    (back,) = jax.linear_transpose(lambda x: fir_down(x, taps), X)(small)
    assert fir_down(X, taps).shape == small.shape
    np.testing.assert_allclose(fir_up(small, taps), 4 * back, atol=1e-5)


@pytest.mark.parametrize("taps", [(), (1,), (1, 2, 1), (1, -1)])
def test_other_filters_are_refused(taps):
    with pytest.raises(ValueError, match=r"an even number of taps and a sum other than 0; got \("):
        fir_down(X, taps)
