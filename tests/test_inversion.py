"""Inversion: round trips whose error falls with the solver's order, fixed points, and EDICT's exact round trip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, processes, solvers

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
DENOISE = oracles.mixture([0.3, 0.7], [-0.8, 0.6], [0.4, 0.5])
GRIDS = {"karras": lambda n: grids.karras(n, 0.02, 20.0), "vp": lambda n: grids.uniform_log_snr(LINEAR, n)}
SIZES = np.array([50, 100])


@pytest.fixture(scope="module")
def x0():
    return np.array([[0.4], [-1.1], [1.3]])


def error(x, x0):
    return float(jnp.sqrt(jnp.mean((x - x0) ** 2)))


def order(errors, sizes=SIZES):
    """Returns the orders of convergence, one per pair of neighbouring sizes."""
    return -np.diff(np.log(errors)) / np.diff(np.log(sizes))


def round_trip(x0, solver_of, levels, *, denoise=DENOISE, invert=dfn.invert, **options):
    """Returns x0 after inversion and sampling, compiled as one program."""

    @jax.jit
    def there_and_back(x0):
        x = invert(denoise, levels, x0, **options)
        return dfn.sample(None, denoise, solver_of(levels), x).x0

    return there_and_back(jnp.asarray(x0))


# The order of the round trip. For heun it is one higher: the leading errors of a step and of its inverse cancel.
ROUND_TRIPS = {
    "ddim": (solvers.ddim, 1),
    "dpmpp_2m": (solvers.dpmpp_2m, 2),
    "heun": (solvers.heun, 3),
    "unipc": (lambda levels: solvers.unipc(levels, 2), 3),
}


@pytest.mark.parametrize("levels_of", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.usefixtures("x64")
def test_the_round_trip_falls_with_the_order_of_the_solver(name, levels_of, x0):
    make, wanted = ROUND_TRIPS[name]
    errors = [error(round_trip(x0, make, levels_of(n), make=make, refine=8), x0) for n in SIZES]
    assert order(errors) == pytest.approx(wanted, abs=0.15)


@pytest.mark.parametrize("levels_of", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("evaluations", [1, 2, 3])
@pytest.mark.usefixtures("x64")
def test_each_evaluation_per_step_adds_an_order(evaluations, levels_of, x0):
    options = {"invert": dfn.invert_implicit, "evaluations": evaluations}
    errors = [error(round_trip(x0, solvers.ddim, levels_of(n), **options), x0) for n in SIZES]
    assert order(errors) == pytest.approx(evaluations + 1, abs=0.15)


@pytest.mark.parametrize(
    "levels_of",
    [
        lambda n: grids.linspace(LINEAR, n),
        lambda n: grids.uniform_log_snr(LINEAR, n),
        lambda n: grids.karras(n, 0.02, 80.0),
    ],
    ids=["uniform", "log_snr", "karras"],
)
@pytest.mark.usefixtures("x64")
def test_inversion_and_sampling_return_with_first_order(levels_of):
    # Data far outside [-1, 1]: nothing is clipped.
    x0, sizes = jnp.array([[2.6, 3.1], [3.9, 2.9]]), np.array([60, 120, 240])
    back = [round_trip(x0, solvers.ddim, levels_of(n), denoise=oracles.gaussian(3.0, 0.5)) for n in sizes]
    errors = [float(jnp.abs(x - x0).max()) for x in back]
    np.testing.assert_allclose(order(errors, sizes), 1.0, atol=0.15)


@pytest.mark.usefixtures("x64")
def test_inversion_follows_the_exact_flow():
    """The probability flow of Gaussian data is linear: x_T - alpha mean = (x0 - mean) std(x_T) / std(x0)."""
    x0 = jnp.array([[0.2, 1.3], [-0.4, 0.5]])
    errors = []
    for n in (100, 200):
        levels = grids.karras(n, 0.002, 80.0)
        wanted = 0.3 + (x0 - 0.3) * np.sqrt(0.25 + 80.0**2) / 0.5
        errors.append(float(jnp.abs(dfn.invert(oracles.gaussian(0.3, 0.5), levels, x0) - wanted).max()))
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 0.1 * 80


def test_inversion_of_one_level_is_one_step():
    level, denoise = dfn.Level(np.array([0.8]), np.array([0.6]), np.array([5.0])), oracles.gaussian(0.3, 0.5)
    x0 = jnp.array([[0.4, -0.2]])
    x = dfn.invert(denoise, level, x0)
    eps = denoise(0.8 * x0, dfn.Level(0.8, 0.6, 5.0)).eps
    np.testing.assert_allclose(x, 0.8 * x0 + 0.6 * eps, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_inversion_by_heun_finds_the_exact_noise():
    """The probability flow of N(.3, .5^2) from sigma 0.002 to 80: the standard score is kept."""
    levels, x0 = grids.karras(200), jnp.array([[0.2, 1.3], [-0.4, 0.5]])
    last = levels.sigma[-1]
    # x0 is x0_hat at the last level: (x0 - mean) / std^2 = (x - mean) / var.
    x_last = 0.3 + (x0 - 0.3) * (0.25 + last**2) / 0.25
    wanted = 0.3 + (x_last - 0.3) * np.sqrt(0.25 + 80.0**2) / np.sqrt(0.25 + last**2)
    x = dfn.invert(oracles.gaussian(0.3, 0.5), levels, x0, make=solvers.heun, refine=4)
    np.testing.assert_allclose(x, wanted, rtol=1e-3)


@pytest.mark.parametrize(
    "process",
    [processes.edm(), processes.vp(), processes.labelled(processes.flow(), lambda t: 1000 * t)],
    ids=["edm", "vp", "flow"],
)
@pytest.mark.usefixtures("x64")
def test_inner_stages_of_an_inversion_have_the_right_labels(process):
    """A network that reads its level from the label alone: the round trip keeps at least the order of the solver."""
    labels = np.array(process(process.time(np.linspace(-7.0, 8.0, 20_001))).t)
    ascending = np.argsort(labels)

    def denoise(x, level, cond=None):
        log_snr = jnp.interp(level.t, labels[ascending], np.linspace(-7.0, 8.0, 20_001)[ascending])
        sigma = jnp.sqrt(level.alpha**2 + level.sigma**2) * jnp.sqrt(jax.nn.sigmoid(-log_snr))
        alpha = jnp.sqrt(level.alpha**2 + level.sigma**2) * jnp.sqrt(jax.nn.sigmoid(log_snr))
        return DENOISE(x, dfn.Level(alpha, sigma, level.t))

    up = lambda levels: solvers.dpm2(levels, processes.exchanged(process))  # noqa: E731
    down = lambda levels: solvers.dpm2(levels, process)  # noqa: E731
    x0, errors = jnp.array([[0.4], [-1.1], [1.3]]), []
    for n in SIZES:
        levels = processes.at_log_snr(process, np.linspace(-5.0, 6.0, n))
        errors.append(error(round_trip(x0, down, levels, denoise=denoise, make=up, refine=8), x0))
    assert order(errors) > 1.85
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("levels_of", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("size", [10, 50, 100])
def test_the_coupled_paths_return_to_rounding(size, levels_of):
    """In float32, for every network: also for one that is not a denoiser."""
    network = dfn.make_denoiser(lambda params, x, t, cond: 0.5 * jnp.tanh(x), None, dfn.parameterizations.epsilon)
    x0 = jax.random.uniform(jax.random.key(0), (16, 4), minval=-1.0, maxval=1.0)
    levels = levels_of(size)
    for denoise in (DENOISE, network):
        # Two programs, as of a user who edits: the state leaves the one and enters the other.
        state = jax.jit(lambda x0: dfn.invert_coupled(denoise, levels, x0))(x0)  # noqa: B023
        back = jax.jit(lambda state: dfn.sample_coupled(denoise, levels, state))(state)  # noqa: B023
        # Units in the last place of numbers up to 1 are 1.2e-7.
        np.testing.assert_allclose(back, x0, atol=4e-6)
        assert error(round_trip(x0, solvers.ddim, levels, denoise=denoise), x0) > 1e-2


@pytest.mark.usefixtures("x64")
def test_the_coupled_paths_follow_the_flow():
    """Both are DDIM's to first order: from noise to where the exact flow of a Gaussian leads."""
    x = jnp.array([[1.0, -0.7]]) * np.hypot(20.0, 0.5) + 0.3
    errors = []
    for n in (100, 200):
        x0 = dfn.sample_coupled(oracles.gaussian(0.3, 0.5), GRIDS["karras"](n), dfn.couple(x))
        errors.append(error(x0, 0.3 + 0.5 * np.array([[1.0, -0.7]])))
    assert errors[1] < 0.6 * errors[0] < 0.06


