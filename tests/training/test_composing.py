"""The training step under pmap, shard_map and sharded jit, against gradient descent written in NumPy.

Gradient descent, and not Adam: the size of a gradient must be right, and Adam's step does not depend on it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusers_fn import losses, training

DEVICES, BATCH, STEPS, RATE, DECAY = 8, 16, 3, 0.1, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(BATCH, 8)), RNG.normal(size=BATCH)
START = {"w": RNG.normal(size=8), "b": RNG.normal(size=())}
# Sums of at most 16 float32 products in another order, three times.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
WAYS = ["pmap", "shard_map", "shard_map unchecked"]


def loss(params, key, batch):
    """Least squares, (x w + b - y)^2 / 2."""
    residual = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return residual**2 / 2, {"index": batch["index"]}


def descent(max_norm=np.inf):
    """The same training in float64: parameters, EMA and metrics after each step."""
    w, b = START["w"], START["b"]
    ema, history = np.array([*w, b]), []
    for _ in range(STEPS):
        residual = X @ w + b - Y
        gradient = np.array([*(X.T @ residual / BATCH), residual.mean()])
        norm = np.linalg.norm(gradient)
        update = -RATE * gradient * min(1.0, max_norm / norm)
        w, b = w + update[:-1], b + update[-1]
        now = np.array([*w, b])
        ema = DECAY * ema + (1 - DECAY) * now
        history.append(
            {
                "params": now,
                "ema": ema,
                "loss": np.mean(residual**2) / 2,
                "grad_norm": norm,
                "update_norm": np.linalg.norm(update),
                "param_norm": np.linalg.norm(now),
            }
        )
    return history


def flat(params):
    return np.array([*np.ravel(params["w"]), np.ravel(params["b"])[0]])


def check(history, wanted):
    for (state, metrics), want in zip(history, wanted, strict=True):
        np.testing.assert_allclose(flat(state.params), want["params"], **CLOSE)
        np.testing.assert_allclose(flat(state.ema), want["ema"], **CLOSE)
        for name in ("loss", "grad_norm", "update_norm", "param_norm"):
            np.testing.assert_allclose(np.unique(metrics[name]), want[name], err_msg=name, **CLOSE)


def start(optimizer, extras=None):
    return training.make_train_state(jax.tree.map(jnp.float32, START), optimizer, extras)


def data():
    return {"x": jnp.float32(X), "y": jnp.float32(Y), "index": jnp.arange(BATCH, dtype=jnp.float32)}


def run(step, state, batch, keys):
    history = []
    for _ in range(STEPS):
        state, metrics = step(state, keys, batch)
        history.append((state, metrics))
    return jax.device_get(history)


def whole(way, make, state, keys=None):
    """Three steps with whole parameters, the batch split over eight devices."""
    batch, keys = data(), jax.random.split(jax.random.key(0), BATCH) if keys is None else keys
    if way == "pmap":
        by_device = lambda a: a.reshape(DEVICES, -1, *a.shape[1:])  # noqa: E731
        batch, keys = jax.tree.map(by_device, (batch, keys))
        return run(jax.pmap(make(), "batch", in_axes=(None, 0, 0), out_axes=None), state, batch, keys)
    kind = AxisType.Explicit if way == "explicit jit" else AxisType.Auto
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(kind,))
    state, (batch, keys) = training.replicate(state, mesh), training.split_batch((batch, keys), mesh)
    step = make()
    if way.startswith("shard_map"):
        specs = {"in_specs": (P(), P("batch"), P("batch")), "out_specs": P(), "check_vma": way == "shard_map"}
        step = jax.shard_map(step, mesh=mesh, **specs)
    return run(jax.jit(step), state, batch, keys)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("way", [*WAYS, "auto jit", "explicit jit"])
def test_the_whole_batch_on_every_layout(way, max_norm):
    clip = [] if max_norm is None else [training.clip_by_global_norm(max_norm)]
    optimizer = optax.chain(*clip, optax.sgd(RATE))
    name = None if way.endswith("jit") else "batch"
    make = lambda: training.make_train_step(loss, optimizer, ema_decay=DECAY, axis_name=name)  # noqa: E731
    check(whole(way, make, start(optimizer)), descent(max_norm or np.inf))


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_the_callers(way):
    optimizer = optax.chain(training.clip_by_global_norm(0.5), optax.sgd(RATE))
    mean = lambda tree: jax.lax.pmean(tree, "batch")  # noqa: E731
    make = lambda: training.make_train_step(loss, optimizer, ema_decay=DECAY, reduce=mean)  # noqa: E731
    check(whole(way, make, start(optimizer)), descent(0.5))


@pytest.mark.parametrize("way", [*WAYS, "auto jit", "explicit jit"])
def test_extras_are_computed_from_all_examples_in_order(way):
    def update_extras(extras, metrics):
        record = losses.update_loss_second_moment(extras["record"], jnp.zeros(BATCH, jnp.int32), metrics["index"])
        return {"seen": metrics["index"], "record": record}

    optimizer = optax.sgd(RATE)
    extras = {"seen": jnp.zeros(BATCH), "record": losses.loss_second_moment(1, STEPS * BATCH)}
    make = functools.partial(
        training.make_train_step,
        lambda params, key, batch, extras: loss(params, key, batch),
        optimizer,
        axis_name=None if way.endswith("jit") else "batch",
        update_extras=update_extras,
    )
    state, _ = whole(way, make, start(optimizer, extras))[-1]
    np.testing.assert_array_equal(state.extras["seen"], np.arange(BATCH))
    np.testing.assert_array_equal(state.extras["record"].history[0], np.tile(np.arange(BATCH), STEPS))


def test_extras_of_a_part_are_refused():
    make = functools.partial(training.make_train_step, loss, optax.sgd(RATE), update_extras=lambda extras, _: extras)
    with pytest.raises(ValueError, match="update_extras needs the metrics of all examples: pass axis_name"):
        make(reduce=lambda tree: tree)
    with pytest.raises(ValueError, match="param_specs needs axis_name"):
        make(param_specs=P())
    step = make(axis_name="batch")
    with pytest.raises(ValueError, match="'batch' is no axis of a surrounding pmap or shard_map"):
        step(start(optax.sgd(RATE)), jax.random.key(0), data())


# Parameters that are shards.


def gathering_loss(axis):
    def sharded(params, key, batch):
        return loss({**params, "w": jax.lax.all_gather(params["w"], axis, tiled=True)}, key, batch)

    return sharded


SPECS = {"w": P("fsdp"), "b": P()}
LAYOUTS = {"fsdp": (8,), "data and fsdp": (4, 2)}


def shards(layout, way, optimizer, state=None, **options):
    """Three steps with w split over fsdp, the batch over all axes."""
    names = ("data", "fsdp")[-len(LAYOUTS[layout]) :]
    checked = way == "shard_map"
    specs = {} if checked else {"param_specs": SPECS}
    step = training.make_train_step(
        gathering_loss("fsdp"), optimizer, ema_decay=DECAY, axis_name=names, **specs, **options
    )
    state, batch, keys = state or start(optimizer), data(), jax.random.split(jax.random.key(0), BATCH)
    in_state = jax.tree.map(lambda a: P("fsdp") if a.ndim == 1 else P(), state)
    if way == "pmap":
        split = lambda a, spec: a.reshape(DEVICES, -1) if spec else jnp.stack([a] * DEVICES)  # noqa: E731
        state = jax.tree.map(split, state, in_state)
        batch, keys = jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), (batch, keys))
        return run(jax.pmap(step, "fsdp"), state, batch, keys)
    mesh = jax.make_mesh(LAYOUTS[layout], names, axis_types=(AxisType.Auto,) * len(names))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(in_state, P(names), P(names)), out_specs=(in_state, P()), check_vma=checked
    )
    return run(jax.jit(mapped), state, batch, keys)


CASES = [("fsdp", way) for way in WAYS] + [("data and fsdp", way) for way in WAYS[1:]]


@pytest.mark.parametrize(("layout", "way"), CASES)
def test_norms_and_clipping_of_shards(layout, way):
    optimizer = optax.chain(training.clip_by_global_norm(0.5), optax.sgd(RATE))
    check(shards(layout, way, optimizer), descent(0.5))


@pytest.mark.parametrize("way", ["shard_map", "shard_map unchecked"])
def test_accumulated_gradients_of_shards(way):
    """AdamW with clipping, two batches per update, equals the same on one device."""
    optimizer = training.make_optimizer("adamw", learning_rate=0.1, grad_clip=0.5, accumulation=2, weight_decay=0.1)
    plain = run(training.make_train_step(loss, optimizer, ema_decay=DECAY), start(optimizer), data(), jax.random.key(0))
    for (state, metrics), (want, norms) in zip(shards("data and fsdp", way, optimizer), plain, strict=True):
        np.testing.assert_allclose(flat(state.params), flat(want.params), **CLOSE)
        np.testing.assert_allclose(flat(state.ema), flat(want.ema), **CLOSE)
        for name in ("grad_norm", "update_norm", "param_norm"):
            np.testing.assert_allclose(metrics[name], norms[name], **CLOSE)
    assert float(plain[0][1]["update_norm"]) == 0 < float(plain[1][1]["update_norm"])


@pytest.mark.parametrize("mode", [True, "gradients"])
@pytest.mark.parametrize(("layout", "way"), CASES)
def test_all_devices_skip_the_same_step(layout, way, mode):
    """A number that is not finite in one shard alone: of the update with True, of the gradient with "gradients"."""

    def spoil(updates, state, params=None):
        bad = lambda u, p: jnp.where(jnp.abs(p - START["w"][3]) < 1e-6, jnp.inf, u)  # noqa: E731
        return jax.tree.map(bad, updates, params), state

    optimizer = optax.sgd(RATE)
    state = start(optimizer)
    if mode is True:
        optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), spoil)
        state = start(optimizer)
    else:
        state = training.make_train_state({**state.params, "w": state.params["w"].at[3].set(jnp.nan)}, optimizer)
    for after, metrics in shards(layout, way, optimizer, state, skip_nonfinite=mode):
        np.testing.assert_array_equal(flat(after.params), flat(state.params))
        np.testing.assert_array_equal(metrics["skipped"], 1.0)
        np.testing.assert_array_equal(after.num_updates, 0)


@pytest.mark.parametrize("checked", [True, False])
def test_tensor_parallel_shards(checked):
    """The features split over "model", each device of it with the same examples."""

    def parallel(params, key, batch):
        product = jax.lax.psum(batch["x"] @ params["w"], "model")
        residual = product + params["b"] - batch["y"]
        return residual**2 / 2, {"index": batch["index"]}

    optimizer = optax.chain(training.clip_by_global_norm(0.5), optax.sgd(RATE))
    names = ("data", "model")
    given = {} if checked else {"param_specs": {"w": P("model"), "b": P()}}
    step = training.make_train_step(parallel, optimizer, ema_decay=DECAY, axis_name=names, **given)
    state = start(optimizer)
    in_state = jax.tree.map(lambda a: P("model") if a.ndim == 1 else P(), state)
    in_batch = {"x": P("data", "model"), "y": P("data"), "index": P("data")}
    mapped = jax.shard_map(
        step,
        mesh=jax.make_mesh((4, 2), names, axis_types=(AxisType.Auto,) * 2),
        in_specs=(in_state, P("data"), in_batch),
        out_specs=(in_state, P()),
        check_vma=checked,
    )
    check(run(jax.jit(mapped), state, data(), jax.random.split(jax.random.key(0), BATCH)), descent(0.5))


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_a_model_on_each_device(way):
    """Without axis_name nothing is shared: norms and clipping are those of each device's own model."""
    optimizer = optax.chain(training.clip_by_global_norm(0.5), optax.sgd(RATE))
    step = training.make_train_step(loss, optimizer, ema_decay=DECAY)
    states = jax.vmap(lambda scale: jax.tree.map(lambda a: a * scale.astype(a.dtype), start(optimizer)))(
        jnp.arange(1.0, DEVICES + 1)
    )
    keys = jax.random.key(0)
    want = jax.vmap(step, (0, None, None))(states, keys, data())
    if way == "pmap":
        got = jax.pmap(step, in_axes=(0, None, None))(states, keys, data())
    else:
        one = lambda tree: jax.tree.map(lambda a: a[0], tree)  # noqa: E731
        each = lambda *args: jax.tree.map(lambda a: a[None], step(one(args[0]), *args[1:]))  # noqa: E731
        mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
        got = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=(P("d"), P(), P()), out_specs=P("d")))(
            states, keys, data()
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)
    assert len(np.unique(got[1]["grad_norm"].round(3))) == DEVICES


