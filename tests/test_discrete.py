"""The DDPM and DDIM vocabulary against published numbers, and the edge cases of its timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load, meta

import diffusers_fn as dfn
from diffusers_fn import grids, parameterizations, solvers

# Double precision against double precision: the formulas are written in different orders, and 1 - alpha_bar >= 1e-4
# loses four digits of sixteen.
RTOL, ATOL = 1e-9, 1e-11

SCHEDULES = {
    "linear": dfn.make_noise_schedule(dfn.linear_betas(1000)),
    "scaled_linear": dfn.make_noise_schedule(dfn.scaled_linear_betas(1000)),
    "cosine": dfn.make_noise_schedule(dfn.cosine_betas(1000)),
    "linear_zsnr": dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(1000))),
}
PARAMETERIZATIONS = {
    "epsilon": parameterizations.epsilon,
    "sample": parameterizations.x0,
    "v_prediction": parameterizations.v,
    "EPSILON": parameterizations.epsilon,
    "START_X": parameterizations.x0,
}


def close(actual, wanted, rtol=RTOL, atol=ATOL):
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol)


# The forward process.


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.usefixtures("x64")
def test_add_noise_and_velocity_are_diffusers(name):
    golden, schedule = load("steps/forward"), SCHEDULES[name]
    x0, eps, t = jnp.asarray(golden["x0"]), jnp.asarray(golden["eps"]), jnp.asarray(golden["t"])
    close(dfn.q_sample(schedule, x0, t, eps), golden[f"{name}/add_noise_f64"])
    velocity = dfn.target(parameterizations.v, x0, eps, dfn.level_at(schedule, t))
    close(velocity, golden[f"{name}/velocity_f64"])


OPENAI = {"lin1000": SCHEDULES["linear"], "cos1000": SCHEDULES["cosine"]}


def openai(name):
    """The reference's inputs with channels last, as float64 JAX arrays: (x_start, eps, x_t, t, noise)."""
    golden = load("orig_gaussian_diffusion/calls")
    arrays = [np.moveaxis(golden[k], 1, -1) for k in ("x_start", "eps", "x_t")] + [golden[f"{name}/t"]]
    return [jnp.asarray(a) for a in [*arrays, np.moveaxis(golden["noise_bank"][0], 1, -1)]]


def openai_answer(name):
    return np.moveaxis(load("orig_gaussian_diffusion/calls")[f"{name}_f64"], 1, -1)


@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.usefixtures("x64")
def test_q_functions_are_openais(name):
    schedule = OPENAI[name]
    x_start, eps, x_t, t, _ = openai(name)
    close(dfn.q_sample(schedule, x_start, t, eps), openai_answer(f"{name}/q_sample"))
    for part, value in zip(("mean", "var", "logvar"), dfn.q_mean_variance(schedule, x_start, t)):
        close(value + jnp.zeros_like(x_t), openai_answer(f"{name}/q_mean_variance/{part}"))
    for part, value in zip(("mean", "var", "logvar"), dfn.q_posterior_mean_variance(schedule, x_start, x_t, t)):
        close(value + jnp.zeros_like(x_t), openai_answer(f"{name}/q_posterior/{part}"))


@pytest.mark.usefixtures("x64")
def test_noise_and_start_are_inverse_to_each_other():
    schedule = SCHEDULES["cosine"]
    x_start, eps, _, _, _ = openai("lin1000")
    t = jnp.array([0, 1, 300, 700, 990])
    x_t = dfn.q_sample(schedule, x_start, t, eps)
    # 1 / alpha_bar is 5e4 at t = 990 and 1 / sigma is 156 at t = 0: a few thousand times 1e-16 at most.
    close(dfn.predict_start_from_noise(schedule, x_t, t, eps), x_start, atol=1e-12)
    close(dfn.predict_noise_from_start(schedule, x_t, t, x_start), eps, atol=1e-12)


# One reverse step.


def openai_network(x, t):
    """The network of the reference's calls (see its meta.json): (output, variance channels)."""
    t = t.reshape(-1, 1, 1, 1)
    return 0.7 * x + 0.2 * jnp.sin(3 * x + 0.01 * t), jnp.tanh(0.8 * x - 0.5 + 0.001 * t)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["FIXED_SMALL", "FIXED_LARGE", "LEARNED", "LEARNED_RANGE"])
