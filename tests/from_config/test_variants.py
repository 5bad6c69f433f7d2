"""Model variants in configs: processes, guidance, objectives, classifiers, autoencoders; what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import small_config, some_params

import diffusers_fn as dfn
from diffusers_fn import losses, parameterizations, processes, training
from diffusers_fn.from_config.guiding import GuidanceInputs, make_guidance
from diffusers_fn.from_config.noise import make_noise
from diffusers_fn.levels import Level, log_snr

PROCESSES = {
    "vp": processes.vp(),
    "sub_vp": processes.sub_vp(),
    "ve": processes.ve(0.01, 50.0),
    "cosine": processes.cosine(),
    "trigonometric": processes.trigonometric(),
    "flow": processes.flow(),
    "edm": processes.edm(),
}


small = functools.partial(small_config, 3)


# Noise.


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_are_those_of_the_process(name):
    label = "log_sigma" if name == "edm" else "step"
    noise = make_noise(small(noise_schedule={"process": name, "time_label": label}).noise_schedule)
    process, u = PROCESSES[name], np.array([0.1, 0.7])
    t = process.t_min + (process.t_max - process.t_min) * u
    wanted, level = process(t), noise.level(u)
    np.testing.assert_allclose(level.alpha, wanted.alpha, rtol=1e-12)
    np.testing.assert_allclose(level.sigma, wanted.sigma, rtol=1e-12)
    label = np.log(wanted.sigma / wanted.alpha) / 4 if name == "edm" else 1000 * t
    np.testing.assert_allclose(level.t, label, rtol=1e-10)
    grid = noise.grid("trailing", 4)
    np.testing.assert_allclose(grid.sigma, process(process.t_max * np.array([1, 0.75, 0.5, 0.25])).sigma, rtol=1e-12)
    np.testing.assert_allclose(noise.grid("trailing", 1).sigma, process(process.t_max).sigma, rtol=1e-12)


def test_the_ends_and_sigmas_of_a_config_reach_the_process():
    config = small(noise_schedule={"process": "ve", "sigma_min": 0.1, "sigma_max": 7.0, "t_min": 0.0})
    noise = make_noise(config.noise_schedule)
    np.testing.assert_allclose(noise.grid("uniform", 2).sigma, [7.0, 0.1])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"noise_schedule": {"process": "heat"}}, "noise_schedule.process must be one of .*flow.*table.*; got 'heat'"),
        ({"noise_schedule": {"process": "vp", "sigma_max": 3.0}}, "'vp' has none: leave it None"),
        ({"noise_schedule": {"process": "edm"}}, "set it to 'log_sigma' or 'sigma'"),
        ({"noise_schedule": {"process": "flow"}}, "'epsilon' does not determine x0 at pure noise"),
        (
            {"noise_schedule": {"process": "flow", "time_label": "log_sigma"}, "parameterization": "velocity"},
            "infinite at pure noise",
        ),
        ({"noise_schedule": {"process": "vp"}, "sampler": {"skip_type": "leading"}}, "'leading', which is for tables"),
        ({"noise_schedule": {"process": "edm", "time_label": "sigma"}}, "set it to 'log_normal'"),
        ({"noise_schedule": {"process": "vp"}, "loss": {"time_sampler": "loss_second_moment"}}, "needs a table"),
        ({"variance": "learned_range"}, "set config.backbone.learned_variance to True"),
        ({"backbone": {"learned_variance": True}}, "learned_variance is True, but nothing reads"),
        ({"variance": "learned_range", "backbone": {"learned_variance": True}}, "does not train"),
        ({"loss": {"objective": "hybrid"}}, "trains a learned variance"),
        ({"loss": {"objective": "magic"}}, "loss.objective must be one of .*denoising.*; got 'magic'"),
        ({"loss": {"objective": "mean_flow"}}, "'jump' and loss.objective 'mean_flow' go together"),
        ({"loss": {"objective": "consistency"}}, "set noise_schedule.process to 'trigonometric'"),
        ({"sampler": {"guidance": "magic"}}, "sampler.guidance must be one of"),
        ({"sampler": {"cfg_interval": (2.0, 1.0)}}, "0 <= low < high"),
        (
            {"sampler": {"guidance": "projected", "cfg_rescale": 0.5}},
            "cfg_rescale is 0.5.* guidance to 'classifier_free'",
        ),
        ({"loss": {"offset_noise": -1.0}}, "offset_noise must not be negative"),
        (
            {"sampler": {"guidance": "classifier_free_pp", "cfg_interval": (0.1, 1.0)}},
            r"cfg_interval is \(0.1, 1.0\), .* or guidance to 'classifier_free' or 'projected'",
        ),
        ({"sampler": {"guidance": "classifier_free_pp"}, "loss": {"label_dropout": 0.0}}, "to do without its label"),
        ({"sampler": {"name": "heun", "eta": 1.0}}, "eta is 1.0, but 'heun' has none"),
        ({"noise_schedule": {"shift": 3.0}}, "shift is 3.0, which a table of betas does not have: leave it 1"),
        ({"noise_schedule": {"t_max": 0.5}}, "t_max is 0.5, which a table .* leave it None"),
        ({"noise_schedule": {"sigma_max": 5.0}}, "sigma_max is 5.0, which a table"),
        ({"noise_schedule": {"process": "vp", "zero_terminal_snr": True}}, "is for tables of betas"),
    ],
)
def test_combinations_that_contradict_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        dfn.build(small(**sections))


# Losses.


def test_log_normal_levels_have_the_moments_that_they_are_asked_for():
    noise = make_noise(small(noise_schedule={"process": "edm", "time_label": "log_sigma"}).noise_schedule)
    level = losses.log_normal_level(noise.at, mean=-0.4, std=1.2)(jax.random.key(0), 100_000)
    log_sigma = np.log(np.asarray(level.sigma, np.float64))
    assert abs(log_sigma.mean() + 0.4) < 0.015  # four standard errors
    assert abs(log_sigma.std() - 1.2) < 0.011


def test_mode_times_have_the_published_density():
    """Esser et al. 2024, eq. 20: u' = 1 - u - s (cos^2(pi u / 2) - 1 + u), in NumPy, quantile by quantile."""
    drawn = np.sort(np.asarray(losses.mode_time(1.29)(jax.random.key(0), 200_000)))
    u = 1 - (np.arange(200_000) + 0.5) / 200_000
    wanted = 1 - u - 1.29 * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    assert np.abs(drawn - wanted).max() < 0.01


