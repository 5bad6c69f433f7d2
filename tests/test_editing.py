"""Editing: closed forms for Gaussian data, kept regions to the bit, great circles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, solvers

LEVELS = grids.karras(60, 0.01, 20.0)
DENOISE = oracles.gaussian(0.3, 0.5)


@pytest.mark.parametrize(("strength", "visited"), [(1.0, 60), (0.5, 30), (0.58, 34), (0.02, 1)])
def test_img2img_of_a_gaussian_is_its_closed_form(strength, visited, replayed_noise):
    """x = x0 + sigma z, then the flow, along which the standard score is kept."""
    x0, z = np.array([[0.9, -0.4], [0.1, 0.3]]), np.array([[0.5, -1.2], [2.0, 0.1]])
    replayed_noise.value = z
    make, start = solvers.dpmpp_2m if visited > 1 else solvers.ddim, jnp.asarray(x0, jnp.float32)
    emit = lambda step: step.level.sigma  # noqa: E731
    result = dfn.img2img(jax.random.key(0), DENOISE, make, LEVELS, start, strength=strength, emit=emit)
    sigma = LEVELS.sigma[60 - visited]
    assert result.trace.shape == (visited,)
    np.testing.assert_allclose(result.trace[0], sigma, rtol=1e-6)
    wanted = 0.3 + 0.5 * (x0 + sigma * z - 0.3) / np.hypot(0.5, sigma)
    np.testing.assert_allclose(result.x0, wanted, atol=0.02)


def test_img2img_with_one_key_per_example():
    keys, x0 = jax.random.split(jax.random.key(0), 3), jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    make = lambda levels: solvers.ddim(levels, 1.0)  # noqa: E731
    vary = jax.jit(lambda keys, x0: dfn.img2img(keys, DENOISE, make, LEVELS, x0, strength=0.2).x0)
    np.testing.assert_array_equal(vary(keys, x0), vary(keys[::-1], x0[::-1])[::-1])


@pytest.mark.parametrize("make", [solvers.ddim, solvers.dpmpp_2m, solvers.heun, solvers.ancestral])
def test_inpainting_keeps_the_known_and_paints_the_rest(make):
    """The coordinates of this Gaussian are independent: the painted ones are as without inpainting."""
    x = 20.0 * jax.random.normal(jax.random.key(1), (2000, 2))
    known, keep = jnp.full((2000, 2), 0.7), jnp.array([[1.0, 0.0]])
    painted = jax.jit(lambda x: dfn.inpaint(jax.random.key(2), DENOISE, make(LEVELS), x, known, keep).x0)(x)
    np.testing.assert_array_equal(painted[:, 0], known[:, 0])
    if not make(LEVELS).stochastic:
        alone = jax.jit(lambda x: dfn.sample(None, DENOISE, make(LEVELS), x).x0)(x)
        np.testing.assert_allclose(painted[:, 1], alone[:, 1], rtol=1e-6, atol=1e-6)
    # Four standard errors and the step's bias.
    assert abs(float(painted[:, 1].mean()) - 0.3) < 4 * 0.5 / np.sqrt(2000)
    assert float(painted[:, 1].std()) == pytest.approx(0.5, rel=4 / np.sqrt(4000) + 0.05)


def test_repaint_harmonises_the_painted_with_the_known():
    """Two clusters on the diagonal: given the first coordinate, the second is N(1, .3^2) up to 1.5e-5.

    Replacement alone often paints the other cluster; returning to noisier levels corrects that, the more passes the
    better.
    """
    size, levels = 2000, grids.karras(24, 0.02, 20.0)
    denoise = oracles.mixture([0.5, 0.5], np.array([[-1.0, -1.0], [1.0, 1.0]]), np.full((2, 2), 0.3))
    x = 20.0 * jax.random.normal(jax.random.key(1), (size, 2))
    known, keep = jnp.full((size, 2), 0.5), jnp.array([[1.0, 0.0]])
    means = []
    for passes in (1, 5, 16):
        segments = [(i, i + 1, passes - 1) for i in range(22)] if passes > 1 else []
        solver = solvers.with_restarts(solvers.ancestral, levels, segments)
        inpaint = jax.jit(lambda x: dfn.inpaint(jax.random.key(2), denoise, solver, x, known, keep).x0)  # noqa: B023
        painted = inpaint(x)
        np.testing.assert_array_equal(painted[:, 0], 0.5)
        means.append(float(painted[:, 1].mean()))
    assert means[0] < 0.6 < 0.8 < means[1] < means[2]
    assert means[2] == pytest.approx(1.0, abs=0.02)
    assert float(painted[:, 1].std()) == pytest.approx(0.3, abs=0.03)


def test_the_known_region_follows_its_own_noised_path(replayed_noise):
    """With a deterministic solver the kept part of the state is alpha known + sigma z, with one z for all levels."""
    levels = dfn.Level(np.array([0.2, 0.6, 0.9]), np.array([0.98, 0.8, 0.4]), np.zeros(3))
    known, keep = jnp.array([[0.7, 9.0]]), jnp.array([[1.0, 0.0]])
    replayed_noise.value = np.array([[1.3, -0.2]])
    run = dfn.inpaint(
        jax.random.key(0), DENOISE, solvers.ddim(levels), jnp.ones((1, 2)), known, keep, emit=lambda step: step.x
    )
    np.testing.assert_allclose(run.trace[:, 0, 0], levels.alpha * 0.7 + levels.sigma * 1.3, rtol=1e-5)


@pytest.mark.parametrize(
    "prepared", [lambda solver: solver, lambda solver: solvers.pad(solver, 15)], ids=["", "padded"]
)
def test_the_known_region_is_as_noisy_as_its_level_with_churn_too(prepared):
    """With known = 0 the state is sigma z, where each churn adds noise."""
    solver = prepared(solvers.euler_churn(grids.karras(10, 0.01, 20.0), 3.0))
    x = jnp.zeros((1, 20000))
    noisy = lambda step: jnp.std(step.x)  # noqa: E731
    sample = jax.jit(lambda key: dfn.inpaint(key, DENOISE, solver, x, x, jnp.ones((1, 1)), emit=noisy))
    own = slice(-10, -1)  # without padding, and the final denoise
    np.testing.assert_allclose(sample(jax.random.key(0)).trace[own], solver.rows.level.sigma[own], rtol=0.03)


def test_slerp_keeps_the_norm_and_divides_the_angle():
    start = jnp.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    end = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    slerp = jax.jit(dfn.slerp)
    for fraction in (0.0, 0.25, 0.5, 1.0):
        point = np.asarray(slerp(start, end, fraction))
        np.testing.assert_allclose(np.linalg.norm(point, axis=1), [2.0, 3.0], rtol=1e-6)
        angle = np.arccos(np.clip(np.sum(point * start, axis=1) / np.array([4.0, 9.0]), -1, 1))
        np.testing.assert_allclose(angle, fraction * np.pi / 2, atol=5e-4)
    np.testing.assert_allclose(slerp(start, 2.0 * start, 0.5), 1.5 * start, rtol=1e-6)
    each = slerp(start, end, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(each, jnp.stack([start[0], end[1]]), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda a: slerp(a, start, 0.3).sum()))(start)  # parallel: no NaN
    assert np.all(np.isfinite(gradient))


ONE = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dfn.img2img(jax.random.key(0), DENOISE, solvers.ddim, LEVELS, ONE, strength=1.2), r"\(0, 1\]"),
        (
            lambda: dfn.img2img(jax.random.key(0), DENOISE, solvers.ddim, LEVELS, ONE, strength=0.01),
            "0.01 is too small for this plan of 60 levels .*: use 0.0167 or more",
        ),
        (lambda: dfn.inpaint(jax.random.key(0), DENOISE, solvers.ddim(LEVELS), ONE, ONE[:1], ONE), "shape of x"),
        (lambda: dfn.replace_x0(ONE, ONE[0])(DENOISE)(ONE, dfn.Level(1.0, 1.0, 0.0)), r"keep must have shape \(2, 3\)"),
        (lambda: dfn.slerp(ONE, ONE[:1], 0.5), "end must have the shape of start"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