def test_the_norm_of_shards():
    tree = {"w": np.arange(8.0, dtype=np.float32), "b": np.float32(2.0)}
    want = np.sqrt(np.sum(np.arange(8.0) ** 2) + 4)
    np.testing.assert_allclose(training.global_norm(tree), want, rtol=1e-6)
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Auto,))
    split = {"w": P("d"), "b": P()}
    mapped = functools.partial(jax.shard_map, mesh=mesh, in_specs=(split,), out_specs=P())
    for norm in (training.global_norm, lambda tree: training.global_norm(tree, "d")):
        np.testing.assert_allclose(mapped(norm)(tree), want, rtol=1e-6)
    by_specs = lambda tree: training.global_norm(tree, "d", split)  # noqa: E731
    np.testing.assert_allclose(mapped(by_specs, check_vma=False)(tree), want, rtol=1e-6)
    with pytest.raises(ValueError, match="not known which arrays are split over d: pass their PartitionSpecs"):
        mapped(lambda tree: training.global_norm(tree, "d"), check_vma=False)(tree)


def test_parameters_split_over_explicit_axes_have_the_norm_of_the_whole():
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(AxisType.Explicit,))
    tree = jax.device_put({"w": jnp.arange(16.0).reshape(8, 2)}, NamedSharding(mesh, P("d")))
    np.testing.assert_allclose(jax.jit(training.global_norm)(tree), np.linalg.norm(np.arange(16)), rtol=1e-6)