@pytest.mark.usefixtures("x64")
def test_coupled_steps_are_the_papers():
    """Eq. 14 of the paper in x and y, written out, at alpha = 1."""
    levels = dfn.Level(np.ones(2), np.array([3.0, 0.8]), np.zeros(2))
    start = jnp.array([[1.0, -2.7]])

    @jax.jit
    def published(x, y):
        for sigma, next_sigma in ((3.0, 0.8), (0.8, 0.0)):
            x = x + (next_sigma - sigma) * DENOISE(y, dfn.Level(1.0, sigma, 0.0)).eps
            y = y + (next_sigma - sigma) * DENOISE(x, dfn.Level(1.0, sigma, 0.0)).eps
            x = 0.9 * x + 0.1 * y
            y = 0.9 * y + 0.1 * x
        return x

    x = published(start, start)
    np.testing.assert_allclose(dfn.sample_coupled(DENOISE, levels, dfn.couple(start), mixing=0.9), x, rtol=1e-12)
    scaled_levels = dfn.Level(np.array([0.3, 0.7]), np.array([0.9, 0.56]), np.zeros(2))  # the same sigma / alpha
    scaled = dfn.sample_coupled(DENOISE, scaled_levels, dfn.couple(0.3 * start, 0.3), mixing=0.9)
    np.testing.assert_allclose(scaled, x, rtol=1e-12)


