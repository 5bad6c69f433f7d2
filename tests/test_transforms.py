"""Equal results under jit, vmap, grad, pmap, shard_map and sharded jit; compilations, random draws and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import diffusers_fn as dfn
from diffusers_fn import grids, guidance, oracles, solvers, training

LINEAR = dfn.make_noise_schedule(dfn.linear_betas(1000))
LEVELS = grids.trailing(LINEAR, 5)
DEVICES = 8
# One program may fuse a product into a sum and another not: a rounding of 6e-8 per row, on numbers of order 1.
ROUNDING = {"rtol": 1e-5, "atol": 2e-6}


def run(keys, x, eta=0.7):
    return dfn.sample(keys, oracles.gaussian(0.3, 0.5), solvers.ddim(LEVELS, eta), x).x0


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=str)
def mesh(request):
    assert jax.device_count() == DEVICES
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(request.param,))


@pytest.fixture(scope="module")
def batch():
    """Keys [16] and states [16, 3]: two per device."""
    keys = jax.random.split(jax.random.key(0), 16)
    return keys, jax.random.normal(jax.random.key(1), (16, 3))


@pytest.fixture(scope="module")
def plain(batch):
    return np.asarray(run(*batch))


def by_device(tree):
    return jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), tree)


# Sampling.


def test_sampling_under_jit(batch, plain):
    np.testing.assert_allclose(jax.jit(run)(*batch), plain, **ROUNDING)


def test_sampling_under_vmap(batch, plain):
    each = jax.vmap(lambda key, x: run(key[None], x[None])[0])(*batch)
    np.testing.assert_allclose(each, plain, **ROUNDING)


def test_sampling_in_parts(batch, plain):
    keys, x = batch
    jitted = jax.jit(run)
    parts = jnp.concatenate([jitted(keys[i : i + 4], x[i : i + 4]) for i in range(0, 16, 4)])
    np.testing.assert_allclose(parts, plain, **ROUNDING)


def test_sampling_under_pmap(batch, plain):
    samples = jax.pmap(run)(*by_device(batch))
    np.testing.assert_allclose(samples.reshape(16, 3), plain, **ROUNDING)


def test_sampling_under_shard_map(batch, plain, mesh):
    spec = PartitionSpec("batch")
    mapped = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(mapped(*training.split_batch(batch, mesh)), plain, **ROUNDING)


@pytest.mark.parametrize("shard_map", [True, False])
def test_a_padded_run_and_its_trace_on_a_mesh(batch, mesh, shard_map):
    def padded(keys, x):
        solver, emit = solvers.pad(solvers.ddim(LEVELS, 0.7), 8), lambda step: step.prediction.x0
        run = dfn.sample(keys, oracles.gaussian(0.3, 0.5), solver, x, scan=dfn.while_scan(5), emit=emit)
        return run.x0, run.trace

    spec, trace_spec = PartitionSpec("batch"), PartitionSpec(None, "batch")
    mapped = jax.shard_map(padded, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, trace_spec))
    got = jax.jit(mapped if shard_map else padded)(*training.split_batch(batch, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING), got, padded(*batch))


def test_sampling_under_sharded_jit(batch, plain, mesh):
    keys, x = training.split_batch(batch, mesh)
    samples = jax.jit(run)(keys, x)
    np.testing.assert_allclose(samples, plain, **ROUNDING)
    assert samples.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("batch")), samples.ndim)


def test_vmap_over_whole_runs(batch):
    """One key per run: a batch of runs equals the runs one by one."""
    keys, x = batch
    jitted = jax.jit(run)
    together = jax.vmap(run, in_axes=(0, None))(keys[:3], x)
    for i in range(3):
        np.testing.assert_allclose(together[i], jitted(keys[i], x), **ROUNDING)


@pytest.mark.usefixtures("x64")
def test_gradients_flow_through_sampling():
    """With respect to the start, the denoiser's parameters, eta and the levels, against central differences."""
    keys = jax.random.split(jax.random.key(2), 2)
    # Traced levels: the derivative with respect to the plan goes through the solver's table.
    levels = jax.tree.map(jnp.asarray, grids.karras(4, 0.1, 3.0))

    def loss(theta):
        denoise = oracles.gaussian(theta["mean"], theta["std"])
        scaled = dfn.Level(levels.alpha, levels.sigma * theta["stretch"], levels.t)
        x0 = dfn.sample(keys, denoise, solvers.ddim(scaled, theta["eta"]), theta["x"]).x0
        return jnp.sum(jnp.sin(x0))

    theta = {
        "x": jnp.array([[1.0, -0.5], [0.3, 2.0]]),
        "mean": jnp.array(0.3),
        "std": jnp.array(0.7),
        "stretch": jnp.array(1.1),
        "eta": jnp.array(0.6),
    }
    value, gradient = jax.jit(jax.value_and_grad(loss))(theta)
    jitted = jax.jit(loss)
    assert np.isfinite(value)
    for name, number in theta.items():
        for index in np.ndindex(number.shape):
            h = 1e-5
            low, high = (jitted({**theta, name: number.at[index].add(d)}) for d in (-h, h))
            # Central differences: h^2 = 1e-10 and rounding 1e-16 / h = 1e-11, with room for third derivatives.
            assert float(gradient[name][index]) == pytest.approx(float(high - low) / (2 * h), rel=1e-6, abs=1e-8)


