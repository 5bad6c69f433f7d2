"""Grids: published timesteps, closed forms, and what every plan must satisfy."""

import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import grids, processes, solvers
from diffusers_fn.grids.times import beta_quantile

SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(1000))
LATENT = dfn.make_noise_schedule(dfn.scaled_linear_betas(1000))

EVERY = {
    "linspace": lambda n: grids.linspace(SCHEDULE, n),
    "quadratic": lambda n: grids.quadratic(SCHEDULE, n),
    "leading": lambda n: grids.leading(SCHEDULE, n),
    "trailing": lambda n: grids.trailing(SCHEDULE, n),
    "karras": lambda n: grids.karras(n),
    "karras_on_schedule": lambda n: grids.karras(n, 0.02, 100.0, schedule=SCHEDULE),
    "uniform_log_snr": lambda n: grids.uniform_log_snr(SCHEDULE, n),
    "uniform_log_snr_vp": lambda n: grids.uniform_log_snr(processes.vp(), n),
    "exponential": lambda n: grids.exponential(n),
    "exponential_flow": lambda n: grids.exponential(n, 0.01, 100.0, schedule=processes.flow()),
    "polyexponential": lambda n: grids.polyexponential(n, rho=2.0),
    "cosine": lambda n: grids.cosine(n),
    "cosine_on_schedule": lambda n: grids.cosine(n, schedule=SCHEDULE),
    "uniform_t": lambda n: grids.uniform_t(SCHEDULE, n),
    "uniform_t_ve": lambda n: grids.uniform_t(processes.ve(), n),
    "uniform_t_flow": lambda n: grids.uniform_t(processes.shifted(processes.flow(), 3.0), n, t_min=1 / (n + 1)),
    "power_t": lambda n: grids.power_t(processes.cosine(), n),
    "beta": lambda n: grids.beta(processes.sub_vp(), n),
    "align_your_steps": lambda n: grids.align_your_steps(n),
    "align_your_steps_on_schedule": lambda n: grids.align_your_steps(n, grids.STABLE_DIFFUSION_XL, schedule=LATENT),
    "drop_last": lambda n: grids.drop_last(grids.linspace(SCHEDULE, n + 1)),
    "snap": lambda n: grids.snap(grids.uniform_t(processes.tabulated(SCHEDULE), n), SCHEDULE),
}
OFF_THE_CIRCLE = {"karras", "exponential", "exponential_flow", "polyexponential", "cosine", "uniform_t_ve"}
OFF_THE_CIRCLE |= {"uniform_t_flow", "beta", "align_your_steps"}


@pytest.mark.parametrize("num_steps", [1, 2, 7, 50])
@pytest.mark.parametrize("name", EVERY)
def test_every_grid_is_a_plan(name, num_steps):
    levels = EVERY[name](num_steps)
    assert levels.alpha.shape == levels.sigma.shape == levels.t.shape == (num_steps,)
    assert levels.alpha.dtype == levels.sigma.dtype == levels.t.dtype == np.float64
    solvers.check_plan(levels)
    assert np.all(np.diff(levels.t) < 0)
    if name not in OFF_THE_CIRCLE:
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


@pytest.mark.parametrize("n", [27, 31, 47, 53, 59, 61, 93])
def test_ties_of_linspace_round_as_in_other_libraries(n):
    # Counted from T - 1 down, these have an x.5 that is computed just below or above: one timestep apart.
    np.testing.assert_array_equal(grids.linspace(SCHEDULE, n).t, np.linspace(0, 999, n).round()[::-1])
    assert np.any(np.round(np.linspace(999, 0, n)) != grids.linspace(SCHEDULE, n).t)


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


def _steps(values):
    """Returns the steps of a grid in units of their mean: ones if the grid is even."""
    return np.diff(values) / np.mean(np.diff(values))


@pytest.mark.parametrize(
    ("levels", "even"),
    [
        (grids.exponential(9, 0.1, 10.0), lambda level: np.log(level.sigma)),
        (grids.exponential(9, schedule=processes.sub_vp()), dfn.log_snr),
        (grids.polyexponential(9, 0.1, 10.0, 3.0), lambda level: np.cbrt(np.log(level.sigma / 0.1))[:-1]),
        (grids.cosine(9, 0.01, 100.0), lambda level: np.arctan(level.sigma)),
        (grids.cosine(9, schedule=SCHEDULE), lambda level: np.arctan2(level.sigma, level.alpha)),
        (grids.karras(9, rho=3.0, schedule=processes.vp()), lambda level: np.cbrt(level.sigma / level.alpha)),
        (grids.uniform_log_snr(processes.cosine(), 9), dfn.log_snr),
        (grids.uniform_t(processes.vp(), 9), lambda level: level.t),
        (grids.uniform_t(SCHEDULE, 9), lambda level: level.t),
        (grids.power_t(processes.vp(), 9, 3.0), lambda level: np.cbrt(level.t)),
        (grids.beta(processes.vp(), 9, 1.0, 1.0), lambda level: level.t),
        (grids.beta(processes.vp(), 9, 2.0, 1.0, t_min=0.0), lambda level: level.t**2),  # I_t(2, 1) = t^2
        # I_t(1/2, 1/2) = 2 / pi arcsin(sqrt(t))
        (grids.beta(processes.vp(), 9, 0.5, 0.5, t_min=0.0), lambda level: np.arcsin(np.sqrt(level.t))),
    ],
)
def test_a_grid_is_even_in_its_own_variable(levels, even):
    np.testing.assert_allclose(_steps(even(levels)), 1.0, rtol=1e-7)


