"""Grids: published timesteps, closed forms, and what every plan must satisfy."""

import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import grids, solvers

SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(1000))

EVERY = {
    "linspace": lambda n: grids.linspace(SCHEDULE, n),
    "quadratic": lambda n: grids.quadratic(SCHEDULE, n),
    "leading": lambda n: grids.leading(SCHEDULE, n),
    "trailing": lambda n: grids.trailing(SCHEDULE, n),
    "karras": lambda n: grids.karras(n),
    "karras_on_schedule": lambda n: grids.karras(n, 0.02, 100.0, schedule=SCHEDULE),
    "uniform_log_snr": lambda n: grids.uniform_log_snr(SCHEDULE, n),
}


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("name", EVERY)
def test_every_grid_is_a_plan(name, num_steps):
    levels = EVERY[name](num_steps)
    assert levels.alpha.shape == levels.sigma.shape == levels.t.shape == (num_steps,)
    assert levels.alpha.dtype == levels.sigma.dtype == levels.t.dtype == np.float64
    solvers.check_plan(levels)
    assert np.all(np.diff(levels.t) < 0)
    if not name.startswith("karras") or name.endswith("schedule"):
        np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1.0, rtol=1e-14)


def test_published_timesteps():
    golden = load("traj/traj")
    for n in (10, 20, 50):
        np.testing.assert_array_equal(grids.leading(SCHEDULE, n).t, golden[f"ddim_lin_leading/{n}/timesteps"])
        off = grids.leading(SCHEDULE, n, offset=1).t
        np.testing.assert_array_equal(off, golden[f"ddim_sd_leading_off1_noone/{n}/timesteps"])
    np.testing.assert_array_equal(grids.trailing(SCHEDULE, 20).t, golden["ddpm_sd_clip_trailing/20/timesteps"])
    # Asserted by diffusers' tests.
    np.testing.assert_array_equal(grids.leading(SCHEDULE, 5, offset=1).t, [801, 601, 401, 201, 1])
    # An integer stride: 27 steps of 1000 start at 26 * 37.
    assert grids.leading(SCHEDULE, 27).t[0] == 962
    # A fractional stride, as their np.round(np.arange(1000, 0, -1000 / 7)) - 1.
    np.testing.assert_array_equal(grids.trailing(SCHEDULE, 7).t, [999, 856, 713, 570, 428, 285, 142])


def test_all_of_a_schedule():
    for grid in (grids.linspace, grids.leading, grids.trailing):
        np.testing.assert_array_equal(grid(SCHEDULE, 1000).t, np.arange(1000)[::-1])


def test_table_grids_hold_the_table():
    levels = grids.trailing(SCHEDULE, 13)
    np.testing.assert_array_equal(levels.alpha, SCHEDULE.sqrt_alphas_cumprod[levels.t.astype(int)])
    np.testing.assert_array_equal(levels.sigma, SCHEDULE.sqrt_one_minus_alphas_cumprod[levels.t.astype(int)])


def test_karras_is_edms_step_formula():
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    levels = grids.karras(18)
    np.testing.assert_allclose(levels.sigma, wanted, rtol=1e-12)
    np.testing.assert_array_equal(levels.alpha, np.ones(18))
    np.testing.assert_allclose(levels.t, np.log(wanted) / 4, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(grids.karras(5, 1.0, 9.0, rho=2.0).sigma)), -0.5, rtol=1e-12)


def test_karras_on_a_schedule_stays_on_it():
    levels = grids.karras(9, 0.02, 100.0, schedule=SCHEDULE)
    np.testing.assert_allclose(levels.sigma / levels.alpha, grids.karras(9, 0.02, 100.0).sigma, rtol=1e-12)
    _check_labels(levels)


def test_uniform_log_snr_is_even_and_spans_the_schedule():
    levels = grids.uniform_log_snr(SCHEDULE, 11)
    np.testing.assert_allclose(np.diff(dfn.log_snr(levels)), np.diff(dfn.log_snr(levels))[0], rtol=1e-9)
    ends = dfn.level_at(SCHEDULE, np.array([999, 0]))
    np.testing.assert_allclose(levels.alpha[[0, -1]], ends.alpha, rtol=1e-12)
    np.testing.assert_allclose(levels.sigma[[0, -1]], ends.sigma, rtol=1e-12)
    np.testing.assert_allclose(levels.t[[0, -1]], [999, 0], atol=1e-9)
    _check_labels(levels)


def _check_labels(levels):
    """A fractional label lies between the timesteps whose levels enclose it, and is exact on them."""
    t = np.clip(levels.t, 0, 999)
    above = dfn.log_snr(dfn.level_at(SCHEDULE, np.ceil(t).astype(int)))
    below = dfn.log_snr(dfn.level_at(SCHEDULE, np.floor(t).astype(int)))
    log_snr = dfn.log_snr(levels)
    assert np.all((above - 1e-9 <= log_snr) & (log_snr <= below + 1e-9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grids.linspace(SCHEDULE, 1001), "1 to the 1000 timesteps of the schedule; got 1001"),
        (lambda: grids.quadratic(SCHEDULE, 0), "got 0"),
        (lambda: grids.trailing(SCHEDULE, 1001), "must not exceed the 1000 timesteps of the schedule; got 1001"),
        (lambda: grids.leading(SCHEDULE, 1001), "must not exceed the 1000 timesteps"),
        (lambda: grids.leading(SCHEDULE, 10, offset=100), r"timesteps must lie in \[0, 999\].*got 1000"),
        (lambda: grids.leading(SCHEDULE, 2.5), "integer of at least 1; got 2.5"),
        (lambda: grids.karras(0), "integer of at least 1; got 0"),
        (lambda: grids.karras(5, 2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: grids.karras(5, rho=0.0), "rho > 0"),
        (lambda: grids.karras(5, 0.002, 80.0, schedule=SCHEDULE), "within the schedule's own range, 0.0100005 to 157.407"),
        (
            lambda: grids.uniform_log_snr(dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(100))), 5),
            "ends on pure noise",
        ),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_leading_refuses_an_offset_into_clean_data():
    # A plan's levels are noisy: t = -1 is no level to visit.
    with pytest.raises(ValueError, match="offset"):
        grids.leading(SCHEDULE, 10, offset=-1)
