"""The density of the probability flow against closed forms and published numbers, and under JAX's transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import exact_denoiser, load

import diffusers_fn as dfn
from diffusers_fn import grids, likelihood, oracles, processes
from diffusers_fn.solvers.tableaus import EULER, HEUN, RK4

MEAN, STD = np.linspace(-0.6, 0.8, 6), np.linspace(0.2, 0.9, 6)
PROCESSES = {
    "vp": processes.vp(),
    "sub_vp": processes.sub_vp(),
    "ve": processes.ve(),
    "flow": processes.flow(),
    "cosine": processes.cosine(),
}


def plan(name, num=40):
    """Levels of a process, uniform in t (for ve that is uniform in log sigma)."""
    return grids.uniform_t(PROCESSES[name], num)


def draws(level, mean=MEAN, std=STD, num=3):
    """Noised data of N(mean, std^2) at a level in float32, and their exact log density in float64."""
    spread = np.sqrt((level.alpha * std) ** 2 + level.sigma**2)
    x = (level.alpha * mean + spread * np.random.default_rng(0).standard_normal((num, 6))).astype(np.float32)
    score = (x - level.alpha * mean) / spread
    return jnp.asarray(x), np.sum(-0.5 * score**2 - np.log(spread) - 0.5 * np.log(2 * np.pi), axis=1)


def last(levels):
    return jax.tree.map(lambda a: a[-1], levels)


@functools.cache
def exact_run(mean, std, num_probes=None, prior=True):
    """One compiled log_prob for data of N(mean, std^2)."""
    mean, std = np.array(mean), np.array(std)
    trace = likelihood.exact_trace() if num_probes is None else likelihood.hutchinson(num_probes)

    @jax.jit
    def run(key, levels, x):
        return likelihood.log_prob(
            key, oracles.gaussian(mean, std), levels, x, trace=trace,
            prior=likelihood.gaussian_prior(mean, std) if prior else None,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", PROCESSES)
def test_gaussian_density_is_its_closed_form(name):
    levels = plan(name)
    x, wanted = draws(last(levels))
    found = exact_run(tuple(MEAN), tuple(STD))(None, levels, x)
    assert np.abs(found.log_prob - wanted).max() / 6 < 1e-4  # nats per dimension
    np.testing.assert_array_equal(found.standard_error, 0.0)
    top = jax.tree.map(lambda a: a[0], levels)
    latent = oracles.gaussian_flow(MEAN, STD, np.asarray(x, float), last(levels), top)
    np.testing.assert_allclose(found.latent, latent, atol=2e-4 * float(top.sigma))


@pytest.mark.parametrize("name", PROCESSES)
def test_prior_of_the_samplers_is_within_its_stated_error(name):
    levels = plan(name)
    x, wanted = draws(last(levels))
    found = exact_run(tuple(MEAN), tuple(STD), None, False)(None, levels, x)
    # The exact difference of log N(0, sigma^2) and the log density of the data, at the end of the flow.
    top = jax.tree.map(lambda a: a[0], levels)
    z = np.asarray(oracles.gaussian_flow(MEAN, STD, np.asarray(x, float), last(levels), top))
    var = (top.alpha * STD) ** 2 + top.sigma**2
    gap = 0.5 * np.sum(
        (z - top.alpha * MEAN) ** 2 / var - z**2 / top.sigma**2 + np.log(var / top.sigma**2), axis=1
    )  # fmt: skip
    assert np.abs(found.log_prob - wanted - gap).max() / 6 < 1e-4
    ratio = top.alpha / top.sigma
    assert np.abs(gap).max() <= np.sum(ratio * np.abs(MEAN) * 3 + ratio**2 * (MEAN**2 + 9 * STD**2))


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2), (RK4, 4)])
@pytest.mark.usefixtures("x64")
def test_order_of_convergence(tableau, order):
    # Two components per entry: the divergence varies along the path. On sub-VP, which is neither VP nor alpha = 1.
    weights, means, stds = [0.3, 0.7], [-0.7, 0.5], [0.3, 0.4]
    denoise = oracles.mixture(weights, means, stds, independent=True)
    density = oracles.mixture_log_prob(weights, means, stds, independent=True)
    x = jnp.array([[-0.9, 0.1, 0.6]])

    @jax.jit
    def run(levels):
        found = likelihood.log_prob(
            None, denoise, levels, x, trace=likelihood.exact_trace(), prior=density, tableau=tableau,
            process=PROCESSES["sub_vp"],
        )  # fmt: skip
        return found.log_prob[0]

    sizes = np.array([16, 32, 64]) * (16 if order == 1 else 1)  # Euler needs more levels to show its order
    errors = []
    for num in sizes:
        levels = grids.uniform_log_snr(PROCESSES["sub_vp"], num + 1, t_min=0.05)
        errors.append(abs(float(run(levels)) - float(density(x, last(levels))[0])))
    slopes = -np.diff(np.log(errors)) / np.diff(np.log(sizes))
    assert np.all(slopes > order - 0.25), (errors, slopes)


@pytest.mark.parametrize("independent", [True, False])
def test_mixture_density_is_exact(independent):
    weights, levels = [0.3, 0.7], grids.uniform_log_snr(processes.edm(), 80)
    if independent:
        means, stds = [-0.7, 0.5], [0.25, 0.4]
    else:
        means, stds = np.array([[-0.7, 0.2, 0.0], [0.5, -0.3, 0.4]]), np.full((2, 3), 0.25)
    denoise = oracles.mixture(weights, means, stds, independent=independent)
    density = oracles.mixture_log_prob(weights, means, stds, independent=independent)
    x = jnp.array([[-0.6, 0.1, 0.05], [0.4, -0.2, 0.5], [0.0, 0.0, 0.0]])
    run = jax.jit(
        lambda levels, x: (
            likelihood.log_prob(None, denoise, levels, x, trace=likelihood.exact_trace(), prior=density).log_prob
        )
    )
    wanted = density(x, jax.tree.map(jnp.float32, last(levels)))
    np.testing.assert_allclose(run(levels, x), wanted, atol=3 * 1e-4)


def rotated(x):
    """An orthogonal matrix of six entries, which makes the Jacobian of a diagonal denoiser full."""
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0].astype(np.float32)
    return jnp.asarray(basis, x.dtype)


def full_denoiser(x, level, cond=None):
    """The exact denoiser of data R y with y ~ N(0, STD^2) and R orthogonal."""
    basis = rotated(x)
    inner = oracles.gaussian(0.0, STD)(jnp.matmul(x, basis, precision="highest"), level)
    back = lambda y: jnp.matmul(y, basis.T, precision="highest")  # noqa: E731
    return dfn.Prediction(back(inner.x0), back(inner.eps))


@pytest.mark.parametrize("noise", [jax.random.rademacher, jax.random.normal])
def test_hutchinson_is_within_its_standard_error(noise):
    levels = plan("flow", 20)
    y, wanted = draws(last(levels), mean=np.zeros(6), num=4)
    x = jnp.matmul(y, rotated(y).T, precision="highest")
    found = jax.jit(
        lambda key: likelihood.log_prob(
            key, full_denoiser, levels, x, trace=likelihood.hutchinson(64, noise, at_once=16)
        )
    )(jax.random.key(0))
    assert np.all(found.standard_error > 0.01)  # the Jacobian is not diagonal
    assert np.all(np.abs(found.log_prob - wanted) < 3 * np.asarray(found.standard_error) + 6e-4)


def test_one_probe_of_signs_is_exact_for_a_diagonal_jacobian_and_has_no_standard_error():
    levels = plan("vp")
    x, wanted = draws(last(levels))
    found = exact_run(tuple(MEAN), tuple(STD), 1)(jax.random.key(5), levels, x)
    assert np.abs(found.log_prob - wanted).max() / 6 < 1e-4
    assert np.all(np.isnan(found.standard_error))


# Published numbers.


@pytest.mark.parametrize(
    ("name", "dist"), [("vp", "gmm"), ("subvp", "gmm"), ("ve", "gauss"), ("ve", "gmm")], ids="-".join
)
@pytest.mark.usefixtures("x64")
def test_likelihoods_are_those_of_score_sde(name, dist):
    golden = load("orig_score_sde/likelihood")
    process = PROCESSES[{"subvp": "sub_vp"}.get(name, name)]
    # The reference stores latents, not data: the exact flow of the Gaussian inverts them, to 1e-8.
    data, ve = load("traj/analytic"), PROCESSES["ve"]
    x = oracles.gaussian_flow(data["mu"], data["sd"], golden["likelihood/ve/gauss/z"], ve(1.0), ve(1e-5))
    t = np.concatenate([np.linspace(1, 0.02, 150), np.geomspace(0.02, 1e-5, 80)[1:]])
    unit = lambda x, level: likelihood.standard_prior(x, dfn.Level(0.0, 50.0 if name == "ve" else 1.0, 0.0))  # noqa: E731
    found = jax.jit(
        lambda x: likelihood.log_prob(
            None, exact_denoiser(dist), process(t), x, trace=likelihood.exact_trace(), prior=unit, process=process
        )
    )(jnp.asarray(x))
    # The reference tiles [-1, 1] with bins of width 1 / 128, the offset of 257 levels here, and uses RK45 at 1e-5.
    bits = likelihood.bits_per_dim(found.log_prob, x.shape[1:], num_levels=257)
    np.testing.assert_allclose(bits, golden[f"likelihood/{name}/{dist}/bpd"], rtol=2e-6)
    z = golden[f"likelihood/{name}/{dist}/z"]
    np.testing.assert_allclose(found.latent, z, atol=2e-5 * np.abs(z).max())


# Dequantisation.


def test_uniform_dequantisation_fills_the_bins():
    levels = np.arange(17, dtype=np.uint8).reshape(1, 17).repeat(3000, 0)
    x = likelihood.uniform_dequantize(jax.random.key(0), jnp.asarray(levels), num_levels=17)
    inside = np.asarray((x + 1) * 8 + 0.5)  # back to bins [v, v + 1)
    np.testing.assert_array_equal(np.floor(inside).astype(int), levels)
    fraction = inside - levels
    assert abs(fraction.mean() - 0.5) < 4 / np.sqrt(12 * fraction.size)
    assert abs(fraction.var() - 1 / 12) < 1e-3
    scaled = jnp.asarray(levels / 8.0 - 1.0, jnp.float32)
    np.testing.assert_allclose(likelihood.uniform_dequantize(jax.random.key(0), scaled, num_levels=17), x, atol=1e-6)


def test_offset_for_pixels_of_eight_bits():
    bits = likelihood.bits_per_dim(jnp.array([-64 * np.log(2.0)]), (8, 8), num_levels=256)
    np.testing.assert_allclose(bits, 1 + np.log2(127.5), rtol=1e-6)


def entropy(prob):
    """The entropy in bits of P(v = 1) = prob, P(v = -1) = 1 - prob."""
    return -(prob * np.log2(prob) + (1 - prob) * np.log2(1 - prob))


@jax.jit
def coin_bits(level):
    """The bound [40,000] in bits, with the exact density at a level, for flips of a coin with probability 0.8."""
    v = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.8, (40_000, 1)), 1.0, -1.0)
    x, correction = likelihood.noise_dequantize(jax.random.key(1), v, level, num_levels=2)
    density = oracles.mixture_log_prob([0.2, 0.8], [-1.0, 1.0], [0.0, 0.0])
    return likelihood.bits_per_dim(density(x, level) + correction, (1,))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.8])
def test_noise_dequantisation_bounds_a_coin(sigma):
    """With the exact density the bound equals the entropy if the two grey levels do not overlap, else exceeds it."""
    bits = np.asarray(coin_bits(dfn.Level(0.9, sigma, 0.0)))
    gap, error = bits.mean() - entropy(0.8), bits.std() / np.sqrt(bits.size)
    assert gap > -4 * error
    if sigma < 0.1:
        assert gap < 4 * error
    if sigma > 0.5:
        assert gap > 4 * error


# Transforms of JAX.


def test_with_a_key_per_example_results_do_not_depend_on_the_batch():
    levels = plan("flow", 6)
    x, _ = draws(last(levels), num=4)
    keys = jax.random.split(jax.random.key(1), 4)
    trace = likelihood.hutchinson(2, jax.random.normal)
    run = jax.jit(lambda keys, x: likelihood.log_prob(keys, full_denoiser, levels, x, trace=trace))
    together, part = run(keys, x), run(keys[2:], x[2:])
    for name in ("log_prob", "standard_error", "latent"):
        np.testing.assert_allclose(getattr(together, name)[2:], getattr(part, name), rtol=2e-5, atol=1e-5)
    # One example at a time under vmap, and sharded over devices.
    mapped = jax.jit(jax.vmap(lambda key, x: run(key[None], x[None])))(keys, x)
    np.testing.assert_allclose(mapped.log_prob[:, 0], together.log_prob, rtol=2e-5, atol=1e-5)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    spread = jax.device_put((keys, x), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    np.testing.assert_allclose(run(*spread).log_prob, together.log_prob, rtol=2e-5, atol=1e-5)


def test_gradients_pass_through_the_density():
    """For N(m, s^2) at alpha = 1: d log p / dx = (m - x) / var, d log p / dm = (x - m) / var, var = s^2 + sigma^2."""
    levels = grids.uniform_log_snr(processes.ve(), 40)
    x = jnp.array([[0.3, -0.4]])

    def total(x, mean):
        return likelihood.log_prob(
            None, oracles.gaussian(mean, 0.5), levels, x,
            trace=likelihood.exact_trace(), prior=likelihood.gaussian_prior(mean, 0.5),
        ).log_prob.sum()  # fmt: skip

    by_x, by_mean = jax.jit(jax.grad(total, (0, 1)))(x, jnp.float32(0.1))
    var = 0.25 + 1e-4
    np.testing.assert_allclose(by_x, (0.1 - x) / var, atol=2e-3)
    np.testing.assert_allclose(by_mean, np.sum(x - 0.1) / var, atol=4e-3)


def test_gradients_with_probes_of_a_network_are_finite():
    levels, x = plan("vp", 5), jnp.linspace(-1, 1, 12).reshape(2, 6)

    def apply(params, x, t, cond):
        return jnp.tanh(jnp.matmul(x, params) + 0.1 * t)

    def total(params):
        denoise = dfn.make_denoiser(apply, params, dfn.parameterizations.epsilon)
        found = likelihood.log_prob(jax.random.key(0), denoise, levels, x, trace=likelihood.hutchinson(2))
        return found.log_prob.sum() + 0.0 * found.standard_error.sum()

    gradient = jax.jit(jax.grad(total))(0.1 * jax.random.normal(jax.random.key(1), (6, 6)))
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() > 0


def test_new_keys_data_and_levels_compile_nothing():
    run = exact_run(tuple(MEAN), tuple(STD), 1)
    levels = plan("vp")
    x, _ = draws(last(levels))
    run(jax.random.key(0), levels, x)
    before = run._cache_size()
    run(jax.random.key(1), plan("ve"), x + 1)
    assert run._cache_size() == before


def test_the_exact_trace_does_not_depend_on_at_once():
    levels = plan("flow", 5)
    x, _ = draws(last(levels))

    @functools.partial(jax.jit, static_argnums=0)
    def run(at_once):
        return likelihood.log_prob(None, full_denoiser, levels, x, trace=likelihood.exact_trace(at_once)).log_prob

    at_once, few = run(None), run(4)
    np.testing.assert_allclose(few, at_once, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, x: run(None, x), r"pass a key \(jax.random.key\(seed\)\), or use exact_trace"),
        (lambda run, x: run(jax.random.key(0), x, plan("vp", 1)), "at least 2 levels"),
        (lambda run, x: run(jax.random.key(0), jnp.zeros((2, 3), int)), "x must be an array of floating type"),
        (lambda run, x: likelihood.hutchinson(0), "num_probes must be an integer of at least 1; got 0"),
        (lambda run, x: likelihood.exact_trace(0), "at_once must be None or an integer of at least 1; got 0"),
        (lambda run, x: likelihood.uniform_dequantize(jax.random.key(0), x, 1), "at least 2; got 1"),
        (
            lambda run, x: likelihood.log_prob(
                jax.random.key(0),
                dfn.make_denoiser(lambda params, x, t, cond: x, None, dfn.parameterizations.epsilon),
                plan("flow"),
                x,
            ),
            "does not determine x0 at alpha = 0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    def run(key, x, levels=plan("flow")):  # noqa: B008
        return likelihood.log_prob(key, oracles.gaussian(0.0, 1.0), levels, x)

    with pytest.raises(ValueError, match=message):
        call(run, jnp.zeros((2, 3)))