@pytest.mark.parametrize("kind", ["EPSILON", "START_X"])
@pytest.mark.parametrize("name", OPENAI)
@pytest.mark.usefixtures("x64")
def test_p_mean_variance_and_p_sample_are_openais(name, kind, variance, clip, replayed_noise):
    case = f"{name}/{kind}/{variance}"
    if f"{case}/pmv_clip0/mean_f64" not in load("orig_gaussian_diffusion/calls"):
        assert name == "cos1000"  # the reference kept two of the cosine schedule's combinations
        return
    _, _, x_t, t, replayed_noise.value = openai(name)
    out, var_out = openai_network(x_t, t)
    out = jnp.concatenate([out, var_out], axis=-1) if variance.startswith("LEARNED") else out
    knobs = {
        "parameterization": PARAMETERIZATIONS[kind],
        "variance": getattr(dfn, variance.lower()),
        "clip_denoised": clip,
    }
    p = dfn.p_mean_variance(OPENAI[name], out, x_t, t, **knobs)
    for field in ("mean", "variance", "log_variance"):
        close(getattr(p, field), openai_answer(f"{case}/pmv_clip{clip:d}/{field}"))
    close(p.pred_x_start, openai_answer(f"{case}/pmv_clip{clip:d}/pred_xstart"))
    drawn = dfn.p_sample(jax.random.key(0), OPENAI[name], out, x_t, t, **knobs)
    close(drawn, openai_answer(f"{case}/p_sample_clip{clip:d}"))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0, 0.5, 1])
@pytest.mark.parametrize("kind", ["EPSILON", "START_X"])
@pytest.mark.usefixtures("x64")
def test_ddim_step_is_openais(kind, eta, clip):
    schedule = OPENAI["lin1000"]
    _, _, x_t, t, noise = openai("lin1000")
    out, _ = openai_network(x_t, t)
    eps = out if kind == "EPSILON" else dfn.predict_noise_from_start(schedule, x_t, t, out)
    # OpenAI always computes eps anew from the clipped x0.
    knobs = {"clip_denoised": clip, "use_clipped_model_output": True}
    x = dfn.ddim_step(schedule, x_t, t, t - 1, eps, eta=eta, noise=noise, **knobs)
    close(x, openai_answer(f"lin1000/{kind}/FIXED_SMALL/ddim_eta{eta}_clip{clip:d}"))


@pytest.mark.parametrize("kind", ["EPSILON", "START_X"])
@pytest.mark.usefixtures("x64")
def test_ddim_reverse_step_is_openais(kind):
    schedule = OPENAI["lin1000"]
    _, _, x_t, t, _ = openai("lin1000")
    out, _ = openai_network(x_t, t)
    eps = out if kind == "EPSILON" else dfn.predict_noise_from_start(schedule, x_t, t, out)
    inside = np.asarray(t) < 999  # theirs steps from T - 1 to an additional level of pure noise, which we do not have
    assert inside.sum() >= 3
    x = dfn.ddim_reverse_step(schedule, x_t[inside], t[inside], t[inside] + 1, eps[inside])
    close(x, openai_answer(f"lin1000/{kind}/FIXED_SMALL/ddim_reverse_clip0")[inside])


DDPM_CASES = sorted({key.rsplit("/", 1)[0] for key in load("steps/ddpm") if key.endswith("_f64")})


