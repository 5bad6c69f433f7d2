"""Few-step losses: they vanish at the exact flow of Gaussian data, and training finds the exact flow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusers_fn as dfn
from diffusers_fn import few_step, grids, losses, oracles, parameterizations, processes, solvers
from diffusers_fn._arrays import expand

# Asymmetric data: each entry of an example [3, 2] has its own mean and standard deviation.
MEAN = np.linspace(-0.6, 0.8, 6).reshape(3, 2)
STD = np.linspace(0.2, 0.9, 6).reshape(3, 2)
ORACLE = oracles.gaussian(MEAN, STD)
CLEAN = dfn.Level(1.0, 0.0, 0.0)
CIRCLE = {"trigonometric": processes.trigonometric(), "cosine": processes.cosine(), "vp": processes.vp()}
FLOW = processes.flow()


def per_example(level, x):
    """A level [B] that combines with x [B, ...]."""
    return jax.tree.map(lambda a: expand(a, x), level)


def flow_end(x, level, end=CLEAN):
    return oracles.gaussian_flow(MEAN[None], STD[None], x, per_example(level, x), end)


def velocity_of(level, x, parameterization):
    prediction = ORACLE(x, level)
    return dfn.target(parameterization, prediction.x0, prediction.eps, level)


def some_net(x, level):
    """An arbitrary smooth function."""
    t = expand(level.t, x)
    return jnp.sin(1.3 * x + t) + jnp.roll(x, 1, axis=1) ** 2 * jnp.cos(2 * t) - 0.3


@pytest.fixture
def points():
    rng = np.random.default_rng(3)
    t = jnp.array([0.05, 0.3, 0.55, 0.8, 0.97])
    return jnp.asarray(1.5 * rng.standard_normal((5, 3, 2))), t, jnp.asarray(rng.standard_normal((5, 3, 2)))


# Consistency.


@pytest.mark.parametrize("name", CIRCLE)
@pytest.mark.usefixtures("x64")
def test_the_tangent_of_a_consistency_function_is_zero(name, points):
    process = CIRCLE[name]
    x, t, _ = map(jnp.float64, points)

    def exact(x, level):
        end = flow_end(x, level)
        return (expand(level.alpha, x) * x - end) / expand(level.sigma, x)

    @jax.jit
    def tangent(error):
        velocity = velocity_of(process(t), x, parameterizations.v)
        return few_step.consistency_tangent(lambda x, level: exact(x, level) + error, process, x, t, velocity)

    F, g = tangent(0.0)
    np.testing.assert_allclose(F, jax.jit(exact)(x, process(t)), rtol=1e-12)
    np.testing.assert_allclose(g, 0.0, atol=1e-12)
    # It is not 0 for every network: one with an error of 0.1 is moved back.
    _, g = tangent(0.1)
    np.testing.assert_allclose(g, expand(-0.1 * process(t).alpha ** 2, x) + 0 * x, rtol=1e-9)


@pytest.mark.parametrize("name", CIRCLE)
@pytest.mark.usefixtures("x64")
def test_the_tangent_is_the_change_of_the_end_along_the_flow(name, points):
    """By central differences in the angle a, for an arbitrary network; its label changes with t."""
    process = CIRCLE[name]
    x, t, velocity = map(jnp.float64, points)
    a = jnp.arctan2(process(t).sigma, process(t).alpha)

    @jax.jit
    def end(h):
        at = process.time(-2 * jnp.log(jnp.tan(a + h)))  # log SNR is -2 log tan(a)
        level = process(at)
        shifted = x + h * velocity
        return dfn.to_prediction(parameterizations.v, some_net(shifted, level), shifted, level).x0

    h = 1e-5
    wanted = expand(process(t).alpha, x) * (end(h) - end(-h)) / (2 * h)
    F, g = jax.jit(lambda: few_step.consistency_tangent(some_net, process, x, t, velocity))()
    np.testing.assert_allclose(F, some_net(x, process(t)), rtol=1e-14)
    np.testing.assert_allclose(g, wanted, rtol=1e-6, atol=3e-8)  # errors: h^2 times third derivatives, rounding / h


@pytest.mark.usefixtures("x64")
def test_with_warmup_zero_it_is_the_denoising_loss(points):
    x, t, velocity = map(jnp.float64, points)
    process = CIRCLE["trigonometric"]

    def loss(warmup, scale):
        net = lambda x, level: some_net(x, level) * scale  # noqa: E731
        F, g = few_step.consistency_tangent(net, process, x, t, velocity, warmup=warmup)
        return few_step.consistency_loss(F, g)

    denoising = lambda scale: losses.mse(some_net(x, process(t)) * scale, velocity)  # noqa: E731
    wanted = process(t).alpha ** 2 * jax.jit(jax.jacfwd(denoising))(1.2)
    slope = jax.jit(jax.jacrev(loss, argnums=1))
    np.testing.assert_allclose(slope(0.0, 1.2), wanted, rtol=1e-10)
    # The value is the mean square of g, and no gradient passes through g.
    F, g = jax.jit(lambda: few_step.consistency_tangent(some_net, process, x, t, velocity))()
    np.testing.assert_allclose(jax.jit(loss)(1.0, 1.0), few_step.root_mean_square(g) ** 2, rtol=1e-12)
    np.testing.assert_allclose(slope(1.0, 1.0), -2 * np.mean(np.asarray(g * F), axis=(1, 2)), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_data_and_teacher_agree_on_average(points):
    """g is affine in the velocity, and the mean velocity of the data given x is that of an exact teacher."""
    x, t, velocity = map(jnp.float64, points)
    tangent = lambda v: few_step.consistency_tangent(some_net, CIRCLE["vp"], x, t, v)[1]  # noqa: E731
    np.testing.assert_allclose(
        0.25 * tangent(velocity) + 0.75 * tangent(x), tangent(0.25 * velocity + 0.75 * x), rtol=1e-12, atol=1e-13
    )


@pytest.mark.usefixtures("x64")
def test_normalised_tangents_have_similar_weight():
    g = jnp.array([[3.0, -4.0], [0.03, -0.04], [300.0, -400.0]])
    slope = jax.jit(jax.grad(lambda F: jnp.sum(few_step.consistency_loss(F, g, scale=0.1))))(jnp.ones((3, 2)))
    rms = np.sqrt(12.5) * np.array([1.0, 0.01, 100.0])
    np.testing.assert_allclose(slope, -np.asarray(g) / (rms + 0.1)[:, None], rtol=1e-12)  # -2 g' / D, D = 2


# Training: in the family of flows of Gaussians, with a mean and a standard deviation, it finds that of the data.

DATA_MEAN, DATA_STD = 0.5, 0.6


def learned(loss, steps=1_000, batch=256):
    """(mean, std) after training from N(0, 1) with new data at every step, averaged over the last 200 steps."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    start = (jnp.array(0.0), jnp.array(1.0))

    @jax.jit
    def run(params):
        def step(carry, key):
            params, state = carry
            data_key, key = jax.random.split(key)
            x0 = DATA_MEAN + DATA_STD * jax.random.normal(data_key, (batch, 1))
            gradient = jax.grad(lambda params: jnp.mean(loss(params, key, x0)))(params)
            updates, state = optimizer.update(gradient, state)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        keys = jax.random.split(jax.random.key(0), steps)
        _, path = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return jax.tree.map(lambda p: jnp.mean(p[-200:]), path)

    return run(start)


