"""Plans that go back up: the joined table does what its parts do one after the other, with noise in between."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import START, edm, flow, mixture, states, vp

import diffusers_fn as dfn
from diffusers_fn import grids, oracles, processes, solvers
from diffusers_fn.solvers import with_restarts

SEGMENTS = [(1, 4, 2), (2, 6, 1), (4, 8, 1)]
MAKERS = {
    "ddim": solvers.ddim,
    "ddim_eta": lambda levels: solvers.ddim(levels, 0.7),
    "ancestral": solvers.ancestral,
    "heun": solvers.heun,
    "dpmpp_2m": solvers.dpmpp_2m,
    "deis_2": lambda levels: solvers.deis(levels, 2),
    "unipc_2": lambda levels: solvers.unipc(levels, 2),
    "dpmpp_sde": solvers.dpmpp_sde,
    "dpm_solver": solvers.dpm_solver,
    "heun_churn": lambda levels: solvers.heun_churn(levels, 2.0),
    "churn_on_vp": lambda levels: solvers.heun_churn(levels, 2.0, process=processes.vp()),
}


def part(levels, first, last):
    return jax.tree.map(lambda a: a[first : last + 1], levels)


def by_hand(make, levels, segments, x, draw):
    """The parts run alone, each to its last level, where the joined table carries no denoise."""
    at = 0

    def down(levels, x, final_denoise):
        solver = make(levels)
        num = solver.rows.x.shape[0] - (not final_denoise)
        rows = jax.tree.map(lambda a: a[:num], solver.rows)
        noise, churn = draw(num)
        x = states(dataclasses.replace(solver, rows=rows), mixture, x, noise, churn)[-1]
        # Where the final denoise would be churned, x is scaled to that level already.
        return x if final_denoise else x * levels.alpha[-1] / solver.rows.level.alpha[-1]

    for first, last, times in segments:
        if last > at:
            x = down(part(levels, at, last), x, False)
        for k in range(times):
            ratio, var = dfn.levels.transition(part(levels, first, first), part(levels, last, last))
            x = ratio[0] * x + np.sqrt(var[0]) * draw.up(first)
            at_end = last == levels.sigma.size - 1 and (first, last, times) == segments[-1] and k == times - 1
            x = down(part(levels, first, last), x, at_end)
        at = last
    return x if at == levels.sigma.size - 1 else down(part(levels, at, levels.sigma.size - 1), x, True)


class Draws:
    """Recorded noise; `up` is that of going up, which a row's churn joins with its own."""

    def __init__(self):
        self.rng, self.noise, self.churn = np.random.default_rng(0), [], []
        self.pending = None

    def __call__(self, num):
        noise, churn = self.rng.normal(size=(2, num, START.size))
        self.noise.extend(noise)
        self.churn.extend(churn)
        if self.pending is not None:
            self.churn[len(self.churn) - num] = self.pending
            self.pending = None
        return noise, churn

    def up(self, first):
        self.pending = self.rng.normal(size=START.size)
        return self.pending


@pytest.mark.parametrize("segments", [SEGMENTS, [(0, 8, 1)], [(0, 3, 1), (3, 6, 2)]])
@pytest.mark.parametrize("name", [name for name in MAKERS if name != "heun_churn"])
def test_the_parts_one_after_the_other(name, segments):
    make, levels, draws = MAKERS[name], vp(9), Draws()
    if name == "churn_on_vp":
        levels = processes.vp()(np.linspace(0.95, 0.1, 9))
    wanted = by_hand(make, levels, segments, START, draws)
    solver = with_restarts(make, levels, segments)
    ours = states(solver, mixture, START, np.array(draws.noise), np.array(draws.churn))[-1]
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)


def test_noise_of_going_up_joins_that_of_a_churned_start():
    levels = edm(6)
    alone, joined = (
        MAKERS["heun_churn"](part(levels, 1, 4)),
        with_restarts(MAKERS["heun_churn"], levels, [(1, 4, 1)]),
    )
    start = 8  # rows of the four steps before
    up = levels.sigma[1] ** 2 - levels.sigma[4] ** 2
    assert joined.rows.churn[start] ** 2 == pytest.approx(alone.rows.churn[0] ** 2 + up, rel=1e-12)
    np.testing.assert_allclose(joined.rows.churn[start + 1 : start + 6], alone.rows.churn[1:-1], rtol=1e-12)


@pytest.mark.parametrize("levels_of", [vp, flow, edm])
def test_a_restart_contracts_the_error_of_the_spread(levels_of):
    """Going up adds no error, and the flow back down scales it: by (alpha_f s_l / (alpha_l s_f))^2 of the variance.

    s^2 is the variance of x at a level. Exact for the exact flow, from which 400 RK4 steps differ by less than 1e-9.
    """
    levels, (first, last) = levels_of(401), (250, 400)
    spread = np.hypot(0.5 * levels.alpha, levels.sigma)
    start = (levels.alpha[0] * 0.3, 1.2 * spread[0])
    factor = (levels.alpha[first] * spread[last] / (levels.alpha[last] * spread[first])) ** 2
    x0_of = levels.alpha[-1] * 0.25 / spread[last]
    for times in (0, 1, 2):
        solver = with_restarts(solvers.rk4, levels, [(first, last, times)] if times else [])
        _, std = oracles.marginal_moments(solver, 0.3, 0.5, start=start)
        assert (std / x0_of) ** 2 - 1.0 == pytest.approx(0.44 * factor**times, rel=1e-5, abs=1e-8)