# The training step.


def apply(params, x, t, cond=None):
    return jnp.tanh(x @ params["w"] + params["b"][None]) * (1 + t[:, None] / 1000)


def loss(params, keys, batch):
    """A small `Diffusion.loss`, with one key per example."""
    time_keys, noise_keys = jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, 2))(keys), 0, 1)
    x0 = batch["image"]
    t = jnp.floor(dfn.losses.uniform_time(time_keys, x0.shape[0]) * 1000).astype(jnp.int32)
    x, eps = dfn.forward_diffusion(noise_keys, LINEAR, x0, t)
    level = dfn.level_at(LINEAR, t)
    each = dfn.losses.denoising_loss(
        apply(params, x, level.t), x0, eps, level, dfn.parameterizations.v, weight=dfn.losses.min_snr(5.0)
    )
    return each, {"x0": jnp.mean(x0, axis=1)}


@pytest.fixture(scope="module")
def training_run(batch):
    params = {"w": 0.3 * jax.random.normal(jax.random.key(4), (3, 3)), "b": jnp.zeros(3)}
    # Gradient descent, since Adam's first step is the sign of the gradient, which rounding can flip.
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = training.make_train_state(params, optimizer)
    make = lambda **knobs: training.make_train_step(loss, optimizer, ema_decay=0.9, **knobs)  # noqa: E731
    keys, x = batch
    return make, state, keys, {"image": x}


def two_steps(step, state, keys, data):
    for _ in range(2):
        state, metrics = step(state, keys, data)
    return state, metrics


@pytest.fixture(scope="module")
def plain_steps(training_run):
    make, *rest = training_run
    return two_steps(make(), *rest)


def check_steps(result, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING), result, wanted)


def test_training_steps_do_something(plain_steps, training_run):
    state, metrics = plain_steps
    assert int(state.step) == 2
    assert float(jnp.abs(state.params["w"] - training_run[1].params["w"]).max()) > 1e-3
    # Gradient descent with an average: the EMA moves a tenth of the way each time.
    assert sorted(metrics) == ["grad_norm", "loss", "param_norm", "update_norm", "x0"]


def test_training_under_jit(training_run, plain_steps):
    make, *rest = training_run
    step = jax.jit(make())
    check_steps(two_steps(step, *rest), plain_steps)
    assert step._cache_size() == 1  # the second step compiles nothing


def test_training_under_pmap(training_run, plain_steps):
    make, state, keys, data = training_run
    mapped = jax.pmap(make(axis_name="batch"), axis_name="batch", in_axes=(None, 0, 0), out_axes=None)
    check_steps(two_steps(mapped, state, *by_device((keys, data))), plain_steps)


@pytest.mark.parametrize("check_vma", [True, False])
def test_training_under_shard_map(training_run, plain_steps, mesh, check_vma):
    make, state, keys, data = training_run
    step, split, whole = make(axis_name="batch"), PartitionSpec("batch"), PartitionSpec()
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(whole, split, split), out_specs=whole, check_vma=check_vma)
    state, (keys, data) = training.replicate(state, mesh), training.split_batch((keys, data), mesh)
    check_steps(two_steps(jax.jit(mapped), state, keys, data), plain_steps)


def test_training_under_sharded_jit(training_run, plain_steps, mesh):
    make, state, keys, data = training_run
    state, (keys, data) = training.replicate(state, mesh), training.split_batch((keys, data), mesh)
    state, metrics = two_steps(jax.jit(make()), state, keys, data)
    check_steps((state, metrics), plain_steps)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_training_steps_in_a_scan_under_sharded_jit(training_run, plain_steps, mesh):
    make, state, keys, data = training_run
    step = make()
    twice = training.split_batch(jax.tree.map(lambda a: jnp.stack([a, a]), (keys, data)), mesh, axis=1)
    assert all(leaf.sharding.spec == PartitionSpec(None, "batch") for leaf in jax.tree.leaves(twice))
    run = jax.jit(lambda state, batches: jax.lax.scan(lambda state, each: step(state, *each), state, batches))
    state, metrics = run(training.replicate(state, mesh), twice)
    check_steps((state, jax.tree.map(lambda a: a[-1], metrics)), plain_steps)


def test_a_batch_that_cannot_be_split_is_refused(mesh):
    with pytest.raises(ValueError, match=r"axis 0 of a batch of shape \(12, 3\) cannot be split evenly over 8 devices"):
        training.split_batch(jnp.ones((12, 3)), mesh)
    for axis in (1, 2):  # three examples, and no such axis
        with pytest.raises(ValueError, match=f"axis {axis} of a batch"):
            training.split_batch(jnp.ones((8, 3)), mesh, axis=axis)
    with pytest.raises(ValueError, match="axis must be at least 0; got -1"):
        training.split_batch(jnp.ones((8, 8)), mesh, axis=-1)