def test_the_likelihood_weight_is_half_the_slope_of_the_snr():
    for process in (processes.vp(), processes.ve(), processes.sub_vp(), processes.flow()):
        t, h = np.array([0.3, 0.6]), 1e-5
        snr = lambda t, process=process: np.exp(log_snr(process(t)))  # noqa: E731
        slope = -(snr(t + h) - snr(t - h)) / (2 * h)
        np.testing.assert_allclose(losses.likelihood(process)(process(t)), slope / 2, rtol=1e-6)


def test_offset_noise_moves_a_channel_as_a_whole():
    eps = losses.offset_noise(jax.random.key(0), jnp.zeros((4_000, 2, 2, 3)), 0.3)
    assert np.ptp(np.asarray(eps), axis=(1, 2)).max() == 0
    assert abs(float(eps[:, 0, 0].std()) - 0.3) < 0.01
    assert abs(np.corrcoef(np.asarray(eps[:, 0, 0]).T)[0, 1]) < 0.06


def test_the_score_of_a_scaled_output():
    level, x0, eps = Level(0.8, 0.6, 0.0), jnp.array([[0.3]]), jnp.array([[-1.2]])
    parameterization = parameterizations.scaled_score(4.0)
    out = parameterizations.target(parameterization, x0, eps, level)
    np.testing.assert_allclose(4.0 * out, -eps / 0.6, rtol=1e-6)
    prediction = parameterizations.to_prediction(parameterization, out, 0.8 * x0 + 0.6 * eps, level)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-5)