def test_inversion_may_end_at_pure_noise():
    """alpha = 0 at the first level: the last step upwards leads to eps_hat."""
    schedule = dfn.make_noise_schedule(dfn.zero_terminal_snr(dfn.linear_betas(1000)))
    x0 = jnp.array([[0.2, 1.3]])
    for make, size, tolerance in ((solvers.ddim, 500, 2e-2), (solvers.dpmpp_2m, 100, 1e-2)):
        levels = grids.trailing(schedule, size)
        assert levels.alpha[0] == 0.0
        x = dfn.invert(oracles.gaussian(0.3, 0.5), levels, x0, make=make, refine=2)
        np.testing.assert_allclose(x, (x0 - 0.3) / 0.5, atol=2 * tolerance)
        back = dfn.sample(None, oracles.gaussian(0.3, 0.5), make(levels), x).x0
        np.testing.assert_allclose(back, x0, atol=tolerance)


def test_the_mixing_and_the_levels_may_be_traced(x0):
    x0, traces = jnp.asarray(x0, jnp.float32), []

    @jax.jit
    def round_trip(levels, mixing, x0):
        traces.append(None)
        state = dfn.invert_coupled(DENOISE, levels, x0, mixing=mixing)
        implicit = dfn.invert_implicit(DENOISE, levels, x0, evaluations=2)
        return dfn.sample_coupled(DENOISE, levels, state, mixing=mixing), implicit

    for levels in (GRIDS["karras"](10), GRIDS["vp"](10)):
        for mixing in (0.9, 0.95):
            back, implicit = round_trip(jax.tree.map(jnp.asarray, levels), mixing, x0)
            np.testing.assert_allclose(back, x0, atol=4e-6)
            host = dfn.invert_implicit(DENOISE, levels, x0, evaluations=2)
            np.testing.assert_allclose(implicit, host, rtol=1e-4, atol=1e-4)
    assert len(traces) == 1


ONE = jnp.ones((2, 3))
PLAN = GRIDS["karras"](5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dfn.invert(DENOISE, PLAN, ONE, refine=-1), "refine must be an integer of at least 0; got -1"),
        (lambda: dfn.invert(DENOISE, PLAN, ONE, make=solvers.ancestral), "draws noise: use eta = 0"),
        (
            lambda: dfn.invert_implicit(DENOISE, PLAN, ONE, evaluations=0),
            "evaluations must be an integer of at least 1",
        ),
        (lambda: dfn.invert_coupled(DENOISE, PLAN, ONE, mixing=0.0), r"mixing must be one number in \(0, 1\]; got 0.0"),
        (lambda: dfn.sample_coupled(DENOISE, PLAN, dfn.Coupled(ONE, ONE[:1], ONE, ONE)), "v must have the shape of u"),
        (lambda: dfn.invert_coupled(DENOISE, PLAN, jnp.ones((2, 3), jnp.int32)), "floating type"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pure_noise_for_some_examples_alone_is_refused():
    flow = processes.flow()
    both = jax.tree.map(lambda *a: np.stack(a, 1), *(flow(np.linspace(t, 0.05, 4)) for t in (1.0, 0.9)))
    with pytest.raises(ValueError, match=r"pure noise \(alpha = 0\) for every example or for none"):
        dfn.invert(DENOISE, both, jnp.ones((2, 1)))