def test_grids_agree_where_they_are_one():
    for one, other in [
        (grids.karras(7), grids.power_t(processes.edm(), 7, 7.0)),
        (grids.exponential(7), grids.uniform_log_snr(processes.edm(), 7)),
        (grids.exponential(7, schedule=SCHEDULE), grids.uniform_log_snr(SCHEDULE, 7)),
        (grids.uniform_t(processes.ve(), 7), grids.uniform_log_snr(processes.ve(), 7)),
        (grids.linspace(SCHEDULE, 4), grids.uniform_t(SCHEDULE, 4)),
    ]:
        np.testing.assert_allclose(one.sigma / one.alpha, other.sigma / other.alpha, rtol=1e-10)


def test_own_ends_are_the_default():
    ends = dfn.level_at(SCHEDULE, np.array([999, 0]))
    for grid in (grids.karras, grids.exponential, grids.polyexponential, grids.cosine):
        levels = grid(5, schedule=SCHEDULE)
        np.testing.assert_allclose(levels.sigma[[0, -1]], ends.sigma, rtol=1e-12)
        np.testing.assert_allclose(grid(5).sigma[[0, -1]], [80.0, 0.002], rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.3, 2.0), (5.0, 1.5), (40.0, 60.0), (0.05, 0.05)])
def test_beta_quantile_is_the_inverse_of_the_distribution(a, b):
    stats = pytest.importorskip("scipy.stats")
    u = np.linspace(0.0, 1.0, 23)
    np.testing.assert_allclose(beta_quantile(u, a, b), stats.beta.ppf(u, a, b), rtol=1e-11, atol=1e-14)


def test_align_your_steps():
    # The authors list timesteps as well: on latent diffusion's table they are the nearest ones, up to one.
    on_table = grids.align_your_steps(10, schedule=LATENT)
    published = np.array([999, 850, 736, 645, 545, 455, 343, 233, 124, 24])
    np.testing.assert_allclose(on_table.t, published, atol=1.0)
    published = np.array([999, 845, 730, 587, 443, 310, 193, 116, 53, 13])
    np.testing.assert_allclose(
        grids.align_your_steps(10, grids.STABLE_DIFFUSION_XL, schedule=LATENT).t, published, atol=1.0
    )
    # Twenty steps pass through the ten, and halve each in log(sigma).
    twenty = grids.align_your_steps(20, grids.VIDEO).sigma
    np.testing.assert_allclose(twenty[::2], grids.VIDEO[:-1], rtol=1e-12)
    np.testing.assert_allclose(twenty[1] ** 2, twenty[0] * twenty[2], rtol=1e-12)


def test_snap_moves_a_plan_onto_the_table():
    levels = grids.karras(6, schedule=SCHEDULE)
    snapped = grids.snap(levels, SCHEDULE)
    np.testing.assert_array_equal(snapped.t, np.round(levels.t))
    np.testing.assert_array_equal(snapped.sigma, dfn.level_at(SCHEDULE, snapped.t.astype(int)).sigma)
    rounded = grids.round_labels(levels)
    np.testing.assert_array_equal(rounded.t, snapped.t)
    np.testing.assert_array_equal(rounded.sigma, levels.sigma)
    # Levels of another family are found by log SNR.
    other = grids.exponential(5, 0.1, 10.0)
    table = dfn.log_snr(dfn.level_at(SCHEDULE, np.arange(1000)))
    nearest = [np.argmin(np.abs(table - log_snr)) for log_snr in dfn.log_snr(other)]
    np.testing.assert_array_equal(grids.snap(other, SCHEDULE).t, nearest)


def _check_labels(levels):
    """Asserts that each label lies between the timesteps whose levels enclose the level."""
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
        (lambda: grids.polyexponential(5, rho=-1.0), "rho > 0; got -1.0"),
        (lambda: grids.exponential(5, schedule=processes.flow()), "0 < sigma_min < sigma_max < inf; got .* and inf"),
        (lambda: grids.uniform_log_snr(processes.flow(), 5), "log SNR is infinite at t = 1.0: give another t_max"),
        (lambda: grids.uniform_t(processes.vp(), 5, t_max=2.0), r"t must lie in \[0, 1\]"),
        (lambda: grids.uniform_t(processes.vp(), 5, t_max=0.1, t_min=0.1), "t_min must lie below t_max"),
        (lambda: grids.power_t(processes.vp(), 5, 0.0), "power must be positive; got 0.0"),
        (lambda: grids.beta(processes.vp(), 5, 0.0), "a > 0 and b > 0; got 0.0"),
        (lambda: grids.at_ratios([1.0, 2.0]), "decreasing list of positive numbers"),
        (lambda: grids.at_ratios([2.0, 1.0, 0.0]), "without the final 0"),
        (lambda: grids.align_your_steps(5, grids.VIDEO, schedule=LATENT), "within the schedule's own range"),
        (lambda: grids.snap(grids.karras(300, schedule=SCHEDULE), SCHEDULE), "would share the timestep"),
        (lambda: grids.drop_last(grids.karras(1)), "at least 2 levels; got 1"),
        (
            lambda: grids.karras(5, 0.002, 80.0, schedule=SCHEDULE),
            "within the schedule's own range, 0.0100005 to 157.407",
        ),
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
    # A plan has no clean level (t = -1).
    with pytest.raises(ValueError, match="offset"):
        grids.leading(SCHEDULE, 10, offset=-1)