def test_consistency_training_finds_the_flow():
    process = CIRCLE["trigonometric"]

    def loss(params, key, x0):
        time_key, noise_key = jax.random.split(key)
        t = 0.02 + 0.98 * jax.random.uniform(time_key, x0.shape[:1])
        eps = jax.random.normal(noise_key, x0.shape)
        level = process(t)

        def net(x, level):
            end = oracles.gaussian_flow(*params, x, per_example(level, x), CLEAN)
            return (expand(level.alpha, x) * x - end) / expand(level.sigma, x)

        velocity = dfn.target(parameterizations.v, x0, eps, level)
        return few_step.consistency_loss(
            *few_step.consistency_tangent(net, process, dfn.add_noise(x0, eps, level), t, velocity)
        )

    # 200 batches of 256 have a standard error of 0.003; the learning rate adds a few times that.
    np.testing.assert_allclose(learned(loss), (DATA_MEAN, DATA_STD), atol=0.02)


def test_mean_flow_training_finds_the_flow():
    def loss(params, key, x0):
        time_key, noise_key = jax.random.split(key)
        t, r = few_step.draw_two_times(time_key, x0.shape[0], losses.uniform_time, share=1.0)
        eps = jax.random.normal(noise_key, x0.shape)

        def net(x, t, r):
            end = oracles.gaussian_flow(*params, x, per_example(FLOW(t), x), per_example(FLOW(r), x))
            return (x - end) / expand(t - r, x)

        u, wanted = few_step.mean_flow_target(net, dfn.add_noise(x0, eps, FLOW(t)), t, r, eps - x0)
        return few_step.adaptive_mse(u, wanted, power=0.0)

    np.testing.assert_allclose(learned(loss), (DATA_MEAN, DATA_STD), atol=0.02)  # as above


# Mean flows.