# What compiles.


def test_changing_values_does_not_recompile(batch):
    keys, x = batch
    traces = []

    def denoise(x, level, cond=None):
        traces.append(x.shape)
        shift = cond[:, None].astype(x.dtype) / 10
        prediction = oracles.gaussian(0.3, 0.5)(x, level)
        return dfn.Prediction(prediction.x0 + shift, prediction.eps - shift * expand_to(level))

    def expand_to(level):
        return level.alpha / level.sigma

    @jax.jit
    def generate(keys, x, levels, eta, scale, labels):
        guided = dfn.bind(guidance.classifier_free(scale, 10)(denoise), labels)
        return dfn.sample(keys, guided, solvers.ddim(levels, eta), x).x0

    on_device = lambda levels: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), levels)  # noqa: E731
    labels = jnp.arange(16) % 10
    base = (keys, x, on_device(LEVELS), 0.7, 2.0, labels)
    first = generate(*base)
    count = len(traces)
    assert count >= 1
    others = {
        0: keys[::-1],
        2: on_device(grids.leading(LINEAR, 5)),
        3: 0.1,
        4: 7.5,
        5: labels[::-1],
    }
    for position, value in others.items():
        changed = generate(*base[:position], value, *base[position + 1 :])
        assert float(jnp.abs(changed - first).max()) > 1e-4
    assert generate._cache_size() == 1
    assert len(traces) == count


def test_solvers_of_equal_shape_share_one_program(batch):
    keys, x = batch
    generate = jax.jit(lambda solver, keys, x: dfn.sample(keys, oracles.gaussian(0.3, 0.5), solver, x).x0)
    stochastic = [
        solvers.ddim(LEVELS, 0.7),
        solvers.ddim(LEVELS, 0.9),
        solvers.ddim(grids.uniform_log_snr(LINEAR, 5), 0.2),
        solvers.ddim(grids.karras(5), 0.5),
        solvers.ancestral(LEVELS),
        solvers.ancestral(LEVELS, dfn.fixed_large),
    ]
    results = [generate(solver, keys, x) for solver in stochastic]
    assert generate._cache_size() == 1
    assert len({float(jnp.sum(r)) for r in results}) == len(results)
    np.testing.assert_allclose(results[0], run(keys, x), **ROUNDING)
    generate(solvers.ddim(LEVELS), keys, x)  # a deterministic table has another shape: no noise column
    assert generate._cache_size() == 2


def equations(jaxpr):
    """All equations of a jaxpr, those of inner jaxprs after the one that holds them."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def program(solver, x):
    return jax.make_jaxpr(lambda key, x: dfn.sample(key, oracles.gaussian(0.3, 0.5), solver, x).x0)(
        jax.random.key(0), x
    ).jaxpr


def primitives(jaxpr):
    return [equation.primitive.name for equation in equations(jaxpr)]


def test_the_loop_has_no_branches_and_noise_only_where_it_is_used():
    x = jnp.ones((2, 3))
    deterministic = primitives(program(solvers.ddim(LEVELS), x))
    stochastic = primitives(program(solvers.ddim(LEVELS, 0.7), x))
    for names in (deterministic, stochastic):
        assert names.count("scan") == 1
        assert "cond" not in names
    random = lambda names: [n for n in names if "random" in n or "threefry" in n or "rng" in n]  # noqa: E731
    assert random(deterministic) == []
    assert random(stochastic)


@pytest.mark.parametrize("make", [solvers.ddim, solvers.ancestral])
def test_a_thousand_steps_are_as_large_a_program_as_ten(make):
    x = jnp.ones((2, 3))
    short, long = (primitives(program(make(grids.linspace(LINEAR, n)), x)) for n in (10, 1000))
    assert short == long


def test_no_trajectory_is_stored_without_emit():
    x = jnp.ones((8, 4096))
    state = x.size * 4

    def sizes(n, emit=None):
        solver = solvers.ancestral(grids.linspace(LINEAR, n))
        table = sum(np.asarray(leaf).size * 4 for leaf in jax.tree.leaves(solver.rows))
        generate = jax.jit(lambda solver, key, x: dfn.sample(key, oracles.gaussian(0.3, 0.5), solver, x, emit=emit))
        memory = generate.lower(solver, jax.random.key(0), x).compile().memory_analysis()
        return memory.output_size_in_bytes, memory.temp_size_in_bytes, table

    (out10, temp10, table10), (out1000, temp1000, table1000) = sizes(10), sizes(1000)
    assert out10 == out1000
    # The keys of the rows and copies of the table may grow with their number; a trajectory would be 990 states.
    assert temp1000 - temp10 <= 8 * (table1000 - table10) < 990 * state / 100
    out, _, _ = sizes(50, emit=lambda step: step.x_next)
    assert out >= 51 * state
