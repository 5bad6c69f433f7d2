"""The public functions under strict dtype promotion, where float32 and bfloat16 arrays do not mix by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import PARAMETERIZATIONS

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, likelihood, losses, processes, solvers

WEIGHTS = {
    "none": None,
    "uniform": losses.uniform,
    "snr": losses.snr,
    "min_snr": losses.min_snr(5.0),
    "truncated_snr": losses.truncated_snr,
    "p2": losses.p2(1.5),
    "edm": losses.edm(),
    "sigmoid": losses.sigmoid(-1.0),
    "likelihood": losses.likelihood(processes.vp()),
}
SCHEDULE = dfn.make_noise_schedule(dfn.linear_betas(100))
PLAN = grids.karras(4)
SOLVERS = {
    "ddim": solvers.ddim,
    "ddim, eta 1": lambda levels: solvers.ddim(levels, 1.0),
    "heun": solvers.heun,
    "dpmpp_2m": solvers.dpmpp_2m,
    "ancestral": solvers.ancestral,
}
X = jnp.array([[0.3, -1.2, 0.7], [0.1, 2.0, -0.4]])
LABELS = jnp.array([1, 2])


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def denoiser(parameterization):
    def apply(params, x, t, cond):
        return params.astype(x.dtype) * x * (1 if cond is None else cond[:, None].astype(x.dtype))

    return dfn.make_denoiser(apply, jnp.float32(0.5), parameterization)


def abstract(function):
    """Traces a function of the data and a key."""
    return jax.eval_shape(function, X, jax.random.key(0))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_losses(weight, dtype):
    times = (dfn.level_at(SCHEDULE, jnp.array([3, 70])), dfn.level_at(SCHEDULE, np.array([3, 70])))
    for parameterization in PARAMETERIZATIONS.values():
        for level in (*times, processes.vp()(jnp.array([0.3, 0.6]))):
            for data in (jnp.float32, dtype):

                def loss(x, key, parameterization=parameterization, level=level, data=data):
                    x0 = x.astype(data)
                    return losses.denoising_loss(
                        x.astype(dtype), x0, x0, level, parameterization, weight=WEIGHTS[weight]
                    )

                found = abstract(loss)
                assert (found.shape, found.dtype) == ((2,), jnp.float32)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling(solver):
    for parameterization in PARAMETERIZATIONS.values():
        clipped = dfn.clip_x0()(denoiser(parameterization))
        samples = abstract(lambda x, key, d=clipped: dfn.sample(key, d, SOLVERS[solver](PLAN), x))
        assert samples.x0.dtype == jnp.float32


@pytest.mark.parametrize(
    "transform",
    [
        guidance.classifier_free(3.0, 0),
        guidance.classifier_free(jnp.array([2.0, 3.0]), 0, batched=False),
        guidance.classifier_free(np.array([2.0, 3.0]), 0, rule=guidance.rescaled()),
        guidance.classifier_free(guidance.interval(3.0, 0.1, 10.0), 0, rule=guidance.projected(0.0, 2.0)),
        guidance.classifier_free(guidance.scale_on_plan(PLAN, np.linspace(1, 3, 4)), 0, channels=2),
        guidance.classifier_free_pp(0.5, 0),
        guidance.perpendicular_negative(2.0, 0, [3], [0.5]),
        guidance.classifier(lambda x, level, cond: -jnp.sum(x**2, axis=1)),
        guidance.dps(lambda x: x, X, noise_std=0.5),
        dfn.dynamic_threshold(),
    ],
)
def test_guidance(transform):
    guided = transform(denoiser(PARAMETERIZATIONS["epsilon"]))
    level = dfn.level_at(SCHEDULE, jnp.array([3, 70]))
    for dtype in (jnp.float32, jnp.bfloat16):
        assert abstract(lambda x, key, dtype=dtype: guided(x.astype(dtype), level, LABELS)).x0.shape == X.shape


@pytest.mark.parametrize(
    "function",
    [
        lambda d, x, key: dfn.q_sample(SCHEDULE, x, jnp.array([3, 5]), x),
        lambda d, x, key: dfn.img2img(key, d, solvers.ddim, PLAN, x),
        lambda d, x, key: dfn.inpaint(key, d, solvers.ancestral(PLAN), x, x, jnp.ones((2, 3))),
        lambda d, x, key: dfn.slerp(x.astype(jnp.bfloat16), (x + 1).astype(jnp.bfloat16), 0.5),
        lambda d, x, key: dfn.invert(d, PLAN, x, make=solvers.heun),
        lambda d, x, key: dfn.sample_coupled(d, PLAN, dfn.invert_coupled(d, PLAN, x)),
        lambda d, x, key: likelihood.calc_bpd(key, SCHEDULE, d, x),
        lambda d, x, key: likelihood.log_prob(key, d, PLAN, x),
        lambda d, x, key: losses.stratified_time(key, 4),
        lambda d, x, key: losses.antithetic_time(key, 4),
        lambda d, x, key: losses.logit_normal_time()(key, 4),
        lambda d, x, key: losses.draw_times(key, losses.loss_second_moment(4), 4),
    ],
)
def test_the_rest(function):
    abstract(lambda x, key: function(denoiser(PARAMETERIZATIONS["v"]), x, key))
