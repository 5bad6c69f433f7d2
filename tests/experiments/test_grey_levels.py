"""Grey levels of data: found on any scale, refused where given wrongly, and what they mean for bits per dimension."""

import numpy as np
import pytest

from configs import learned_variance
from diffusers_fn.from_config.defaults import customise
from experiments import data, grey_levels, runs

PIXELS = np.random.default_rng(0).integers(0, 256, 2_000)
RANGE = (-1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "bounds", "first", "last", "num_levels"),
    [
        (PIXELS / 127.5 - 1, RANGE, -1, 1, 256),
        (np.array([0, 3, 100, 255]) / 127.5 - 1, RANGE, -1, 1, 256),
        (np.array([-1.0, 0.125, 0.25, 1.0]), RANGE, -1, 1, 17),
        (PIXELS / 255, RANGE, 0, 1, 256),  # floats in [0, 1] that pass for [-1, 1]
        (PIXELS / 255, None, 0, 1, 256),
        (PIXELS, None, 0, 255, 256),
        ((PIXELS + 0.5) / 128 - 1, RANGE, -1 + 1 / 256, 1 - 1 / 256, 256),  # centres of bins
        (PIXELS % 17 * 0.75 - 40, None, -40, -28, 17),
        (np.arange(1000) / 999, None, 0, 1, 1000),
        (np.arange(65536) / 32767.5 - 1, RANGE, -1, 1, 65536),
    ],
)
def test_levels_are_found_on_any_scale(values, bounds, first, last, num_levels):
    found = grey_levels.find_grid(values.astype(np.float32), bounds)
    np.testing.assert_allclose(found, (first, last, num_levels), atol=1e-6)


def test_real_numbers_have_no_levels():
    rng = np.random.default_rng(0)
    assert grey_levels.find_grid(rng.uniform(-1, 1, 1_000).astype(np.float32), RANGE) is None
    assert grey_levels.find_grid(3 * rng.normal(size=5_000).astype(np.float32), None) is None


def test_given_levels_must_hold_the_data():
    digits = (np.arange(17) / 8 - 1).astype(np.float32)
    assert grey_levels.given_grid(17, digits, RANGE).num_levels == 17
    with pytest.raises(ValueError, match=r"5 grey levels from -1 to 1 \(--num_levels=5\): they have 17 grey levels"):
        grey_levels.given_grid(5, digits, RANGE)
    with pytest.raises(ValueError, match=r"they have 256 grey levels from 0 to 1; leave --num_levels out"):
        grey_levels.given_grid(256, (PIXELS / 255).astype(np.float32), RANGE)
    with pytest.raises(ValueError, match="they have no grey levels"):
        grey_levels.given_grid(256, np.random.default_rng(0).uniform(-1, 1, 1_000), RANGE)
    with pytest.raises(ValueError, match="must be at least 2"):
        grey_levels.given_grid(1, digits, RANGE)


def test_the_bound_is_trained_on_the_levels_of_the_data():
    config = learned_variance.get_config()
    digits = data.load(runs.data_seed(config), "train")
    grey_levels.check_loss_levels(config, digits)
    for number, message in (
        (256, "256, but the data have 17 .*set it to 17"),
        (33, "33, but the data use 17 of these"),
    ):
        with pytest.raises(ValueError, match=message):
            grey_levels.check_loss_levels(customise(learned_variance.get_config(), loss={"num_levels": number}), digits)
    in_any_range = customise(learned_variance.get_config(), data={"normalize": False})
    grey_levels.check_loss_levels(in_any_range, digits)  # that of a density, without grey levels
