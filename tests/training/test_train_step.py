"""The training step: averages by closed-form recursions, steps that are skipped, strict promotion of types."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from diffusers_fn import training
from diffusers_fn.training import averages


def linear(params, key, batch):
    """The gradient is the mean of x."""
    return params["w"] * batch["x"], {}


def run(step, state, xs):
    states = []
    for x in xs:
        state, metrics = step(state, jax.random.key(0), {"x": jnp.asarray(x, jnp.float32)})
        states.append((state, jax.device_get(metrics)))
    return states


def trained(xs, optimizer, schedule=0.5, averaging=None, **options):
    step = jax.jit(
        training.make_train_step(linear, optimizer, ema_decay=schedule, averaging=averaging, **options),
        donate_argnums=0,
    )
    state = training.make_train_state({"w": jnp.array(100.0)}, optimizer, averaging=averaging)
    return run(lambda *args: step(jax.tree.map(jnp.copy, args[0]), *args[1:]), state, xs)


def test_the_warmed_up_average_is_the_recursion_in_float64():
    xs = np.random.default_rng(0).normal(size=(40, 4))
    states = trained(
        xs, optax.sgd(0.1), averages.ratio_warmed_up(0.9), averages.averaging(averages.power_function(0.1))
    )
    w, ema, power = 100.0, 100.0, 100.0
    gamma = averages.power_function_gamma(0.1)
    for n, (x, (state, metrics)) in enumerate(zip(xs, states), start=1):
        w -= 0.1 * x.mean()
        decay = 0.0 if n == 1 else min(0.9, n / (9 + n))
        ema = decay * ema + (1 - decay) * w
        keep = (1 - 1 / n) ** (gamma + 1)
        power = keep * power + (1 - keep) * w
        got = [state.params["w"], state.ema["w"], state.averages.trees[0]["w"]]
        np.testing.assert_allclose(got, [w, ema, power], rtol=2e-6)
        np.testing.assert_allclose(metrics["update_norm"], abs(0.1 * x.mean()), rtol=1e-5)
        np.testing.assert_allclose(metrics["param_norm"], abs(w), rtol=1e-6)
    assert int(states[-1][0].num_updates) == int(states[-1][0].averages.count) == 40


@pytest.mark.parametrize("schedule", [averages.ratio_warmed_up(0.9999), averages.warmed_up(0.9999)])
def test_a_warmed_up_average_forgets_the_first_parameters(schedule):
    """From parameters far away (1e6) that jump to 1 at the first update, nothing of the first ones is left."""
    keep = averages.averaging(schedule)
    state = keep.init(jnp.array(1e6))
    for _ in range(3):
        state = keep.update(state, jnp.array(1.0))
    assert float(state.trees[0]) == 1.0


def test_accumulated_batches_move_the_averages_once():
    xs = np.ones((8, 4))
    states = trained(xs, optax.MultiSteps(optax.sgd(1.0), 4), 0.5)
    assert [int(state.num_updates) for state, _ in states] == [0, 0, 0, 1, 1, 1, 1, 2]
    np.testing.assert_allclose([float(s.ema["w"]) for s, _ in states], [100] * 3 + [99.5] * 4 + [98.75])


# Steps that are skipped.


@pytest.mark.parametrize("mode", [True, "gradients"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_a_step_with_numbers_that_are_not_finite_changes_nothing(bad, mode):
    """1e25 is finite, its square in Adam's second moment is not: all later updates would be zero."""
    averaging = averages.averaging(averages.power_function(0.1))
    xs = np.ones((5, 4))
    xs[2, 1] = bad
    got = trained(xs, optax.adam(0.1), averaging=averaging, skip_nonfinite=mode)
    expected = trained(np.ones((4, 4)), optax.adam(0.1), averaging=averaging)
    assert [float(metrics["skipped"]) for _, metrics in got] == [0, 0, 1, 0, 0]
    assert [int(state.step) for state, _ in got] == [1, 2, 3, 4, 5]
    for i, j in ((1, 1), (2, 1), (4, 3)):
        for name in ("params", "ema", "opt_state", "averages", "num_updates"):
            ours, theirs = (getattr(states[k][0], name) for states, k in ((got, i), (expected, j)))
            jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_update_that_overflows_is_skipped():
    (state, metrics), *_ = trained(np.full((1, 4), 1e10), optax.sgd(1e30), skip_nonfinite=True)
    assert metrics["skipped"] == 1
    assert float(state.params["w"]) == 100.0


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_squared_gradients_decide_for_adam(name, accumulation):
    """Up to squared gradients near 3.4e38 the new state is finite; those above it are skipped."""
    optimizer = training.make_optimizer(name, learning_rate=1.0, accumulation=accumulation)
    sizes = np.array([1.0, 1e18, -1.8e19, 1.8e19, 1.8e19, 1.9e19, 1e38, 1.0])
    states = trained(np.repeat(sizes[:, None], 4, axis=1) / 4, optimizer, skip_nonfinite="gradients")
    states += trained(np.repeat(sizes[:, None], 4, axis=1), optimizer, skip_nonfinite="gradients")
    assert [float(metrics["skipped"]) for _, metrics in states] == [0] * 6 + [1] + [0] * 6 + [1, 1, 0]
    for state, _ in states:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state)))


