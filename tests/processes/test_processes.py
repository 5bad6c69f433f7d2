"""Continuous processes: published coefficients, the laws that tie level, time and rates, and levels in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import processes
from diffusers_fn.levels import Level

SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(1000))

PROCESSES = {
    "vp": processes.vp(),
    "vp_constant": processes.vp(2.0, 2.0),
    "sub_vp": processes.sub_vp(),
    "ve": processes.ve(),
    "cosine": processes.cosine(),
    "trigonometric": processes.trigonometric(),
    "flow": processes.flow(),
    "edm": processes.edm(),
    "tabulated": processes.tabulated(SCHEDULE),
    "tabulated_sigma": processes.tabulated(SCHEDULE, processes.linear_sigma),
    "tabulated_log_alpha": processes.tabulated(SCHEDULE, processes.linear_log_alpha),
    "shifted_flow": processes.shifted(processes.flow(), 3.0),
    "shifted_vp": processes.shifted(processes.vp(), 2.0),
    "shifted_cosine": processes.shifted(processes.cosine(), 0.5),
    "labelled_ve": processes.labelled(processes.ve(), lambda t: processes.ve()(t).sigma),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
ON_THE_CIRCLE = ("vp", "vp_constant", "cosine", "trigonometric", "tabulated", "tabulated_sigma", "shifted_vp")


def inside(process, n=7):
    """n times strictly between the ends, off the knots of a table."""
    return process.t_min + (process.t_max - process.t_min) * (np.arange(n) + 0.4137) / n


# Laws.


@each_process
def test_time_inverts_log_snr(process):
    t = inside(process)
    level = process(t)
    np.testing.assert_allclose(process.time(dfn.log_snr(level)), t, rtol=1e-11)
    again = processes.at_log_snr(process, dfn.log_snr(level))
    np.testing.assert_allclose([again.alpha, again.sigma], [level.alpha, level.sigma], rtol=1e-11)
    np.testing.assert_allclose(again.t, level.t, rtol=1e-11, atol=1e-11)
    assert np.all(np.diff(dfn.log_snr(level)) < 0)


def derivatives_and_rates(process, t):
    """Returns ((log alpha, sigma^2), their derivatives) and the rates at t, from one program."""
    level = lambda t: (jnp.log(process(t).alpha), process(t).sigma ** 2)  # noqa: E731
    return jax.jit(lambda t: (jax.jvp(level, (t,), (jnp.ones_like(t),)), process.rates(t)))(t)


@each_process
def test_rates_are_the_derivatives_of_the_level(process, x64):
    t = jnp.asarray(inside(process))
    ((_, variance), (d_log_alpha, d_variance)), traced = derivatives_and_rates(process, t)
    f, g2 = process.rates(np.asarray(t))
    np.testing.assert_allclose(f, d_log_alpha, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(g2, d_variance - 2 * d_log_alpha * variance, rtol=1e-10)
    np.testing.assert_allclose(traced, [f, g2], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("name", ["vp", "sub_vp", "ve", "cosine", "flow", "edm", "shifted_flow"])
def test_the_forward_equation_reaches_the_level(name):
    # Moments of dx = f x dt + g dw: alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2, by RK4.
    process = PROCESSES[name]
    start, stop = np.array([0.1, 0.9]) if name != "edm" else np.array([0.5, 3.0])
    moments = np.array([process(start).alpha, process(start).sigma ** 2])

    def speed(t, moments):
        f, g2 = process.rates(t)
        return np.array([f, 2 * f]) * moments + np.array([0.0, g2])

    h = (stop - start) / 200
    for t in start + h * np.arange(200):
        k1 = speed(t, moments)
        k2 = speed(t + h / 2, moments + h / 2 * k1)
        k3 = speed(t + h / 2, moments + h / 2 * k2)
        k4 = speed(t + h, moments + h * k3)
        moments = moments + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    np.testing.assert_allclose(moments, [process(stop).alpha, process(stop).sigma ** 2], rtol=1e-6)


@pytest.mark.parametrize("name", ON_THE_CIRCLE)
def test_variance_is_preserved(name):
    level = PROCESSES[name](inside(PROCESSES[name]))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1.0, rtol=1e-14)


@each_process
def test_numpy_gives_float64_and_jax_the_same_numbers(process):
    t = inside(process).astype(np.float32)
    host = process(t)
    assert {values.dtype for values in (host.alpha, host.sigma, host.t)} == {np.dtype(np.float64)}
    assert process(float(t[0])) == process.level(float(t[0]))
    sigma = lambda t: process(t).sigma  # noqa: E731
    level, gradient = jax.jit(lambda t: (jax.vmap(process.level)(t), jax.grad(sigma)(t[3])))(jnp.asarray(t))
    assert level.sigma.dtype == jnp.float32
    # log SNR of a dozen has a rounding of 1e-6, and sigma half of it as its relative error.
    np.testing.assert_allclose([level.alpha, level.sigma], [host.alpha, host.sigma], rtol=5e-6)
    np.testing.assert_allclose(level.t, host.t, rtol=5e-6, atol=5e-7)
    np.testing.assert_allclose(gradient, (process(t[3] * 1.0001).sigma - host.sigma[3]) / (t[3] * 1e-4), rtol=2e-2)


def test_whole_numbers_and_half_precision_are_times():
    assert processes.flow()(1).sigma == 1.0
    assert processes.tabulated(SCHEDULE)(jnp.array([3, 7])).sigma.dtype == jnp.float32
    assert processes.vp()(jnp.asarray(0.5, jnp.bfloat16)).sigma.dtype == jnp.float32


def test_parameters_may_be_traced(x64):
    gradient = jax.jit(jax.grad(lambda beta_max: processes.vp(0.1, beta_max)(0.5).alpha))(20.0)
    # alpha = exp(-beta_min t / 2 - (beta_max - beta_min) t^2 / 4)
    np.testing.assert_allclose(gradient, -(0.5**2) / 4 * processes.vp()(0.5).alpha, rtol=1e-10)
    shifted = jax.jit(lambda shift: processes.shifted(processes.flow(), shift)(0.5).sigma)(3.0)
    np.testing.assert_allclose(shifted, 0.75, rtol=1e-12)


# Published coefficients.


def test_score_sde_sub_vp():
    golden = load("orig_score_sde/tables")
    process = processes.sub_vp()
    b = -np.log1p(-golden["tables/subvp/std"])  # the file has no times: they follow from its std = 1 - exp(-B)
    t = 2 * b / (0.1 + np.sqrt(0.1**2 + 2 * 19.9 * b))
    level, (f, g2) = process(t), process.rates(t)
    np.testing.assert_allclose(level.sigma, golden["tables/subvp/std"], rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(g2), golden["tables/subvp/diffusion"], rtol=1e-9)
    # mean = alpha x and drift = f x for one and the same x.
    ratio = golden["tables/subvp/drift"] / golden["tables/subvp/mean"]
    np.testing.assert_allclose(ratio[:, 0, 0, 0], f / level.alpha, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(g2 / 1000), golden["tables/subvp/disc_G"], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "process", "to_t"),
    [
        ("linear", processes.vp(), lambda t: t),
        # Its discrete schedule: log(alpha) linear between the times (n + 1) / T.
        (
            "sd",
            processes.tabulated(dfn.make_noise_schedule(dfn.scaled_linear_betas(1000)), processes.linear_log_alpha),
            lambda t: 1000 * t - 1,
        ),
    ],
)
def test_dpm_solver_schedules(name, process, to_t):
    golden = load("orig_dpm_unipc/schedules")
    # The reference rounds the discrete times to float32 before it inverts lambda: inverse_lambda has the exact times.
    t = golden[f"schedule/{name}/inverse_lambda"]
    level = process(to_t(t))
    np.testing.assert_allclose(level.alpha, golden[f"schedule/{name}/marginal_alpha"], rtol=1e-7)
    np.testing.assert_allclose(level.sigma, golden[f"schedule/{name}/marginal_std"], rtol=1e-6)
    half_log_snr = golden[f"schedule/{name}/marginal_lambda"]
    np.testing.assert_allclose(process.time(2 * half_log_snr), to_t(t), rtol=1e-6, atol=1e-6)


def test_published_formulas():
    t = np.array([0.01, 0.2, 0.5, 0.77, 0.99])
    # The integral of beta by Simpson's rule, exact for a line.
    integral = t / 6 * (0.1 + 4 * (0.1 + 19.9 * t / 2) + (0.1 + 19.9 * t))
    level = processes.vp()(t)
    np.testing.assert_allclose(level.alpha**2, np.exp(-integral), rtol=1e-13)
    np.testing.assert_allclose(level.sigma**2, 1 - np.exp(-integral), rtol=1e-12)
    np.testing.assert_allclose(processes.sub_vp()(t).sigma, level.sigma**2, rtol=1e-13)

    alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(processes.cosine()(t).alpha ** 2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(processes.cosine()(t).sigma ** 2, 1 - alpha_bar, rtol=1e-11)

    level = processes.trigonometric()(t)
    np.testing.assert_allclose(level.alpha, np.cos(np.pi * t / 2), rtol=1e-13)
    np.testing.assert_allclose(level.sigma, np.sin(np.pi * t / 2), rtol=1e-13)
    np.testing.assert_allclose(dfn.log_snr(level), -2 * np.log(np.tan(np.pi * t / 2)), rtol=1e-11, atol=1e-13)

    np.testing.assert_allclose(processes.ve()(t).sigma, 0.01 ** (1 - t) * 50**t, rtol=1e-13)
    np.testing.assert_array_equal(processes.ve()(t).alpha, 1.0)
    np.testing.assert_allclose(processes.edm()(80 * t).t, np.log(80 * t) / 4, rtol=1e-13)


def test_ends():
    for process in (processes.flow(), processes.trigonometric(), processes.cosine()):
        assert process(1.0).alpha == 0.0
        assert process(0.0).sigma == 0.0
        assert process.time(-np.inf) == 1.0
    assert processes.shifted(processes.flow(), 3.0)(1.0) == processes.flow()(1.0)
    assert np.isfinite(dfn.log_snr(processes.cosine()(processes.cosine().t_max)))


# Shifts, tables, labels.


def test_shift_of_a_flow():
    t = np.linspace(0.05, 1.0, 8)
    level = processes.shifted(processes.flow(), 3.0)(t)
    np.testing.assert_allclose(level.sigma, 3 * t / (1 + 2 * t), rtol=1e-14)
    np.testing.assert_array_equal(level.t, level.sigma)


@pytest.mark.parametrize("name", ["vp", "cosine", "trigonometric", "flow", "edm", "ve"])
def test_a_shift_moves_log_snr(name):
    process = PROCESSES[name]
    twice = processes.shifted(processes.shifted(process, 1.2), 1.5)
    once = processes.shifted(process, 1.8)
    assert np.isclose(twice.t_max, once.t_max)
    t = inside(once)
    np.testing.assert_allclose(dfn.log_snr(once(t)), dfn.log_snr(process(t)) - 2 * np.log(1.8), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(twice(t).sigma, once(t).sigma, rtol=1e-10)


def test_a_shifted_process_keeps_to_the_old_ends():
    for process in PROCESSES.values():
        for shift in (0.3, 4.0):
            shifted = processes.shifted(process, shift)
            assert process.t_min <= shifted.t_min < shifted.t_max <= process.t_max
            log_snr = dfn.log_snr(shifted(np.array([shifted.t_min, shifted.t_max])))
            ends = dfn.log_snr(process(np.array([process.t_min, process.t_max])))
            assert log_snr[0] <= ends[0] + 1e-6
            assert log_snr[1] >= ends[1] - 1e-6


@pytest.mark.parametrize(
    ("interpolation", "linear"),
    [
        (processes.linear_log_snr, dfn.log_snr),
        (processes.linear_sigma, lambda level: level.sigma / level.alpha),
        (processes.linear_log_alpha, lambda level: np.log(level.alpha)),
    ],
)
def test_a_table_is_met_and_interpolated_in_between(interpolation, linear):
    process = processes.tabulated(SCHEDULE, interpolation)
    t = np.array([0, 1, 500, 998, 999])
    level, table = process(t), dfn.level_at(SCHEDULE, t)
    np.testing.assert_allclose([level.alpha, level.sigma], [table.alpha, table.sigma], rtol=1e-12)
    np.testing.assert_array_equal(level.t, t)
    ends, middle = dfn.level_at(SCHEDULE, np.array([500, 501])), process(500.25)
    np.testing.assert_allclose(linear(middle), linear(ends) @ [0.75, 0.25], rtol=1e-10)


def test_labels():
    process = processes.labelled(processes.vp(), lambda t: 999 * t)
    np.testing.assert_allclose(process(np.array([0.1, 1.0])).t, [99.9, 999.0], rtol=1e-14)
    np.testing.assert_allclose(jax.jit(process.level)(jnp.array([0.1, 1.0])).t, [99.9, 999.0], rtol=1e-6)
    # Label first, then shift: the label is that of the shifted time.
    shifted = processes.shifted(processes.labelled(processes.flow(), lambda t: 1000 * t), 3.0)
    np.testing.assert_allclose(shifted(0.5).t, 750.0, rtol=1e-14)


# Between two levels.


@pytest.mark.parametrize("name", ["vp", "cosine", "tabulated", "flow", "edm", "ve", "shifted_flow"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_between_is_exact_without_the_process(name, fraction):
    process = PROCESSES[name]
    t = inside(process)[::-1]
    start, end = process(t[:-1]), process(t[1:])
    known = processes.between(start, end, fraction, process)
    guessed = processes.between(start, end, fraction)
    np.testing.assert_allclose(dfn.log_snr(known), (1 - fraction) * dfn.log_snr(start) + fraction * dfn.log_snr(end))
    np.testing.assert_allclose([guessed.alpha, guessed.sigma], [known.alpha, known.sigma], rtol=1e-10)
    if name in ("flow", "edm", "ve", "shifted_flow"):  # their labels are linear in what is interpolated
        np.testing.assert_allclose(guessed.t, known.t, rtol=1e-10, atol=1e-12)
    else:
        assert np.all((end.t - 1e-12 <= guessed.t) & (guessed.t <= start.t + 1e-12))


def test_between_off_the_circle_stays_on_the_ray_and_the_chord():
    start, end = processes.sub_vp()(0.8), processes.sub_vp()(0.5)
    middle = processes.between(start, end, 0.25)
    np.testing.assert_allclose(dfn.log_snr(middle), 0.75 * dfn.log_snr(start) + 0.25 * dfn.log_snr(end), rtol=1e-12)
    weight = (middle.alpha - start.alpha) / (end.alpha - start.alpha)
    np.testing.assert_allclose(weight, (middle.sigma - start.sigma) / (end.sigma - start.sigma), rtol=1e-10)
    np.testing.assert_allclose(middle.t, 0.8 + weight * (0.5 - 0.8), rtol=1e-10)


def test_between_traces(x64):
    sigma = lambda fraction, ends: processes.between(*ends, fraction).sigma.sum()  # noqa: E731
    both = jax.jit(lambda fraction, ends: (processes.between(*ends, fraction), jax.grad(sigma)(fraction, ends)))
    for process in (processes.vp(), processes.flow(), processes.edm()):
        t = inside(process)[::-1]
        start, end = process(t[:-1]), process(t[1:])
        wanted = processes.between(start, end, 0.5)
        traced, gradient = both(0.5, jax.tree.map(jnp.asarray, (start, end)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), traced, wanted)
        assert np.isfinite(gradient)


# Refusals.

PURE_NOISE, CLEAN, NOISY = Level(0.0, 1.0, 1.0), Level(1.0, 0.0, 0.0), Level(0.6, 0.8, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: processes.vp(20.0, 0.1), "0 < beta_min <= beta_max; got 20.0 and 0.1"),
        (lambda: processes.sub_vp(0.0, 1.0), "0 < beta_min <= beta_max; got 0.0"),
        (lambda: processes.ve(1.0, 1.0), "0 < sigma_min < sigma_max; got 1.0 and 1.0"),
        (lambda: processes.edm(80.0, 0.002), "0 < sigma_min < sigma_max"),
        (lambda: processes.cosine(-0.1), "must not be negative; got -0.1"),
        (lambda: processes.shifted(processes.flow(), 0.0), "shift must be positive; got 0.0"),
        (lambda: processes.vp()(999), r"t must lie in \[0, 1\] for this process; got 999"),
        (lambda: processes.flow()(np.array([0.5, -0.1])), r"t must lie in \[0, 1\].*got -0.1"),
        (lambda: processes.flow()(jnp.array([0.5, np.nan])), "got nan"),
        (lambda: processes.edm()(0.0), "t must lie above 0"),
        (lambda: processes.tabulated(SCHEDULE)(1000.0), r"t must lie in \[0, 999\]"),
        (lambda: processes.tabulated(SCHEDULE).time(-30.0), "within the schedule's own range, 0.0100005 to 157.407"),
        (
            lambda: processes.tabulated(dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(100)))),
            "ends on pure noise",
        ),
        (lambda: processes.tabulated(dfn.make_noise_schedule(np.array([0.5]))), "at least 2 timesteps; got 1"),
        (lambda: processes.between(NOISY, NOISY, 1.5), r"fraction must lie in \[0, 1\]; got 1.5"),
        (lambda: processes.between(PURE_NOISE, NOISY, 0.5), "log SNR is infinite where start.alpha = 0"),
        (lambda: processes.between(NOISY, CLEAN, 0.5), "log SNR is infinite where end.sigma = 0"),
    ],
)
def test_bad_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["vp", "ve", "flow", "labelled_ve"])
@pytest.mark.usefixtures("x64")
def test_an_exchanged_process_is_a_process(name):
    """Level, time and rates agree, and exchanging twice gives the process back."""
    process = PROCESSES[name]
    swapped, t = processes.exchanged(process), inside(process)
    level, there = process(t), swapped(t)
    np.testing.assert_array_equal([there.alpha, there.sigma, there.t], [level.sigma, level.alpha, level.t])
    np.testing.assert_allclose(swapped.time(dfn.log_snr(there)), t, rtol=1e-10)
    f, g2 = swapped.rates(t)
    ((_, variance), (d_log_alpha, d_variance)), _ = derivatives_and_rates(swapped, jnp.asarray(t))
    np.testing.assert_allclose(f, d_log_alpha, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(g2, d_variance - 2 * d_log_alpha * variance, rtol=1e-9, atol=1e-12)
    back = processes.exchanged(swapped).rates(np.asarray(t))
    np.testing.assert_allclose(back, process.rates(np.asarray(t)), rtol=1e-9, atol=1e-12)