@pytest.mark.parametrize(
    ("schedule_name", "variance"), sorted({(case.split("/")[0], case.split("/")[3]) for case in DDPM_CASES})
)
@pytest.mark.usefixtures("x64")
def test_p_sample_is_diffusers(schedule_name, variance, replayed_noise):
    """Every recorded step, also those of 20 timesteps (N50), for which the table is respaced.

    Dynamic thresholding is tested in test_denoisers. `prev` is comparable for all variances: theirs differ from ours
    at t = 0 only (a clamp at 1e-20, another first value of fixed_large), where neither adds noise.
    """
    golden = load("steps/ddpm")
    x_t, out, var_out, noise = (
        jnp.asarray(np.moveaxis(golden[k], 1, -1)) for k in ("xt", "model_output", "var_output", "noise")
    )
    full = SCHEDULES[schedule_name]
    strided = dfn.respace(full, np.arange(0, 1000, 20))
    count = 0
    for case in DDPM_CASES:
        of_schedule, kind, clip, of_variance, steps, t = case.split("/")
        if (of_schedule, of_variance) != (schedule_name, variance) or clip == "thres":
            continue
        t, schedule = int(t[1:]), full
        if steps == "N50":
            t, schedule = t // 20, strided
        name, network = variance.removesuffix("_log"), out
        if variance == "learned":  # they learn the variance, we learn its log
            network = jnp.concatenate([out, jnp.log(jnp.abs(var_out) * 0.01)], axis=-1)
        elif variance == "learned_range":
            network = jnp.concatenate([out, var_out], axis=-1)
        knobs = {"parameterization": PARAMETERIZATIONS[kind], "clip_denoised": clip == "clip"}
        knobs["variance"] = getattr(dfn, name)
        p = dfn.p_mean_variance(schedule, network, x_t, np.full(4, t), **knobs)
        wanted = {part: np.moveaxis(golden[f"{case}/{part}_f64"], 1, -1) for part in ("prev", "mean", "x0")}
        # The cosine table's alpha_bar is 2e-9 at t = 999, so x0 is 2e4 x - 2e4 out: relative to those, 1e-16 / 1e-9.
        size = max(1.0, float(np.abs(wanted["x0"]).max()))
        close(p.pred_x_start, wanted["x0"], atol=1e-10 * size)
        close(p.mean, wanted["mean"], atol=1e-10 * size)
        replayed_noise.value = noise
        drawn = dfn.p_sample(jax.random.key(0), schedule, network, x_t, np.full(4, t), **knobs)
        close(drawn, wanted["prev"], atol=1e-10 * size)
        count += 1
    assert count >= 3


DDIM_CASES = sorted({key.rsplit("/", 1)[0] for key in load("steps/ddim") if key.endswith("_f64")})