@pytest.mark.long
def test_importance_sampled_timesteps_leave_the_expected_loss():
    """With a record that makes half the steps likelier, the weighted mean is that of uniform steps."""
    config = small(
        noise_schedule={"noise_steps": 4, "beta_end": 0.5},
        loss={"time_sampler": "loss_second_moment"},
        sampler={"num_inference_steps": 2},
    )
    objective = dfn.build_objective(config)
    params = some_params(dfn.build(config).init)
    n = 20_000
    batch = {"image": jnp.zeros((n, 2)), "label": jnp.zeros(n, jnp.int32)}
    history = jnp.broadcast_to(jnp.array([1.0, 1.0, 3.0, 3.0])[:, None], (4, 10))
    record = losses.LossSecondMoment(history, jnp.full(4, 10))
    weighted, metrics = jax.jit(objective.loss)(params, jax.random.key(1), batch, record)
    t = np.asarray(metrics["timestep"])
    assert abs((t >= 2).mean() - 0.75) < 0.02
    uniform, _ = dfn.build(
        small(noise_schedule={"noise_steps": 4, "beta_end": 0.5}, sampler={"num_inference_steps": 2})
    ).loss(params, jax.random.key(2), batch)
    error = float(jnp.std(weighted) + jnp.std(uniform)) / n**0.5
    assert abs(float(weighted.mean() - uniform.mean())) < 4 * error


def test_coupled_noise_is_used():
    diffusion = dfn.build(small(noise_schedule={"process": "flow"}, parameterization="velocity"))
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(diffusion.init, jax.random.key(0)))
    x0, noise = jnp.full((3, 2), 0.5), jnp.full((3, 2), -1.0)
    batch = {"image": x0, "label": jnp.zeros(3, jnp.int32), "noise": noise}
    loss, _ = diffusion.loss(params, jax.random.key(0), batch)  # the network returns 0
    np.testing.assert_allclose(loss, 1.5**2, rtol=1e-6)


# Sampling.


def test_rescaled_projected_and_limited_guidance_are_those_of_the_library():
    params = some_params(dfn.build(small()).init)
    cond = jnp.array([0, 1, 2])
    plain = dfn.build(small(sampler={"clip_denoised": False, "cfg_scale": 3.0})).sample(
        params, jax.random.key(0), 3, cond=cond
    )

    def sample(**sampler):
        config = small(sampler={"clip_denoised": False, "cfg_scale": 3.0, **sampler})
        return dfn.build(config).sample(params, jax.random.key(0), 3, cond=cond).x0

    nowhere = sample(cfg_interval=(1e8, 1e9))
    unguided = dfn.build(small(sampler={"clip_denoised": False})).sample(params, jax.random.key(0), 3, cond=cond).x0
    np.testing.assert_allclose(nowhere, unguided, rtol=1e-4, atol=1e-4)
    for options in (
        {"cfg_rescale": 0.7},
        {"guidance": "projected"},
        {"guidance": "classifier_free_pp"},
        {"cfg_channels": 1},
    ):
        other = sample(**options)
        assert np.isfinite(other).all()
        assert float(jnp.abs(other - plain.x0).max()) > 1e-4, options


@pytest.mark.parametrize(
    "sections",
    [{"noise_schedule": {"zero_terminal_snr": True}}, {"noise_schedule": {"process": "flow"}}],
    ids=["zero_terminal_snr", "flow"],
)
def test_rescaled_guidance_is_that_of_what_the_network_puts_out(sections):
    """Lin et al. 2024, eq. 15-16, by hand on v: also at pure noise, where their paper needs it."""
    config = small(parameterization="v", sampler={"cfg_rescale": 1.0, "clip_denoised": False}, **sections)
    x, level = jax.random.normal(jax.random.key(0), (3, 2)), Level(0.6, 0.8, 500.0)
    cond = jnp.array([0, 1, 2])
    net = lambda params, x, t, cond: jnp.tanh(x * (1 + cond[:, None]))  # noqa: E731
    denoise = dfn.make_denoiser(net, None, parameterizations.v)
    prediction = make_guidance(config.sampler, GuidanceInputs(3, parameterizations.v))(4.0)(denoise)(x, level, cond)
    with_label, without = net(None, x, 0, cond), net(None, x, 0, jnp.full(3, 3))
    v = without + 4.0 * (with_label - without)
    v *= jnp.std(with_label, axis=1, keepdims=True) / jnp.std(v, axis=1, keepdims=True)
    np.testing.assert_allclose(level.alpha * prediction.eps - level.sigma * prediction.x0, v, rtol=1e-4, atol=1e-5)

    diffusion = dfn.build(config)
    samples = diffusion.sample(some_params(diffusion.init), jax.random.key(0), 3, cond=cond, guidance_scale=3.0).x0
    assert np.isfinite(samples).all()


