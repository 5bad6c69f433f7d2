"""Classifier guidance: exact on a mixture for any batch size, in both forms, and the numbers of the paper's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, solvers

# Three classes in four dimensions.
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.0, 0.3, 0.0, 0.8], [0.4, -0.6, 0.9, -0.2], [1.2, 1.0, -0.7, 0.1]])
STDS = np.array([[0.3, 0.5, 0.4, 0.6], [0.6, 0.2, 0.5, 0.3], [0.4, 0.4, 0.7, 0.5]])
PROCESSES = {
    "vp": dfn.make_noise_schedule(dfn.linear_betas(1000)),
    "flow": dfn.processes.flow(),
    "edm": dfn.processes.edm(),
}


def log_joint(x, level):
    """log w_k N(x; alpha mean_k, alpha^2 std_k^2 + sigma^2), [B, K]."""
    classes = [oracles.mixture_log_prob([1.0], mean[None], std[None])(x, level) for mean, std in zip(MEANS, STDS)]
    return jnp.stack(classes, axis=1) + np.log(WEIGHTS)[None].astype(x.dtype)


def log_prob(x, level, cond):
    """The exact log p(class | x at the level), [B]."""
    return jnp.take_along_axis(jax.nn.log_softmax(log_joint(x, level)), cond[:, None], axis=1)[:, 0]


def component(x, level, cond):
    """The exact denoiser for the class of each example."""
    classes = [oracles.gaussian(mean, std)(x, level) for mean, std in zip(MEANS, STDS)]
    own = lambda *outs: jnp.take_along_axis(jnp.stack(outs), cond[None, :, None], axis=0)[0]  # noqa: E731
    return jax.tree.map(own, *classes)


def mixture(x, level, cond=None):
    """Created in the precision of the test that calls it."""
    return oracles.mixture(WEIGHTS, MEANS, STDS)(x, level)


def levels_of(name, num):
    return grids.at_ratios(np.geomspace(20.0, 0.05, num), PROCESSES[name])


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.usefixtures("x64")
def test_the_exact_classifier_at_scale_one_gives_the_conditional_denoiser(name, batch):
    guided, wanted_from = jax.jit(guidance.classifier(log_prob)(mixture)), jax.jit(component)
    labels = jnp.arange(batch) % 3
    for level in map(lambda i: jax.tree.map(lambda a: a[i], levels_of(name, 9)), (0, 3, 5, 8)):
        # Noisy data of another class, where the classifier assigns the class a small probability.
        x = level.alpha * MEANS[(np.arange(batch) + 1) % 3] + level.sigma * np.sin(np.arange(4 * batch)).reshape(
            batch, 4
        )
        ours, wanted = guided(x, level, labels), wanted_from(x, level, labels)
        # x0 is x plus sigma^2 / alpha times a gradient, whose rounding error is about 1e-16.
        amplified = 1e-12 * max(1.0, float(level.sigma / level.alpha) ** 2)
        np.testing.assert_allclose(ours.x0, wanted.x0, atol=amplified)
        np.testing.assert_allclose(ours.eps, wanted.eps, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("make", [solvers.ddim, solvers.ancestral])
@pytest.mark.usefixtures("x64")
def test_guided_samples_are_samples_of_the_class_for_batches_of_1_and_64(make, summed):
    levels = levels_of("flow", 20)
    solver = make(levels)
    keys, x = jax.random.split(jax.random.key(0), 64), jax.random.normal(jax.random.key(1), (64, 4), jnp.float64)
    labels = jnp.arange(64) % 3
    total = (lambda *args: jnp.sum(log_prob(*args))) if summed else log_prob

    def draw(denoise, num):
        bound = dfn.bind(denoise, labels[:num])
        return dfn.sample(keys[:num] if solver.stochastic else None, bound, solver, x[:num]).x0

    wanted = jax.jit(draw, static_argnums=(0, 1))(component, 64)
    guided = guidance.classifier(total)(mixture)
    all_64, first = (jax.jit(draw, static_argnums=(0, 1))(guided, num) for num in (64, 1))
    np.testing.assert_allclose(all_64, wanted, atol=1e-9)
    np.testing.assert_allclose(first, wanted[:1], atol=1e-9)


def test_samples_follow_the_class_in_float32():
    """Mean and standard deviation of 4,000 samples of the middle class, in float32 with a traced label."""
    num, levels = 4000, grids.uniform_log_snr(PROCESSES["vp"], 40)
    x = jax.random.normal(jax.random.key(0), (num, 4))

    @jax.jit
    def draw(label):
        guided = dfn.bind(guidance.classifier(log_prob)(mixture), jnp.full(num, label))
        return dfn.sample(None, guided, solvers.dpmpp_2m(levels), x).x0

    samples = draw(1)
    # Four standard errors, and one percent for the 40 steps.
    np.testing.assert_allclose(samples.mean(0), MEANS[1], atol=4 * STDS[1].max() / num**0.5 + 0.01)
    np.testing.assert_allclose(samples.std(0), STDS[1], rtol=4 / (2 * num) ** 0.5 + 0.01)


def test_the_strength_does_not_depend_on_the_batch():
    """The gradient is that of the sum over the batch; the mean would guide 64 examples 64 times less than one."""
    guided, level = jax.jit(guidance.classifier(log_prob, 2.0)(mixture)), dfn.Level(0.8, 0.6, 3.0)
    x, labels = jax.random.normal(jax.random.key(0), (64, 4)), jnp.arange(64) % 3
    one, many, plain = guided(x[:1], level, labels[:1]), guided(x, level, labels), jax.jit(mixture)(x, level).eps
    np.testing.assert_allclose(many.eps[:1] - plain[:1], one.eps - plain[:1], atol=2e-6)
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, y: log_prob(x[None], level, y[None])[0])))(x, labels)
    np.testing.assert_allclose(many.eps - plain, -2 * 0.6 * gradient, atol=2e-6)


def test_logits_of_any_size_leave_gradients():
    """With log-softmax: at these logits the probability underflows in float32 and log(softmax) has no gradient."""
    logits = jnp.array([[1000.0, 0.0, -3000.0]])
    apply = lambda params, x, t: params * x  # noqa: E731
    labels, level = jnp.array([2, 1]), dfn.Level(0.8, 0.6, 5.0)
    log_prob = guidance.class_log_prob(apply, logits)
    value = log_prob(jnp.ones((2, 3)), level, labels)
    np.testing.assert_array_equal(value, [-4000.0, -1000.0])
    guided = jax.jit(guidance.classifier(log_prob)(oracles.gaussian(0.0, 1.0)))
    shift = guided(jnp.ones((2, 3)), level, labels).eps - oracles.gaussian(0.0, 1.0)(np.ones((2, 3)), level).eps
    np.testing.assert_allclose(shift, -0.6 * np.array([[-1000.0, 0.0, -3000.0], [-1000.0, 0.0, 0.0]]), rtol=1e-6)


def test_bfloat16_logits_are_normalised_in_float32():
    logits = lambda params, x, t: jnp.asarray([[8.0, 8.0625]], jnp.bfloat16)  # noqa: E731
    value = guidance.class_log_prob(logits, None)(jnp.ones((1, 2)), dfn.Level(0.8, 0.6, 0.0), jnp.array(1))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, [-np.log1p(np.exp(8.0 - 8.0625))], rtol=1e-6)


def test_a_classifier_with_labels_guides_a_model_without_labels():
    def plain(x, level, cond=None):
        assert cond is None
        return mixture(x, level)

    x, level, labels = jnp.ones((3, 4)), dfn.Level(0.8, 0.6, 3.0), jnp.array([0, 1, 2])
    guided = jax.jit(guidance.classifier(log_prob)(guidance.ignore_cond(plain)))(x, level, labels)
    np.testing.assert_allclose(guided.x0, jax.jit(component)(x, level, labels).x0, atol=1e-5)
    # log_prob without cond, for a fixed class.
    fixed = jax.jit(guidance.classifier(lambda x, level: log_prob(x, level, labels))(plain))(x, level)
    np.testing.assert_array_equal(fixed.x0, guided.x0)


# The paper's code.

GOLDEN = {
    "lin1000": dfn.make_noise_schedule(dfn.linear_betas(1000)),
    "cos1000": dfn.make_noise_schedule(dfn.cosine_betas(1000)),
}


def recorded(name):
    """(x_t, t) with channels last, and what the reference returned."""
    golden = load("guidance/conditioned")
    x_t, t = jnp.asarray(np.moveaxis(golden["x_t"], 1, -1)), golden[f"{name.split('/')[0]}/t"]
    return x_t, t, lambda key: np.moveaxis(golden[f"{name}/{key}_f64"], 1, -1)


def network(params, x, t, cond):
    """The network of the reference's run (see its meta.json), with a learned range if params is true."""
    t = jnp.reshape(t, (-1, 1, 1, 1))
    out, var = 0.7 * x + 0.2 * jnp.sin(3 * x + 0.01 * t), jnp.tanh(0.8 * x - 0.5 + 0.001 * t)
    return jnp.concatenate([out, var], axis=-1) if params else out