def average_velocity(x, t, r):
    """u of the Gaussian, with its limit at r = t."""
    level, end = FLOW(t), per_example(FLOW(r), x)
    length = expand(t - r, x)
    chord = (x - flow_end(x, level, end)) / jnp.where(length == 0, 1.0, length)
    return jnp.where(length == 0, velocity_of(level, x, parameterizations.velocity), chord)


@pytest.mark.usefixtures("x64")
def test_the_target_of_an_average_velocity_is_itself(points):
    x, t, _ = map(jnp.float64, points)
    velocity = velocity_of(FLOW(t), x, parameterizations.velocity)

    @jax.jit
    def run(r, error):
        return few_step.mean_flow_target(lambda *a: average_velocity(*a) + error, x, t, r, velocity)

    for r in (0.0 * t, 0.5 * t, 0.95 * t):
        u, target = run(r, 0.0)
        np.testing.assert_allclose(target, u, rtol=1e-11, atol=1e-12)
        off, target = run(r, 0.1)
        np.testing.assert_allclose(off - target, 0.1, rtol=1e-9)
    # At r = t the target is the velocity for every network.
    _, target = few_step.mean_flow_target(lambda x, t, r: x**2, x, t, t, velocity)
    np.testing.assert_array_equal(target, velocity)


@pytest.mark.usefixtures("x64")
def test_the_target_is_the_derivative_along_the_flow(points):
    """target - u is the residual of the identity d/dt ((t - r) u) = v, here by central differences."""
    x, t, velocity = map(jnp.float64, points)
    r = 0.4 * t
    net = lambda x, t, r: some_net(x, dfn.Level(1.0, 0.0, t)) * (1 + expand(r, x)) ** 2  # noqa: E731
    u, target = few_step.mean_flow_target(net, x, t, r, velocity)
    h = 1e-5
    distance = lambda h: expand(t + h - r, x) * net(x + h * velocity, t + h, r)  # noqa: E731
    residual = velocity - (distance(h) - distance(-h)) / (2 * h)
    np.testing.assert_allclose(target - u, residual, atol=1e-8)
    # No gradient passes through the target: the slope of the loss is that of u alone.
    scaled = lambda s: few_step.mean_flow_target(lambda *a: s * net(*a), x, t, r, velocity)  # noqa: E731
    loss = lambda s: few_step.adaptive_mse(*scaled(s), power=0)  # noqa: E731
    np.testing.assert_allclose(jax.jacrev(loss)(1.0), 2 * jnp.sum((u - target) * u, axis=(1, 2)), rtol=1e-10)


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.5], [0.9, 0.7, 0.2, 0.01]])
@pytest.mark.usefixtures("x64")
def test_jumps_of_the_average_velocity_are_exact(times, points):
    x = jnp.float64(points[0])
    num_labels = []

    def apply(params, x, t, cond):
        num_labels.append(len(t))
        return average_velocity(x, *(jnp.full(x.shape[:1], each) for each in t))

    denoise = dfn.make_denoiser(apply, None, parameterizations.velocity)
    levels = FLOW(np.array(times))
    end = dfn.sample(None, denoise, few_step.jump(levels), x).x0
    start = FLOW(np.full(5, times[0]))
    np.testing.assert_allclose(end, flow_end(x, start), rtol=1e-11, atol=1e-12)
    assert set(num_labels) == {2}
    # Intermediate states lie on the flow too.
    half_way = dfn.sample(None, denoise, few_step.jump(levels), x, final_denoise=False).x0
    np.testing.assert_allclose(half_way, flow_end(x, start, FLOW(times[-1])), rtol=1e-11, atol=1e-12)


def test_jump_is_ddim_for_a_denoiser_that_ignores_the_label():
    figures = oracles.check_solver(few_step.jump, order=1)
    assert len(figures) >= 6
    padded = solvers.pad(few_step.jump(grids.uniform_t(FLOW, 3, t_min=0.2)), 5)
    assert [a.shape for a in padded.rows.level.t] == [(5,), (5,)]


def test_guidance_passes_on_the_pair_of_times():
    """Both evaluations of guidance receive both times; guidance is linear in u."""
    apply = lambda params, x, t, cond: x * (t[0] + 10 * t[1]) * cond.astype(x.dtype)[:, None]  # noqa: E731
    denoise = dfn.guidance.classifier_free(3.0, 0)(dfn.make_denoiser(apply, None, parameterizations.velocity))
    x = jnp.ones((4, 2))
    end = dfn.sample(None, dfn.bind(denoise, jnp.full((4,), 2)), few_step.jump(FLOW(np.array([0.5]))), x).x0
    np.testing.assert_allclose(end, 1 - 0.5 * (0.5 * 2 * 3), rtol=1e-6)