def test_a_network_that_always_saw_its_label_is_not_asked_without():
    diffusion = dfn.build(small(loss={"label_dropout": 0.0}))
    params = some_params(diffusion.init)
    assert np.isfinite(diffusion.sample(params, jax.random.key(0), 3, cond=jnp.array([0, 1, 2])).x0).all()
    for asked in ({}, {"cond": jnp.array([0, 1, 2]), "guidance_scale": 1.5}):
        with pytest.raises(ValueError, match="it has no prediction without a label"):
            diffusion.sample(params, jax.random.key(0), 3, **asked)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\]; got 0 to 3"):
        diffusion.sample(params, jax.random.key(0), 3, cond=jnp.array([0, 1, 3]))


def test_a_guidance_scale_of_another_length_is_refused():
    diffusion = dfn.build(small())
    with pytest.raises(ValueError, match=r"guidance_scale must be \[\] or \[3\]; got shape \(2,\)"):
        diffusion.sample(some_params(diffusion.init), jax.random.key(0), 3, cond=0, guidance_scale=jnp.ones(2))


def test_a_transform_of_ones_own_sees_cond_where_the_network_has_none():
    config = small(backbone={"num_classes": 0}, sampler={"clip_denoised": False})
    diffusion = dfn.build(config)
    params = some_params(diffusion.init)
    towards = lambda x, level, y: -0.5 * jnp.sum((x - y[:, None]) ** 2, axis=1)  # noqa: E731
    transform = dfn.guidance.classifier(towards, 0.3)
    low, high = (
        diffusion.sample(params, jax.random.key(0), 4, cond=jnp.full(4, y), transform=transform).x0 for y in (-9, 9)
    )
    assert float((high - low).min()) > 0.1
    with pytest.raises(ValueError, match="this model is unconditional"):
        diffusion.sample(params, jax.random.key(0), 4, cond=jnp.zeros(4, jnp.int32))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_step_models_sample_in_few_steps(steps):
    mean_flow = {
        "noise_schedule": {"process": "flow", "noise_steps": 2},
        "parameterization": "velocity",
        "loss": {"objective": "mean_flow", "guidance_scale": 1.5},
        "sampler": {"name": "jump"},
    }
    consistency = {
        "noise_schedule": {"process": "trigonometric", "noise_steps": 2, "t_max": 0.99},
        "parameterization": "v",
        "loss": {"objective": "consistency"},
        "sampler": {"name": "lcm"},
    }
    for sections in (mean_flow, consistency):
        sections["sampler"] |= {"num_inference_steps": steps, "skip_type": "trailing"}
        diffusion = dfn.build(small(**sections))
        params = some_params(diffusion.init)
        samples = diffusion.sample(params, jax.random.key(0), 2, cond=1, emit=lambda step: step.x)
        assert samples.trace.shape[0] == steps
        assert np.isfinite(samples.x0).all()


# Other networks.


@pytest.mark.long
def test_a_classifiers_log_probabilities_sum_to_one_and_its_loss_is_their_negative():
    config = small(
        task="classifier", backbone={"name": "mlp_classifier", "num_classes": 3, "hidden_size": 8, "depth": 1}
    )
    net = dfn.build_classifier(config)
    params = some_params(net.init)
    x, level = jax.random.normal(jax.random.key(0), (5, 2)), Level(0.8, 0.6, 10.0)
    each = [net.log_prob(params)(x, level, jnp.full(5, y)) for y in range(3)]
    np.testing.assert_allclose(sum(np.exp(p) for p in each), 1.0, rtol=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, params)
    batch = {"image": x, "label": jnp.arange(5) % 3}
    loss, _ = net.loss(zeros, jax.random.key(0), batch)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    step = lambda y: net.loss(params, jax.random.key(0), {**batch, "label": jnp.full(5, y)})[0]  # noqa: E731
    np.testing.assert_allclose(sum(np.exp(-step(y)) for y in range(3)), 1.0, rtol=1e-5)  # of the same noise