def cond_log_prob(x, level):
    """Its gradient is the reference's cond_fn, -0.5 x + 0.3 cos(0.01 t)."""
    t = jnp.reshape(level.t, (-1, 1, 1, 1))
    return jnp.sum(-0.25 * x**2 + 0.3 * jnp.cos(0.01 * t) * x)


def unguided(variance, clip):
    denoise = dfn.make_denoiser(network, variance == "LEARNED_RANGE", dfn.parameterizations.epsilon)
    return dfn.clip_x0()(denoise) if clip else denoise


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("variance", ["FIXED_SMALL", "LEARNED_RANGE"])
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("x64")
def test_the_epsilon_form_is_guided_diffusions_condition_score(name, variance, clip):
    x_t, t, answer = recorded(f"{name}/guided/{variance}")
    guided = jax.jit(guidance.classifier(cond_log_prob)(unguided(variance, clip)))
    prediction = guided(x_t, dfn.level_at(GOLDEN[name], t))
    mean = dfn.q_posterior_mean_variance(GOLDEN[name], prediction.x0, x_t, t)[0]
    np.testing.assert_allclose(prediction.x0, answer(f"condition_score_x0_clip{clip}"), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(mean, answer(f"condition_score_mean_clip{clip}"), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("variance", ["FIXED_SMALL", "LEARNED_RANGE"])
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.usefixtures("x64")
def test_the_mean_shift_is_guided_diffusions_condition_mean(name, variance, clip, replayed_noise):
    x_t, times, answer = recorded(f"{name}/guided/{variance}")
    replayed_noise.value = np.zeros((1, 2, 2, 3))
    for i, t in enumerate(times):
        # The last step, to sigma = 0, is x0_hat here; the reference also shifts there if the range is learned.
        if t == 0:
            continue
        levels = dfn.level_at(GOLDEN[name], np.array([t, t - 1]))
        solver = solvers.ancestral(levels, getattr(dfn, variance.lower()))
        guided = guidance.classifier_mean_shift(cond_log_prob, solver)(unguided(variance, clip))
        row = jax.tree.map(lambda a: a[0], solver.rows)
        mean = solver.step(jax.random.key(0), guided, solver.init(x_t[i : i + 1], solver.rows), row)[0].x
        np.testing.assert_allclose(mean[0], answer(f"condition_mean_clip{clip}")[i], rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_the_mean_shift_is_the_epsilon_form_times_coef_x_which_tends_to_1_for_small_steps():
    x, gradient = jnp.ones((1, 3)), lambda x, level: jnp.sum(jnp.sin(x))
    for num, gap in ((10, 1.0), (100, 0.2), (1000, 0.03)):
        levels = grids.linspace(PROCESSES["vp"], num)
        middle = num // 2
        level, cleaner = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (middle, middle + 1))
        denoise = oracles.gaussian(0.2, 0.5)
        shift = jax.jit(lambda transform: transform(denoise)(x, level).eps - denoise(x, level).eps, static_argnums=0)  # noqa: B023
        by_mean = shift(guidance.classifier_mean_shift(gradient, solvers.ancestral(levels)))
        ratio = by_mean / shift(guidance.classifier(gradient))
        np.testing.assert_allclose(ratio, dfn.posterior(level, cleaner)[1], rtol=1e-10)
        assert 0 < 1 - float(ratio[0, 0]) < gap


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.usefixtures("x64")
def test_a_linear_log_probability_shifts_all_samples_by_the_variances(scale, replayed_noise):
    """DDPM with x0_hat = x: x' = (coef_x0 + coef_x) x + s^2 scale g + s z, written out."""
    levels = jax.tree.map(lambda a: a[20:26], grids.linspace(PROCESSES["vp"], 50))
    solver, g = solvers.ancestral(levels, dfn.fixed_large), np.array([[0.5, -1.0]])
    push = lambda x, level: jnp.sum(x * g, axis=1)  # noqa: E731
    identity = lambda x, level, cond=None: dfn.Prediction(x, (1 - level.alpha) / level.sigma * x)  # noqa: E731
    draws = np.random.default_rng(0).standard_normal((6, 1, 2))
    x = wanted = np.array([[0.3, 0.8]])
    for i in range(5):
        noisier, cleaner = levels[i], levels[i + 1]
        coef_x0, coef_x, _ = dfn.posterior(noisier, cleaner)
        var = dfn.transition(noisier, cleaner)[1]
        wanted = (coef_x0 + coef_x) * wanted + var * scale * g + np.sqrt(var) * draws[i]
    guided = guidance.classifier_mean_shift(push, solver, scale)(identity)
    ours = dfn.sample(jax.random.key(0), guided, solver, jnp.asarray(x), scan=replayed_noise.scan(draws)).x0
    np.testing.assert_allclose(ours, wanted, rtol=1e-9)


# Misuse.

LABELLED = guidance.class_log_prob(lambda params, x, t: x, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LABELLED(jnp.ones((2, 3)), dfn.Level(0.8, 0.6, 0.0)), r"needs cond, the class labels"),
        (
            lambda: LABELLED(jnp.ones((2, 3)), dfn.Level(0.8, 0.6, 0.0), jnp.array([0, 3])),
            r"must lie in 0 \.\.\. 2, the classifier's classes; got",
        ),
        (
            lambda: guidance.classifier(lambda x, level: x)(mixture)(jnp.ones((1, 4)), dfn.Level(0.0, 1.0, 0.0)),
            r"at alpha = 0 .* x0 does not follow",
        ),
        (
            lambda: guidance.classifier_mean_shift(log_prob, solvers.ddim(grids.karras(4))),
            r"draws none: use `classifier`",
        ),
        (lambda: guidance.classifier_mean_shift(log_prob, solvers.dpmpp_2m(grids.karras(4))), r"no history"),
        (
            lambda: guidance.classifier_mean_shift(
                lambda x, level: x, solvers.ancestral(grids.karras(4), dfn.learned_range)
            )(mixture)(jnp.ones((1, 4)), dfn.Level(1.0, 80.0, 0.0)),
            r"variance is learned, .* var_frac None",
        ),
    ],
)
def test_misuse_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
