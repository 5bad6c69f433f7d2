"""Numerical edge cases: roots of differences, small integer types, alpha = 0, inputs that must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusers_fn as dfn
from configs import ddpm_digits
from diffusers_fn import grids, guidance, losses, parameterizations, solvers, training
from diffusers_fn.from_config.defaults import customise, default_config

COSINE = dfn.make_noise_schedule(dfn.cosine_betas(1000))
ZERO = dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(1000)))


@pytest.mark.parametrize("schedule", [COSINE, ZERO], ids=["cosine", "zero_terminal"])
def test_ddim_at_eta_one_has_no_root_of_a_negative_number(schedule):
    # sigma'^2 - s^2 is sigma'^2 r with r = SNR / SNR', down to 1e-9 of either term: rounding could make the difference
    # negative.
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), solvers.ddim(grids.trailing(schedule, 11), 1.0).rows)
    traced = jax.jit(lambda levels, eta: solvers.ddim(levels, eta).rows)
    for steps in (2, 3, 5, 11):
        rows = traced(grids.trailing(schedule, steps), 1.0)
        assert all(np.isfinite(leaf).all() for leaf in (rows.eps, rows.noise, rows.x0))
    # Products and roots of float32 numbers: a few roundings of 6e-8 each.
    np.testing.assert_allclose(rows.eps, exact.eps, rtol=2e-6, atol=1e-30)

    x = jnp.ones((1, 2))
    step = jax.jit(lambda t, to: dfn.ddim_step(schedule, x, t, to, x, eta=1.0, noise=x, clip_denoised=False))
    for to in range(-1, 998, 37):
        assert np.isfinite(step(998, to)).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int16"])
def test_timesteps_of_any_integer_type(dtype):
    t = jnp.array([3, 100], dtype)
    wanted = COSINE.sqrt_alphas_cumprod[[3, 100]].astype(np.float32)
    np.testing.assert_array_equal(dfn.level_at(COSINE, t).alpha, wanted)
    np.testing.assert_array_equal(jax.jit(lambda t: dfn.level_at(COSINE, t).alpha)(t), wanted)


def test_edm_parameterization_is_invertible_at_pure_noise():
    level = dfn.Level(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(0.0))
    x0, eps = jnp.array([[0.3, -0.7]]), jnp.array([[1.5, -0.2]])
    edm = parameterizations.edm(0.5)
    prediction = dfn.to_prediction(edm, dfn.target(edm, x0, eps, level), eps, level)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-6)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-6)


def test_the_ema_of_bfloat16_parameters_keeps_moving():
    params = {"w": jnp.zeros((), jnp.bfloat16)}
    optimizer = optax.sgd(0.0)
    state = training.make_train_state({"w": jnp.ones((), jnp.bfloat16)}, optimizer)
    state = training.TrainState(state.step, params, state.ema, state.opt_state)
    step = jax.jit(
        training.make_train_step(lambda p, key, batch: (p["w"] * batch["x"], {}), optimizer, ema_decay=0.999)
    )
    for _ in range(200):
        state, _ = step(state, jax.random.key(0), {"x": jnp.ones(2)})
    np.testing.assert_allclose(state.ema["w"], 0.999**200, rtol=1e-4)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("cond", [2, np.int64(2), jnp.array(2), np.array([2, 2])])
def test_guidance_takes_one_label_for_the_batch(batched, cond):
    denoise = dfn.make_denoiser(lambda params, x, t, cond: x * cond[:, None], None, parameterizations.epsilon)
    guided = guidance.classifier_free(3.0, null_cond=0, batched=batched)(denoise)
    np.testing.assert_array_equal(guided(jnp.ones((2, 3)), dfn.Level(0.8, 0.6, 0.0), cond).eps, 6.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: dfn.add_noise(x, x, dfn.Level(1.0, jnp.ones((2, 1)), 0.0)), "level.sigma must have shape"),
        (lambda x: solvers.ddim(grids.karras(5), jnp.ones(4)), "eta must be one number"),
        (lambda x: solvers.ddim(dfn.Level([1.0, 1.0], [2.0, 1.0], [0.0, 0.0])), r"must be Level\[N\] of arrays"),
        (lambda x: grids.linspace(COSINE, 1001), "from 1 to the 1000 timesteps of the schedule; got 1001"),
        (lambda x: jax.jit(lambda s: grids.karras(5, 0.1, 50.0, schedule=s).t)(COSINE), "outside jit"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 3)))


def test_grids_of_a_float32_table_are_made_on_the_host():
    table = jax.tree.map(jnp.asarray, COSINE)
    for make in (grids.linspace, grids.uniform_log_snr):
        assert make(table, 5).alpha.dtype == np.float64


@pytest.fixture(scope="module")
def digits():
    config = customise(ddpm_digits.get_config(), backbone={"hidden_size": 16, "depth": 1, "dropout": 0.0})
    diffusion = dfn.build(config)
    return diffusion, diffusion.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.nan, 3, "images must be finite"),
        (0.5, 10, r"labels must lie in \[0, 9\]; got 10"),  # the null label is not a class of the data
        (0.5, -1, r"labels must lie in \[0, 9\]; got -1"),
    ],
)
def test_bad_batches_are_refused(digits, image, label, message):
    diffusion, params = digits
    batch = {"image": jnp.full((1, 8, 8, 1), image), "label": jnp.array([label])}
    with pytest.raises(ValueError, match=message):
        diffusion.loss(params, jax.random.key(0), batch)


def test_sampler_and_model_must_fit(digits):
    diffusion, params = digits
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1; got 0"):
        diffusion.sample(params, jax.random.key(0), 0)
    config = customise(default_config(), sampler={"name": "ancestral"})
    with pytest.raises(ValueError, match="'ancestral' has no eta"):
        dfn.build(config).sample(params, jax.random.key(0), 1, eta=0.5)
    config = customise(default_config(), sampler={"eta": 3.0, "name": "ancestral"})
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]; got 3.0"):
        dfn.build(config)


def test_losses_of_zero_leave_times_uniform():
    record = losses.update_loss_second_moment(losses.loss_second_moment(2, 1), jnp.arange(2), jnp.zeros(2))
    np.testing.assert_allclose(losses.time_probabilities(record), 0.5)


def test_python_scan_over_no_rows():
    denoise, x = dfn.oracles.gaussian(0.0, 1.0), jnp.ones((1, 2))
    solver = solvers.ddim(grids.karras(1))
    same = dfn.sample(None, denoise, solver, x, final_denoise=False, scan=dfn.python_scan).x0
    np.testing.assert_array_equal(same, x)


def test_the_finite_oracle_distinguishes_near_duplicates():
    # Two of 784 pixels differ by 0.02; at sigma 0.01 float32 distances must not lose that in |point|^2 of some 260.
    rng = np.random.default_rng(0)
    base = rng.uniform(-1, 1, 784)
    twin = base.copy()
    twin[:2] += 0.02
    data = np.stack([base, twin, *rng.uniform(-1, 1, (6, 784))])
    alpha, sigma = 0.9, 0.01
    x = alpha * data[:1] + sigma * rng.normal(size=(1, 784))
    distance = ((x - alpha * data) ** 2).sum(1)
    weights = np.exp(-0.5 * (distance - distance.min()) / sigma**2)
    exact = (weights / weights.sum()) @ data
    level = dfn.Level(jnp.float32(alpha), jnp.float32(sigma), jnp.float32(0.0))
    prediction = dfn.oracles.finite(jnp.asarray(data, jnp.float32))(jnp.asarray(x, jnp.float32), level)
    # x and data are rounded to float32 (6e-8 of 1), times |differences| / sigma^2 in the exponent: about 1e-3.
    np.testing.assert_allclose(prediction.x0[0], exact, atol=0.02 * 2e-3)
    pure_noise = dfn.oracles.finite(jnp.asarray(data, jnp.float32))(
        jnp.ones((1, 784)), dfn.Level(jnp.float32(0.0), jnp.float32(1.0), jnp.float32(0.0))
    )
    np.testing.assert_allclose(pure_noise.x0[0], data.mean(0), atol=1e-6)