def test_both_halves_of_an_autoencoder_learn():
    config = small(
        task="autoencoder",
        loss={"kl_weight": 1e-3},
        backbone={
            "name": "simple_autoencoder",
            "latent_dim": 2,
            "encoder_hidden_dims": (8,),
            "decoder_hidden_dims": (8,),
        },
    )
    net = dfn.build_autoencoder(config)
    params = some_params(net.init)
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 2))}
    gradient = jax.grad(lambda p: net.loss(p, jax.random.key(0), batch)[0].mean())(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))
    assert net.latent_shape == (2,)
    with pytest.raises(ValueError, match=r"backbone.name must be one of autoencoder_kl, simple_autoencoder; got 'mlp'"):
        dfn.build_autoencoder(small())
    with pytest.raises(ValueError, match=r"backbone.name must be one of classifier, mlp_classifier; got 'mlp'"):
        dfn.build_classifier(small())
    with pytest.raises(ValueError, match=r"a classifier takes x unscaled. Set it to False"):
        dfn.build_classifier(small(task="classifier", backbone={"name": "mlp_classifier"}, scale_input=True))


# Averages.


def test_averages_are_the_sums_that_their_names_say():
    averages = training.averages
    walk = np.cumsum(np.random.default_rng(0).standard_normal(200))
    gamma = float(averages.power_function_gamma(0.1))
    keep = averages.averaging(averages.exponential(0.9), averages.power_function(0.1))

    def step(state, value):
        return keep.update(state, {"w": value}), None

    state, _ = jax.lax.scan(step, keep.init({"w": jnp.zeros(())}), jnp.asarray(walk, jnp.float32))
    ages = np.arange(200)[::-1]
    np.testing.assert_allclose(state.trees[0]["w"], np.sum(0.1 * 0.9**ages * walk), rtol=1e-4)
    n = np.arange(1, 201)
    factors = (1 - 1 / n) ** (gamma + 1)
    weights = np.array([(1 - factors[i]) * np.prod(factors[i + 1 :]) for i in range(200)])
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(state.trees[1]["w"], np.sum(weights * walk), rtol=1e-4)
    std = np.sqrt(np.sum(weights * n**2) - np.sum(weights * n) ** 2) / 200
    assert abs(std - 0.1) < 0.002


def test_the_length_and_exponent_of_a_power_function_are_the_papers():
    """Karras et al. 2024, section 3.1: relative widths of 0.10 and 0.05 have the exponents 6.94 and 16.97."""
    gammas = training.averages.power_function_gamma(np.array([0.1, 0.05]))
    np.testing.assert_allclose(gammas, [6.94, 16.97], atol=0.005)
    np.testing.assert_allclose(training.averages.power_function_std(gammas), [0.1, 0.05], rtol=1e-12)


def test_an_average_of_another_length_is_found_after_the_run():
    """Twenty snapshots at two widths against the average itself, of a random walk."""
    averages = training.averages
    steps, stds, wanted_std = 2_000, (0.05, 0.1), 0.075
    walk = np.cumsum(np.random.default_rng(1).standard_normal(steps)) / 30
    n = np.arange(1, steps + 1)
    values = {}
    for std in (*stds, wanted_std):
        average, kept = 0.0, []
        keep = (1 - 1 / n) ** (float(averages.power_function_gamma(std)) + 1)
        for factor, value in zip(keep, walk):
            average = factor * average + (1 - factor) * value
            kept.append(average)
        values[std] = kept
    at = [(i, std) for i in range(200, steps + 1, 200) for std in stds]
    weights = averages.post_hoc_weights([i for i, _ in at], [std for _, std in at], steps, wanted_std)
    found = averages.combine([{"w": np.float64(values[std][i - 1])} for i, std in at], weights)["w"]
    error = abs(found - values[wanted_std][-1])
    assert error < 0.1 * abs(values[0.05][-1] - values[0.1][-1])