def test_the_adaptive_loss_by_hand():
    out, wanted = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [0.1, 0.0]])
    np.testing.assert_allclose(few_step.adaptive_mse(out, wanted, power=1.0, c=0.5), [5 / 5.5, 0.01 / 0.51], rtol=1e-6)
    np.testing.assert_allclose(few_step.adaptive_mse(out, wanted, power=0.0), [5, 0.01], rtol=1e-6)
    slope = jax.grad(lambda out: jnp.sum(few_step.adaptive_mse(out, wanted, power=0.5, c=4.0)))(out)
    np.testing.assert_allclose(slope[0], np.array([2.0, 4.0]) / 3.0, rtol=1e-6)  # no gradient passes through the weight


def test_two_times_have_their_distributions():
    keys = jax.random.split(jax.random.key(1), 4_000)
    draw = jax.jit(lambda keys: few_step.draw_two_times(keys, keys.shape[0], losses.uniform_time, share=0.3))
    t, r = map(np.asarray, draw(keys))
    apart = r < t
    assert np.all(r <= t)
    assert abs(apart.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4_000)
    # The larger and the smaller of two uniform draws have the distributions t^2 and 1 - (1 - r)^2.
    for values, cdf in ((t, lambda v: v**2), (r[apart], lambda v: 1 - (1 - v) ** 2)):
        ranks = (np.arange(values.size) + 0.5) / values.size
        assert np.max(np.abs(cdf(np.sort(values)) - ranks)) < 1.95 / np.sqrt(values.size)  # P = 0.001
    one = draw(keys[7:8])
    assert (float(one[0][0]), float(one[1][0])) == (t[7], r[7])


# Progressive distillation.


@pytest.mark.parametrize("last", [FLOW(0.2), CLEAN], ids=["noisy", "clean"])
@pytest.mark.usefixtures("x64")
def test_one_step_of_the_student_equals_two_of_the_teacher(last, points):
    x = jnp.float64(points[0])
    start, middle = FLOW(0.9), FLOW(0.5)
    wanted = few_step.two_step_target(ORACLE, x, start, middle, last)
    by_student = last.alpha * wanted.x0 + last.sigma * wanted.eps
    plan = jax.tree.map(lambda *a: np.array(a), start, middle, *([last] if last.sigma else []))
    by_teacher = dfn.sample(None, ORACLE, solvers.ddim(plan), x, final_denoise=last.sigma == 0).x0
    np.testing.assert_allclose(by_student, by_teacher, rtol=1e-12)
    np.testing.assert_allclose(dfn.add_noise(wanted.x0, wanted.eps, start), x, rtol=1e-12, atol=1e-13)
    # One level per example.
    each = lambda level: jax.tree.map(lambda a: jnp.full((5,), a), level)  # noqa: E731
    again = few_step.two_step_target(ORACLE, x, each(start), each(middle), each(last))
    np.testing.assert_allclose(again.x0, wanted.x0, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_target_for_a_single_data_point_is_that_point(points):
    """The flow to a single point is straight, so one step equals two. No gradient passes through the target."""
    x = jnp.float64(points[0])
    point = oracles.gaussian(MEAN, 0.0)
    wanted = few_step.two_step_target(point, x, FLOW(0.9), FLOW(0.5), FLOW(0.2))
    np.testing.assert_allclose(wanted.x0, np.broadcast_to(MEAN, x.shape), rtol=1e-12)
    slope = jax.jacrev(lambda m: few_step.two_step_target(oracles.gaussian(m, 0.1), x, FLOW(0.9), FLOW(0.5), CLEAN).x0)
    np.testing.assert_array_equal(slope(0.5), 0.0)


# Wrong input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: few_step.consistency_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), scale=0.0), "scale must be positive"),
        (lambda: few_step.consistency_loss(jnp.ones((2, 3)), jnp.ones((2, 1))), "g must have the shape of F"),
        (lambda: few_step.adaptive_mse(jnp.ones((2, 3)), jnp.ones((2, 3)), c=0.0), "c must be positive; got 0.0"),
        (
            lambda: few_step.draw_two_times(jax.random.key(0), 4, losses.uniform_time, share=1.5),
            r"must lie in \[0, 1\]; got 1.5",
        ),
        (
            lambda: few_step.consistency_tangent(
                some_net, CIRCLE["vp"], jnp.ones((2, 3)), jnp.array([0.2, 0.3]), jnp.ones((2, 1))
            ),
            "velocity must have the shape of x",
        ),
        (lambda: few_step.jump(FLOW(np.array([0.2, 0.5]))), "levels must descend"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
