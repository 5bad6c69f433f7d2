"""Beta sequences and the table made from them, against published tables and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn

FIELDS = [field.name for field in dataclasses.fields(dfn.NoiseSchedule)]

# Name in the reference -> betas with the reference's defaults for it.
SEQUENCES = {
    "linear": dfn.linear_betas,
    "scaled_linear": dfn.scaled_linear_betas,
    "squaredcos_cap_v2": dfn.cosine_betas,
    "sigmoid": dfn.sigmoid_betas,
    "laplace": dfn.laplace_betas,
    "exp": dfn.exponential_betas,
}


@pytest.mark.parametrize("num_timesteps", [1000, 100, 50])
@pytest.mark.parametrize("name", SEQUENCES)
def test_betas_are_the_published_ones(name, num_timesteps):
    golden, key = load("schedules/betas"), f"{name}_{num_timesteps}"
    betas = SEQUENCES[name](num_timesteps)
    # A beta is 1 minus a number near 1 in the cosine case: a few ulp of 1 are lost there.
    np.testing.assert_allclose(betas, golden[f"{key}/betas_f64"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        dfn.make_noise_schedule(betas).alphas_cumprod, golden[f"{key}/alphas_cumprod_f64"], rtol=1e-12
    )


@pytest.mark.parametrize("num_timesteps", [1000, 50])
@pytest.mark.parametrize("name", [name for name in SEQUENCES if name != "exp"])
def test_zero_terminal_snr_is_the_published_one(name, num_timesteps):
    golden, key = load("schedules/betas"), f"{name}_{num_timesteps}_zsnr"
    betas = dfn.zero_terminal_snr(SEQUENCES[name](num_timesteps))
    schedule = dfn.make_noise_schedule(betas)
    # sqrt(alpha_bar) has its last value subtracted, so near the end relative accuracy is eps / root: a few ulp of 1.
    np.testing.assert_allclose(betas, golden[f"{key}/betas_f64"], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, golden[f"{key}/alphas_cumprod_f64"], rtol=1e-11, atol=1e-16)
    assert schedule.alphas_cumprod[-1] == 0.0
    assert betas[-1] == 1.0


def test_zero_terminal_snr_maps_sqrt_alpha_bar_linearly():
    before = dfn.make_noise_schedule(dfn.linear_betas(200)).sqrt_alphas_cumprod
    after = dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(200))).sqrt_alphas_cumprod
    assert after[0] == pytest.approx(before[0], rel=1e-14)
    slope = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-9)  # differences of numbers near 1: 1e-16 / 1e-4, with room


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ["linear_1000", "linear_100", "linear_50", "cosine_1000", "cosine_100", "cosine_50"])
def test_the_table_is_openais(name, field):
    kind, num_timesteps = name.split("_")
    scale = 1000 / int(num_timesteps)  # OpenAI's linear ends are for T = 1000 and are scaled for another T
    betas = {
        "linear": lambda n: dfn.linear_betas(n, 1e-4 * scale, 2e-2 * scale),
        "cosine": dfn.cosine_betas,
    }[kind](int(num_timesteps))
    schedule = dfn.make_noise_schedule(betas)
    # They have no field for the alphas, 1 - beta.
    golden = load("orig_gaussian_diffusion/tables")
    wanted = 1.0 - golden[f"{name}/betas"] if field == "alphas" else golden[f"{name}/{field}"]
    assert getattr(schedule, field).dtype == np.float64
    np.testing.assert_allclose(getattr(schedule, field), wanted, rtol=1e-12)


def test_known_numbers_of_the_linear_schedule():
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    assert f"{schedule.alphas_cumprod[-1]:.6e}" == "4.035830e-05"
    # _get_variance of DDPM at t = 0, 487, 999 as published, to the five digits given there.
    np.testing.assert_allclose(schedule.posterior_variance[[0, 487, 999]], [0.0, 0.00979, 0.02], atol=5e-6)
    clipped = schedule.posterior_log_variance_clipped
    assert clipped[0] == clipped[1] == np.log(schedule.posterior_variance[1])
    assert clipped[0] == pytest.approx(-9.8167, abs=5e-5)


@pytest.mark.parametrize("kept", ["ddim50", "ddim25", "250", "50", "10,15,20", "10", "1000"])
def test_respacing_is_spaced_diffusion(kept):
    golden = {k.split("/")[1]: v for k, v in load("orig_gaussian_diffusion/tables").items() if f"1000_{kept}/" in k}
    full = dfn.make_noise_schedule(dfn.linear_betas(1000))
    short = dfn.respace(full, golden["timestep_map"])
    for field in ("alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped", "betas"):
        # beta = 1 - ratio, with beta down to 1e-4: 1e-16 / 1e-4, doubled by the way there and back.
        np.testing.assert_allclose(getattr(short, field), golden[field], rtol=1e-11, err_msg=field)


def test_respacing_recomputes_betas_whatever_the_order_of_the_timesteps():
    full = dfn.make_noise_schedule(dfn.cosine_betas(60))
    kept = np.array([59, 3, 17, 40])
    short = dfn.respace(full, kept)
    ordered = np.sort(kept)
    # The table is made from betas, and 1 - beta knows a small alpha to 1e-16 absolute.
    np.testing.assert_allclose(short.alphas_cumprod, full.alphas_cumprod[ordered], rtol=1e-13, atol=1e-16)
    # The beta of a step over several timesteps is 1 - the product of their alphas.
    products = [np.prod(full.alphas[low + 1 : high + 1]) for low, high in zip([-1, *ordered[:-1]], ordered)]
    np.testing.assert_allclose(short.betas, 1.0 - np.array(products), rtol=1e-12)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(dfn.respace(full, ordered), field), getattr(short, field))


def test_other_sequences_have_their_closed_form():
    np.testing.assert_allclose(dfn.quadratic_betas(3, 0.01, 0.09), [0.01, 0.04, 0.09], rtol=1e-14)
    np.testing.assert_allclose(dfn.sqrt_betas(3, 0.01, 0.09), np.sqrt([0.01, 0.05, 0.09]), rtol=1e-14)
    np.testing.assert_allclose(dfn.linear_betas(5, 0.1, 0.3), [0.1, 0.15, 0.2, 0.25, 0.3], rtol=1e-14)
    # The cosine's alpha_bar is f(t + 1) / f(0) while no beta is clipped.
    schedule = dfn.make_noise_schedule(dfn.cosine_betas(40, s=0.1))
    f = np.cos((np.arange(41) / 40 + 0.1) / 1.1 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alphas_cumprod[:-1], (f[1:] / f[0])[:-1], rtol=1e-12)


# level_at


@pytest.fixture(scope="module")
def schedule():
    return dfn.make_noise_schedule(dfn.linear_betas(30))


def test_level_at_on_the_host_is_float64(schedule):
    level = dfn.level_at(schedule, np.array([29, 7, 0, -1]))
    assert all(isinstance(a, np.ndarray) and a.dtype == np.float64 for a in (level.alpha, level.sigma, level.t))
    np.testing.assert_array_equal(level.alpha, [*np.sqrt(schedule.alphas_cumprod[[29, 7, 0]]), 1.0])
    np.testing.assert_array_equal(level.sigma, [*np.sqrt(1 - schedule.alphas_cumprod[[29, 7, 0]]), 0.0])
    np.testing.assert_array_equal(level.t, [29.0, 7.0, 0.0, -1.0])


def test_minus_one_is_the_clean_level_and_never_wraps(schedule):
    for t in (-1, np.int64(-1), np.array([-1]), jnp.array(-1), jnp.array([-1])):
        level = dfn.level_at(schedule, t)
        assert float(np.squeeze(level.alpha)) == 1.0
        assert float(np.squeeze(level.sigma)) == 0.0
    traced = jax.jit(lambda t: dfn.level_at(schedule, t))(jnp.array([-1, 0]))
    assert traced.alpha[0] == 1.0
    assert traced.sigma[0] == 0.0


def test_traced_timesteps_out_of_range_are_nan(schedule):
    level = jax.jit(lambda t: dfn.level_at(schedule, t))(jnp.array([-2, -30, 30, 1000, 29]))
    for value in (level.alpha, level.sigma):
        np.testing.assert_array_equal(jnp.isnan(value), [True, True, True, True, False])


@pytest.mark.parametrize("wrong", [30, -2, np.array([0, 30]), np.array([-2, 3])])
def test_readable_timesteps_out_of_range_are_refused(schedule, wrong):
    with pytest.raises(ValueError, match=r"timesteps must lie in \[-1, 29\] for a schedule of 30"):
        dfn.level_at(schedule, wrong)
    with pytest.raises(ValueError, match="timesteps must lie in"):
        dfn.level_at(schedule, jnp.asarray(wrong))


@pytest.mark.parametrize("wrong", [0.5, np.array([1.0]), jnp.array([1.0])])
def test_timesteps_must_be_integers(schedule, wrong):
    with pytest.raises(ValueError, match="timesteps must be integers"):
        dfn.level_at(schedule, wrong)


def test_tables_are_rounded_once():
    """Float32 data is combined with the rounded float64 table, not with a float32 computation of it."""
    schedule = dfn.make_noise_schedule(dfn.linear_betas(1000))
    t = jnp.arange(1000)
    level = dfn.level_at(schedule, t)
    np.testing.assert_array_equal(level.alpha, np.sqrt(np.cumprod(1 - dfn.linear_betas(1000))).astype(np.float32))
    np.testing.assert_array_equal(level.sigma, np.sqrt(1 - np.cumprod(1 - dfn.linear_betas(1000))).astype(np.float32))
    noisy = dfn.q_sample(schedule, jnp.zeros((1000, 1)), t, jnp.ones((1000, 1)))
    np.testing.assert_array_equal(noisy[:, 0], schedule.sqrt_one_minus_alphas_cumprod.astype(np.float32))


def test_a_schedule_passes_through_jit(schedule):
    on_device = jax.tree.map(jnp.asarray, schedule)
    level = jax.jit(dfn.level_at)(on_device, jnp.array([3, -1]))
    np.testing.assert_array_equal(level.alpha, [np.float32(schedule.sqrt_alphas_cumprod[3]), 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dfn.linear_betas(0), "num_timesteps must be an integer of at least 1; got 0"),
        (lambda: dfn.linear_betas(10, 0.5, 0.1), "beta_start <= beta_end"),
        (lambda: dfn.linear_betas(10, 0.5, 1.1), "beta_start <= beta_end"),
        (lambda: dfn.cosine_betas(10, s=-1.0), "must not be negative; got -1.0"),
        (lambda: dfn.cosine_betas(10, max_beta=1.5), r"max_beta must lie in \(0, 1\]; got 1.5"),
        (lambda: dfn.make_noise_schedule(np.array([[0.1]])), r"vector \[T\]"),
        (lambda: dfn.make_noise_schedule(np.array([])), r"vector \[T\]"),
        (lambda: dfn.make_noise_schedule(np.array([0.0, 0.1])), r"betas must lie in \(0, 1\)"),
        (lambda: dfn.make_noise_schedule(np.array([1.0, 0.1])), "only the last may be 1"),
        (lambda: dfn.make_noise_schedule(np.array([0.1, np.nan])), r"betas must lie in \(0, 1\)"),
        (lambda: dfn.zero_terminal_snr(np.array([0.1])), "at least 2 timesteps"),
        (lambda: dfn.respace(dfn.make_noise_schedule(np.array([0.1, 0.2])), np.array([1, 1])), "distinct"),
        (lambda: dfn.respace(dfn.make_noise_schedule(np.array([0.1, 0.2])), np.array([2])), r"\[0, 1\]"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