def test_an_average_that_is_not_finite_is_reported():
    optimizer = optax.sgd(1.0)
    step = training.make_train_step(linear, optimizer, skip_nonfinite=True)
    state = training.make_train_state({"w": jnp.array(0.0)}, optimizer)
    state = dataclasses.replace(state, ema={"w": jnp.array(-jnp.inf)})
    ((_, metrics),) = run(step, state, np.ones((1, 2)))
    assert metrics["skipped"] == 1


def test_averages_that_only_one_of_state_and_step_has_are_refused():
    averaging, optimizer = averages.averaging(averages.power_function(0.1)), optax.sgd(0.1)
    for of_state, of_step in ((None, averaging), (averaging, None)):
        state = training.make_train_state({"w": jnp.array(1.0)}, optimizer, averaging=of_state)
        with pytest.raises(ValueError, match="the same averaging"):
            run(training.make_train_step(linear, optimizer, averaging=of_step), state, np.ones((1, 2)))
    with pytest.raises(ValueError, match="skip_nonfinite must be"):
        training.make_train_step(linear, optimizer, skip_nonfinite="gradient")


@pytest.mark.parametrize("mode", [True, "gradients"])
def test_extras_stay_as_they_were(mode):
    def loss(params, key, batch, extras):
        return params["w"] * batch["x"], {"x": batch["x"]}

    optimizer = optax.sgd(0.1)
    update = lambda extras, metrics: extras + metrics["x"].sum()  # noqa: E731
    step = training.make_train_step(loss, optimizer, update_extras=update, skip_nonfinite=mode)
    state = training.make_train_state({"w": jnp.array(1.0)}, optimizer, jnp.array(0.0))
    states = run(step, state, np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]))
    assert [float(state.extras) for state, _ in states] == [2, 2, 4]


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
@pytest.mark.parametrize("mode", [True, "gradients"])
def test_all_devices_skip_when_one_must(mode):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    optimizer = optax.sgd(0.1)
    reduce = lambda tree: jax.lax.pmean(tree, "batch")  # noqa: E731
    step = training.make_train_step(linear, optimizer, reduce=reduce, skip_nonfinite=mode)
    split, whole = PartitionSpec("batch"), PartitionSpec()
    mapped = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(whole, whole, split), out_specs=(whole, whole), check_vma=False)
    )
    state = training.make_train_state({"w": jnp.array(1.0)}, optimizer)
    (first, metrics), (second, _) = run(mapped, state, np.array([[1.0, 1.0, 1.0, np.inf], [1.0, 1.0, 1.0, 1.0]]))
    assert metrics["skipped"] == 1
    assert float(first.params["w"]) == 1.0
    np.testing.assert_allclose(float(second.params["w"]), 0.9)