def test_louder_noise_by_closed_recursion():
    """Euler on N(0, 1/4) at alpha = 1: every step multiplies the variance, every restart adds to it."""
    sigma, s_noise = np.array([5.0, 2.0, 0.8, 0.3]), 1.1
    gain = lambda i: (1 + (sigma[i + 1] / sigma[i] - 1) * sigma[i] ** 2 / (0.25 + sigma[i] ** 2)) ** 2  # noqa: E731
    variance = (0.25 + 25.0) * gain(0) * gain(1)
    for _ in range(3):
        variance = (variance + s_noise**2 * (sigma[1] ** 2 - sigma[2] ** 2)) * gain(1)
    variance *= gain(2) * (0.25 / (0.25 + sigma[3] ** 2)) ** 2
    levels = dfn.Level(np.ones(4), sigma, np.log(sigma) / 4)
    _, std = oracles.marginal_moments(with_restarts(solvers.euler, levels, [(1, 2, 3)], s_noise=s_noise), 0.0, 0.5)
    assert std**2 == pytest.approx(variance, rel=1e-12)


def test_a_plan_of_its_own_for_the_way_down():
    """As in the paper's code, where t_max lies on no level and the way down has its own number of steps."""
    levels = grids.karras(6)
    again = grids.karras(4, sigma_max=3.0, sigma_min=float(levels.sigma[3]))
    rows = with_restarts(solvers.heun, levels, [(again, 3, 2)]).rows
    visits = lambda sigma: np.repeat(sigma, 2)[1:-1]  # noqa: E731
    runs = [levels.sigma[:4], again.sigma, again.sigma, levels.sigma[3:]]
    expected = np.concatenate([np.r_[s[0], visits(s), s[-1]] for s in runs[:-1]] + [runs[-1]])
    np.testing.assert_allclose(np.unique(rows.level.sigma.round(9)), np.unique(expected.round(9)))
    np.testing.assert_allclose(rows.churn[rows.churn > 1e-6], np.sqrt(9.0 - levels.sigma[3] ** 2) * np.ones(2))
    assert rows.x.shape[0] == 3 * 2 + 2 * 3 * 2 + 2 * 2 + 1


def test_pure_noise_and_plans_an_example():
    sigma = np.linspace(1.0, 0.1, 6)
    pure = dfn.Level(1 - sigma, sigma, sigma)
    rows = with_restarts(solvers.ddim, pure, [(0, 3, 1)]).rows
    assert rows.churn[3] == 1.0  # back to pure noise, which nothing else is left of
    assert rows.x[2, 0] == rows.m[2, 0] == 0.0
    both = jax.tree.map(lambda *a: np.stack(a, axis=1), edm(6), jax.tree.map(lambda a: 0.9 * a, edm(6)))
    together = with_restarts(solvers.dpmpp_2m, both, [(1, 3, 2)]).rows
    alone = with_restarts(solvers.dpmpp_2m, edm(6), [(1, 3, 2)]).rows
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[..., 0], b, rtol=1e-12, atol=1e-14), together, alone)


def test_through_sample_and_under_jit():
    @jax.jit
    def run(key, sigma):
        levels = dfn.Level(jnp.ones_like(sigma), sigma, jnp.log(sigma) / 4)
        solver = with_restarts(solvers.dpmpp_2m, levels, [(4, 8, 3)])
        return dfn.sample(key, oracles.gaussian(0.3, 0.5), solver, 80.0 * jax.random.normal(key, (20_000, 1))).x0

    x0 = run(jax.random.key(0), jnp.asarray(grids.karras(12).sigma, jnp.float32))
    mean, std = oracles.marginal_moments(with_restarts(solvers.dpmpp_2m, grids.karras(12), [(4, 8, 3)]))
    # Four standard errors; the start is N(0, 80^2) for the marginal's mean 0.3, spread 80.002.
    assert float(x0.mean()) == pytest.approx(mean, abs=4 * std / 141 + 0.3 / 80)
    assert float(x0.std()) == pytest.approx(std, rel=4 / np.sqrt(2 * 20_000) + 1e-3)


PLAN = vp(6)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(3, 3, 1)], r"0 <= first < last <= 5 .*; got \(3, 3, 1\)"),
        ([(1, 6, 1)], r"got \(1, 6, 1\)"),
        ([(1, 3, 0)], "times >= 1"),
        ([(1, 4, 1), (0, 2, 1)], "last not before that of the segment before"),
        ([(part(PLAN, 0, 3), 4, 1)], r"must end at levels\[last\]"),
    ],
)
def test_bad_segments_are_refused(segments, message):
    with pytest.raises(ValueError, match=message):
        with_restarts(solvers.ddim, PLAN, segments)


def test_what_has_no_rows_is_refused():
    with pytest.raises(ValueError, match="rows are of type LinearRow"):
        with_restarts(lambda levels: solvers.adaptive(levels), PLAN, [(1, 3, 1)])
    with pytest.raises(ValueError, match="order must be 1, 2, 3 or 4; got 5"):
        with_restarts(lambda levels: solvers.deis(levels, 5), PLAN, [(1, 3, 1)])


def test_without_segments_it_is_the_solver():
    one, other = with_restarts(solvers.heun, PLAN, []), solvers.heun(PLAN)
    jax.tree.map(np.testing.assert_array_equal, one.rows, other.rows)
    assert not one.stochastic
