"""Loops of every scheduler class, run by `sample`, against the reference's in double precision (golden/schedulers)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import load, meta

import diffusers_fn as dfn

RUNS = meta("schedulers")["runs"]
TABLE = np.log(np.cumprod(1.0 - dfn.scaled_linear_betas(1000)))
PARTS = ((0.3, -0.7, 0.25**2), (0.7, 0.5, 0.4**2))  # weight, mean and variance


def mean_x0(x, a, s):
    """E[x0 | x] of a mixture of two Gaussians per number."""
    logits, means = [], []
    for weight, mean, variance in PARTS:
        total, gap = a**2 * variance + s**2, x - a * mean
        logits.append(jnp.log(weight) - 0.5 * jnp.log(total) - 0.5 * gap**2 / total)
        means.append(mean + a * variance / total * gap)
    return jnp.sum(jax.nn.softmax(jnp.stack(logits), axis=0) * jnp.stack(means), axis=0)


def network(run):
    """(params, x, t, cond) -> output: the recorded network, golden/schedulers/meta.json."""
    space, head, data = run["space"], run["head"], run["sigma_data"]

    def circle_or_flow(x, t):
        if space == "table":
            a = jnp.exp(0.5 * jnp.interp(jnp.clip(t, 0.0, 999.0), jnp.arange(1000.0), TABLE))
        elif space == "quarter":
            a = 1.0 / jnp.sqrt(jnp.exp(8.0 * t) + 1.0)
        elif space == "ipndm":
            a = jnp.sqrt(1.0 - jnp.minimum(jnp.sin(t * jnp.pi / 2), 0.999) ** 2)
        else:
            a = 1.0 - jnp.clip(t / 1000.0, 1e-3, 0.9995)
        s = 1.0 - a if space == "flow" else jnp.sqrt(1.0 - a**2)
        x0 = mean_x0(x, a, s)
        eps = (x - a * x0) / s
        return {"sample": x0, "epsilon": eps, "v_prediction": a * eps - s * x0, "flow_prediction": eps - x0}[head]

    def apply(params, x, t, cond):
        if space == "scm":
            a, s = jnp.maximum(jnp.cos(t), 1e-3), jnp.maximum(jnp.sin(t), 1e-3)
            return (jnp.cos(t) * x - mean_x0(x, a, s * data)) / s
        if space not in ("edm", "cos", "cm"):
            return circle_or_flow(x, t)
        if space == "cos":
            sigma = jnp.tan(jnp.minimum(t, 0.9995) * jnp.pi / 2)
        else:
            sigma = jnp.exp(t / 250.0 if space == "cm" else 4.0 * t)
        root = jnp.sqrt(sigma**2 + data**2)
        x0 = mean_x0(root * x, 1.0, sigma)
        out = (x0 - data**2 / root**2 * root * x) * root / (sigma * data)
        return x0 if space == "cm" else out if head == "epsilon" else -out

    return apply


def plan_of(run):
    """(scheduler, plan) of a recorded run."""
    numbers = lambda options: {k: float(v) if v in ("inf", "-inf") else v for k, v in options.items()}  # noqa: E731
    scheduler = dfn.pretrained.load_scheduler(numbers(run["config"]))
    return scheduler, scheduler.plan(run["num_steps"], **numbers(run["run"]))


@pytest.fixture
def double(monkeypatch):
    """Double precision, and the recorded noise: draw i, after evaluation i, is that of RandomState(1000 + i)."""
    row = []

    def normal(key, shape, dtype):
        return jnp.asarray(np.random.RandomState(1000 + row[-1]).randn(*shape), dtype)

    def scan(body, init, xs):
        for i in range(jax.tree.leaves(xs)[0].shape[0]):
            row.append(i)
            init, _ = body(init, jax.tree.map(lambda a, i=i: a[i], xs))
        return init, None

    monkeypatch.setattr(jax.random, "normal", normal)
    with jax.enable_x64(True):
        yield scan


NAMES = sorted({run["name"].split("/")[0] for run in RUNS})


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_gives_the_result_of_the_reference(name, double):
    check_runs([run for run in RUNS if run["name"] == f"{name}/0"], double)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_more_plans_give_the_result_of_the_reference(name, double):
    check_runs([run for run in RUNS if run["name"].startswith(f"{name}/")][1:], double)


def check_runs(runs, double):
    golden = load("schedulers/loops")
    for run in runs:
        key = run["name"]
        scheduler, plan = plan_of(run)
        np.testing.assert_allclose(plan.timesteps, golden[f"{key}/timesteps"], rtol=1e-9, atol=1e-9, err_msg=key)
        if not key.startswith("SCM"):  # the pipelines of this class multiply by sigma_data themselves
            np.testing.assert_allclose(plan.init_scale, run["init_noise_sigma"], rtol=1e-12, err_msg=key)
        denoise = dfn.make_denoiser(network(run), None, scheduler.parameterization)
        x = jnp.asarray(golden[f"{key}/x0"])
        # no keys are used: the noise is the recorded one
        result = dfn.sample(jax.random.key(0), denoise, plan.solver, x, final_denoise=plan.final_denoise, scan=double)
        expected = golden[f"{key}/x"]
        # 1e-8: a step of no length is written as one of 1e-10, and tables are combined in another order
        np.testing.assert_allclose(result.x0, expected, rtol=0, atol=1e-8 * max(1.0, abs(expected).max()), err_msg=key)


def test_every_class_has_a_recorded_loop():
    recorded = {run["config"]["_class_name"] for run in RUNS}
    assert recorded == set(dfn.pretrained.schedulers.KINDS)