# Settings and types.


@pytest.mark.parametrize("schedule", [0.9, averages.ratio_warmed_up(0.9), averages.warmed_up(0.9),
                                      averages.half_life(5.0), averages.power_function(0.1)])  # fmt: skip
def test_it_works_under_strict_promotion_of_types(schedule):
    optimizer = training.make_optimizer(
        "adamw", weight_decay=0.1, grad_clip=1.0, warmup_steps=4, num_steps=8, lr_schedule="cosine", accumulation=2
    )
    with jax.numpy_dtype_promotion("strict"):
        averaging = averages.averaging(averages.power_function(0.1))
        step = training.make_train_step(
            linear, optimizer, ema_decay=schedule, averaging=averaging, skip_nonfinite="gradients"
        )
        state = training.make_train_state({"w": jnp.array(1.0)}, optimizer, averaging=averaging)
        states = run(step, state, np.ones((4, 2)))
    assert float(states[-1][0].params["w"]) < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulation": 64, "num_steps": 20}, r"multiple of accumulation = 64.* got 20: set it to 64"),
        ({"accumulation": 8, "num_steps": 20}, "got 20: set it to 16 or 24"),
        ({"accumulation": 1.5}, "accumulation must be an integer"),
        ({"accumulation": True}, "accumulation must be an integer"),
        ({"accumulation": 0}, "accumulation must be an integer of at least 1"),
        ({"warmup_steps": 2.5}, "warmup_steps must be an integer"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer"),
        ({"num_steps": 1.5}, "num_steps must be an integer"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a finite number"),
        ({"grad_clip": float("nan")}, "grad_clip must be a finite number"),
        ({"grad_clip": -1.0}, "grad_clip must be a finite number, at least 0"),
        ({"weight_decay": float("inf"), "name": "adamw"}, "weight_decay must be a finite number"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training.make_optimizer(**options)


def test_a_warm_up_shorter_than_two_updates_rounds_up():
    """7 batches by 4 are two updates: half of the rate first."""
    rate = training.make_learning_rate(1.0, warmup_steps=7, accumulation=4, num_steps=40, lr_schedule="cosine")
    np.testing.assert_allclose([rate(i) for i in (0, 1, 2, 6, 10)], [0.5, 0.75, 1.0, 0.5, 0.0], atol=1e-7)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), float("inf"), True, "0.9"])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay must"):
        training.make_train_step(linear, optax.sgd(0.1), ema_decay=decay)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs several devices")
def test_bfloat16_parameters_in_a_scan_under_sharded_jit():
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    optimizer = training.make_optimizer("adamw", weight_decay=0.1, learning_rate=0.5)
    step = training.make_train_step(linear, optimizer, skip_nonfinite="gradients")
    many = jax.jit(
        lambda state, xs: jax.lax.scan(lambda state, x: step(state, jax.random.key(0), {"x": x}), state, xs),
        donate_argnums=0,
    )
    state = training.make_train_state({"w": jnp.array(2.0, jnp.bfloat16)}, optimizer)
    xs = training.split_batch(jnp.array([[1.0, 1.0], [1.0, jnp.nan], [1.0, 1.0]]), mesh, axis=1)
    state, metrics = many(training.replicate(state, mesh), xs)
    np.testing.assert_array_equal(metrics["skipped"], [0, 1, 0])
    # Twice w <- w - 0.5 (1 + 0.1 w), rounded to the 8 bits of bfloat16.
    np.testing.assert_allclose(float(state.params["w"]), 2.0 - 0.6 - 0.5 * (1 + 0.14), rtol=2e-2)
    assert int(state.num_updates) == 2