@pytest.mark.parametrize("schedule_name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.usefixtures("x64")
def test_ddim_step_is_diffusers(schedule_name):
    """Every recorded step of 20 timesteps. `one0` ends on alpha_bar[0] instead of clean data, which is t_prev = 0."""
    golden, schedule = load("steps/ddim"), SCHEDULES[schedule_name]
    x_t, out, noise = (jnp.asarray(golden[k]) for k in ("xt", "model_output", "noise"))
    count = 0
    for case in DDIM_CASES:
        if case.split("/")[0] != schedule_name:
            continue
        _, kind, clip, eta, uc, one, _, t = case.split("/")
        t = int(t[1:])
        t_prev = max(t - 20, -1 if one == "one1" else 0)
        if t_prev == t:  # their step 0 -> 0, which is no step
            continue
        level = dfn.level_at(schedule, np.full(4, t))
        eps = dfn.to_prediction(PARAMETERIZATIONS[kind], out, x_t, level).eps
        knobs = {"clip_denoised": clip == "clip", "use_clipped_model_output": uc == "uc1", "noise": noise}
        prev = dfn.ddim_step(schedule, x_t, np.full(4, t), np.full(4, t_prev), eps, eta=float(eta[3:]), **knobs)
        wanted = golden[f"{case}/prev_f64"]
        # x0 is eps / alpha, and alpha is 5e-5 at the end of the cosine table: 1e-16 / 1e-9 of that.
        size = max(1.0, float(np.abs(wanted).max()), 1e-6 / float(level.alpha[0]) ** 2)
        close(prev, wanted, atol=1e-11 * size)
        count += 1
    assert count >= 40


@pytest.mark.parametrize("schedule_name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.usefixtures("x64")
def test_ddim_reverse_step_is_diffusers(schedule_name):
    """Their t is the target, 20 timesteps above the sample. Recorded steps with clipping have no inverse: left out."""
    golden, schedule = load("steps/ddim"), SCHEDULES[schedule_name]
    x_t, out = jnp.asarray(golden["xt"]), jnp.asarray(golden["model_output"])
    count = 0
    for case in DDIM_CASES:
        if not case.startswith(f"inverse/{schedule_name}/") or "/noclip/" not in case:
            continue
        _, _, kind, _, one, _, target = case.split("/")
        target = int(target[1:])
        t = max(target - 20, -1 if one == "one1" else 0)
        if t == target:
            continue
        eps = dfn.to_prediction(PARAMETERIZATIONS[kind], out, x_t, dfn.level_at(schedule, np.full(4, t))).eps
        x = dfn.ddim_reverse_step(schedule, x_t, np.full(4, t), np.full(4, target), eps)
        close(x, golden[f"{case}/prev_f64"], atol=1e-10)
        count += 1
    assert count >= 4


# Whole published loops, by the literal functions and by `sample`.

LOOPS = {row["name"]: row for row in meta("published")["table"]}


def deter():
    """(sample, noise) of the published loops, [4, 3, 8, 8], in double precision."""
    index = np.moveaxis(np.arange(768.0).reshape(3, 8, 8, 4), -1, 0)
    return index / 768, (767 - index) / 768


def published_network(x, t):
    """x t / (t + 1), the published loops' stand-in for a network."""
    return x * (t / (t + 1))


def published_denoiser(transform):
    apply = lambda params, x, t, cond: published_network(x, t)  # noqa: E731
    return transform(dfn.make_denoiser(apply, None, parameterizations.epsilon))


def schedule_of(name):
    config = LOOPS[name]["config"]
    return dfn.make_noise_schedule(
        dfn.linear_betas(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    )


def check_published(name, x, tolerance):
    """The sum and mean that the tests of diffusers assert; sum|x| over all 768 numbers."""
    assert np.abs(x).sum() == pytest.approx(LOOPS[name]["expected_sum"], abs=tolerance)
    assert np.abs(x).mean() == pytest.approx(LOOPS[name]["expected_mean"], abs=1e-3)


@pytest.mark.parametrize("through", ["p_sample", "sample"])
@pytest.mark.usefixtures("x64")
def test_the_published_ddpm_loop(through, replayed_noise):
    """1000 steps of the first of the four images, whose noise is recorded; the arithmetic is elementwise."""
    golden, schedule = load("published/loops"), schedule_of("ddpm_eps")
    x = jnp.asarray(deter()[0][:1])
    draws = np.concatenate([golden["noise_d8ce48e4ff"], np.zeros((1, 3, 8, 8), np.float32)])[:, None]
    if through == "p_sample":

        def step(x, inputs):
            t, replayed_noise.value = inputs
            out = published_network(x, t)
            return dfn.p_sample(jax.random.key(0), schedule, out, x, t), None

        x = jax.lax.scan(step, x, (jnp.arange(1000)[::-1], jnp.asarray(draws)))[0]
    else:
        solver = solvers.ancestral(grids.linspace(schedule, 1000))
        denoise = published_denoiser(dfn.clip_x0())
        x = dfn.sample(jax.random.key(0), denoise, solver, x, scan=replayed_noise.scan(draws)).x0
    # Rounding errors shrink from step to step, so a thousand steps stay within 1e-9.
    close(x, golden["ddpm_eps/final_f64"][:1])


@pytest.mark.parametrize("through", ["p_sample", "sample"])
@pytest.mark.usefixtures("x64")
def test_the_published_partial_ddpm_loop(through, replayed_noise):
    """Its last two steps, t = 1 and t = 0, from a noised image."""
    golden, schedule = load("published/loops"), schedule_of("ddpm_partial")
    x, noise = map(jnp.asarray, deter())
    x = dfn.q_sample(schedule, x, np.full(4, 1), noise)
    draw = golden["noise_7265936968"][0]
    if through == "p_sample":
        replayed_noise.value = draw
        for t in (1, 0):
            x = dfn.p_sample(jax.random.key(0), schedule, published_network(x, t), x, np.full(4, t))
    else:
        solver = solvers.ancestral(dfn.level_at(schedule, np.array([1, 0])))
        scan = replayed_noise.scan(np.stack([draw, draw]))  # the second row is the final denoise, without noise
        x = dfn.sample(jax.random.key(0), published_denoiser(dfn.clip_x0()), solver, x, scan=scan).x0
    close(x, golden["ddpm_partial/final_f64"])
    # The published sum is of float32 tables, whose beta_0 is off by 1.7e-4: 0.02 of 388 here.
    check_published("ddpm_partial", x, tolerance=0.03)


@pytest.mark.parametrize("through", ["ddim_step", "sample"])
@pytest.mark.parametrize("name", ["ddim_eps", "ddim_alpha_one"])
@pytest.mark.usefixtures("x64")
def test_the_published_ddim_loops(name, through):
    golden, schedule = load("published/loops"), schedule_of(name)
    x = jnp.asarray(deter()[0])
    levels = grids.leading(schedule, 10)
    np.testing.assert_array_equal(levels.t, golden[f"{name}/timesteps"])
    if through == "ddim_step":
        steps = golden[f"{name}/timesteps"]
        for t, t_prev in zip(steps, [*steps[1:], -1]):
            x = dfn.ddim_step(schedule, x, np.full(4, t), np.full(4, t_prev), published_network(x, float(t)))
    else:
        x = dfn.sample(None, published_denoiser(dfn.clip_x0(keep_eps=True)), solvers.ddim(levels), x).x0
    close(x, golden[f"{name}/final_f64"])
    check_published(name, x, tolerance=0.01)


@pytest.mark.usefixtures("x64")
def test_the_published_inversion_loop():
    """DDIM in reverse, written out: they evaluate the network at the target timestep, `invert` at the sample's own.

    They clip x0 to [-1, 1], which changes nothing here.
    """
    golden, schedule = load("published/loops"), schedule_of("ddim_inv_eps")
    x, t = jnp.asarray(deter()[0]), -1
    for target in golden["ddim_inv_eps/timesteps"]:
        eps = published_network(x, float(target))
        level = dfn.level_at(schedule, np.full(4, t))
        x0_hat = dfn.to_prediction(parameterizations.epsilon, eps, x, level).x0
        assert jnp.abs(x0_hat).max() <= 1
        x, t = dfn.ddim_reverse_step(schedule, x, np.full(4, t), np.full(4, target), eps), target
    close(x, golden["ddim_inv_eps/final_f64"])
    check_published("ddim_inv_eps", x, tolerance=0.01)


# Edge cases of the timesteps.


@pytest.fixture(scope="module")
def data():
    key1, key2, key3 = jax.random.split(jax.random.key(4), 3)
    return tuple(1.7 * jax.random.normal(key, (3, 5)) + 0.3 for key in (key1, key2, key3))


def test_p_sample_adds_no_noise_at_zero(data):
    x_t, out, _ = data
    schedule, t = SCHEDULES["linear"], jnp.array([0, 1, 0])
    for variance in (dfn.fixed_small, dfn.fixed_large):
        mean = dfn.p_mean_variance(schedule, out, x_t, t, variance=variance).mean
        drawn = dfn.p_sample(jax.random.key(1), schedule, out, x_t, t, variance=variance)
        np.testing.assert_array_equal(drawn[0::2], mean[0::2])
        assert np.all(np.asarray(drawn[1] != mean[1]))


def test_p_sample_noise_has_the_variance_of_p_mean_variance():
    schedule, t = SCHEDULES["linear"], jnp.array([700])
    x_t = jnp.zeros((1, 20_000))
    for variance in (dfn.fixed_small, dfn.fixed_large):
        p = dfn.p_mean_variance(schedule, 0.1 * x_t, x_t, t, variance=variance)
        drawn = dfn.p_sample(jax.random.key(2), schedule, 0.1 * x_t, x_t, t, variance=variance)
        # The relative standard error of a variance from n draws is sqrt(2 / n) = 1%; four of them.
        assert float(jnp.var(drawn - p.mean)) == pytest.approx(float(p.variance[0, 0]), rel=0.04)


def test_p_sample_with_one_key_per_example_is_each_example_alone(data):
    x_t, out, _ = data
    schedule, t = SCHEDULES["linear"], jnp.array([10, 500, 999])
    keys = jax.random.split(jax.random.key(5), 3)
    together = dfn.p_sample(keys, schedule, out, x_t, t)
    for i in range(3):
        alone = dfn.p_sample(keys[i : i + 1], schedule, out[i : i + 1], x_t[i : i + 1], t[i : i + 1])
        np.testing.assert_array_equal(together[i], alone[0])
    assert dfn.denoise_step is dfn.p_sample


def test_ddim_ends_on_x0_exactly(data):
    x_t, eps, noise = data
    schedule, t = SCHEDULES["linear"], jnp.array([999, 20, 0])
    x0_hat = dfn.to_prediction(parameterizations.epsilon, eps, x_t, dfn.level_at(schedule, t)).x0
    for knobs in ({}, {"eta": 1.0, "noise": noise}, {"eta": jnp.array(0.5), "noise": noise}):
        last = dfn.ddim_step(schedule, x_t, t, jnp.full(3, -1), eps, clip_denoised=False, **knobs)
        np.testing.assert_array_equal(last, x0_hat)
        clipped = dfn.ddim_step(schedule, x_t, t, -1, eps, **knobs)
        np.testing.assert_array_equal(clipped, jnp.clip(x0_hat, -1, 1))


def test_minus_one_is_no_other_timestep(data):
    x, noise, _ = data
    schedule = SCHEDULES["linear"]
    np.testing.assert_array_equal(dfn.q_sample(schedule, x, jnp.full(3, -1), noise), x)
    for call in (
        lambda: dfn.p_sample(jax.random.key(0), schedule, noise, x, jnp.full(3, -1)),
        lambda: dfn.q_posterior_mean_variance(schedule, x, x, -1),
        lambda: dfn.ddim_step(schedule, x, -1, -1, noise),
    ):
        with pytest.raises(ValueError, match=r"timesteps must lie in \[0, 999\]"):
            call()
    # A traced timestep cannot be refused: the result is NaN.
    traced = jax.jit(lambda t: dfn.p_mean_variance(schedule, noise, x, t).mean)(jnp.full(3, -1))
    assert bool(jnp.all(jnp.isnan(traced)))


def test_reverse_then_forward_with_the_same_noise_returns(data):
    x, eps, _ = data
    schedule = SCHEDULES["linear"]
    for low, high in [(-1, 0), (0, 400), (400, 999)]:
        up = dfn.ddim_reverse_step(schedule, x, low, high, eps)
        down = dfn.ddim_step(schedule, up, high, low, eps, clip_denoised=False)
        # alpha is 0.0064 at t = 999: float32 rounding of 6e-8 times 1 / alpha = 157, times |x| of a few.
        np.testing.assert_allclose(down, x, atol=1e-4)


@pytest.mark.parametrize("skip_type", ["uniform", "quadratic"])
def test_ddim_timesteps_are_descending_distinct_and_in_range(skip_type):
    for num_timesteps in [1, 2, 3, 7, 10, 50, 99, 1000]:
        for num_steps in sorted({1, 2, 3, 5, 7, 10, 33, 49, 50, 250, 998, num_timesteps - 1, num_timesteps}):
            if not 1 <= num_steps <= num_timesteps:
                continue
            steps = dfn.ddim_timesteps(num_timesteps, num_steps, skip_type)
            assert steps.shape == (num_steps,)
            assert np.issubdtype(steps.dtype, np.integer)
            assert np.all(np.diff(steps) < 0)
            assert 0 <= steps[-1] <= steps[0] <= num_timesteps - 1
            if skip_type == "uniform":
                assert steps[0] == num_timesteps - 1
                assert num_steps == 1 or steps[-1] == 0
                if num_steps > 1:  # as close to even as integers can be
                    even = np.linspace(num_timesteps - 1, 0, num_steps)
                    assert np.all(np.abs(steps - even) <= 0.5 + 1e-9)
    np.testing.assert_array_equal(dfn.ddim_timesteps(40, 40, skip_type), np.arange(40)[::-1])


def test_quadratic_timesteps_are_the_papers():
    # floor(c i^2) with the last at 0.8 T (Song et al. 2021, appendix D.2), where these are distinct integers.
    np.testing.assert_array_equal(dfn.ddim_timesteps(1000, 5, "quadratic"), [800, 450, 200, 50, 0])
    np.testing.assert_array_equal(
        dfn.ddim_timesteps(1000, 10, "quadratic"), [int(800 * i * i / 81 + 1e-9) for i in range(10)][::-1]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dfn.ddim_timesteps(10, 11), "num_steps must be an integer from 1 to the 10 timesteps"),
        (lambda: dfn.ddim_timesteps(10, 0), "got 0"),
        (lambda: dfn.ddim_timesteps(10, 2.5), "got 2.5"),
        (lambda: dfn.ddim_timesteps(10, 5, "cubic"), "'uniform' or 'quadratic'; got 'cubic'"),
    ],
)
def test_bad_timestep_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _bad_calls():
    schedule, x, x_wide = SCHEDULES["linear"], jnp.ones((2, 3)), jnp.ones((2, 6))
    t = np.array([5, 6])
    key = jax.random.key(0)
    return [
        (lambda: dfn.q_sample(schedule, x, np.array([1000, 0]), x), r"\[-1, 999\] .* got 1000"),
        (lambda: dfn.q_sample(schedule, x, np.array([0, 1, 2]), x), r"t must have shape \[\] or \[2\]"),
        (lambda: dfn.q_sample(schedule, x, np.array([0.0, 1.0]), x), "timesteps must be integers; got float64"),
        (lambda: dfn.q_sample(schedule, jnp.ones((2, 3), jnp.int32), t, x), "floating type, scaled to .*got int32"),
        (lambda: dfn.q_sample(schedule, x, t, x_wide), "noise must have the shape of x0"),
        (lambda: dfn.forward_diffusion(key, schedule, jnp.ones((2, 3), jnp.uint8), t), "got uint8"),
        (lambda: dfn.forward_diffusion(jax.random.split(key, 3), schedule, x, t), "3 keys for a batch of 2"),
        (lambda: dfn.p_sample(None, schedule, x, x, t), "key must be a JAX random key"),
        (lambda: dfn.p_sample(jax.random.split(key, 3), schedule, x, x, t), "3 keys for a batch of 2"),
        (lambda: dfn.p_mean_variance(schedule, jnp.ones((2, 4)), x, t), "twice its channels"),
        (lambda: dfn.p_mean_variance(schedule, x_wide, x, t), "variance=fixed_small needs .* got 6"),
        (lambda: dfn.p_mean_variance(schedule, x, x, t, variance=dfn.learned_range), "learned_range needs twice"),
        (lambda: dfn.p_mean_variance(schedule, x, x, np.array([5, 1000])), r"\[-1, 999\].*got 1000|\[0, 999\].*1000"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x, eta=1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x, eta=-0.1, noise=x), r"eta must lie in \[0, 1\]; got -0.1"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x, eta=jnp.array(2.0), noise=x), r"eta must lie in \[0, 1\]"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x, eta=0.5), "noise is required unless eta is 0"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x, eta=1.0, noise=x[:, :1]), "noise must have the shape of x_t"),
        (lambda: dfn.ddim_step(schedule, x, t, t, x), "noisier timestep must be above the cleaner one"),
        (lambda: dfn.ddim_step(schedule, x, t, t + 1, x), "noisier timestep must be above the cleaner one"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 8, x), r"\[-1, 999\] .* got -3"),
        (lambda: dfn.ddim_step(schedule, x, t, t - 1, x_wide), "predicted_noise must have the shape of x_t"),
        (lambda: dfn.ddim_reverse_step(schedule, x, t, t - 1, x), "noisier timestep must be above the cleaner one"),
        (lambda: dfn.ddim_reverse_step(schedule, x, t, np.array([999, 1000]), x), "got 1000"),
        (lambda: dfn.predict_start_from_noise(schedule, x, t, x_wide), "noise must have the shape of x_t"),
        (lambda: dfn.predict_noise_from_start(schedule, x, t[:1], x), r"t must have shape \[\] or \[2\]"),
    ]


@pytest.mark.parametrize("i", range(len(_bad_calls())))
def test_bad_input_is_refused(i):
    call, message = _bad_calls()[i]
    with pytest.raises(ValueError, match=message):
        call()
