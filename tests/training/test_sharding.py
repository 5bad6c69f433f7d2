"""Meshes, rules and placement: which arrays are split, what they weigh on a device, batches, keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn import training
from diffusers_fn.from_config.network import NETWORKS, make_autoencoder, make_backbone, make_classifier

SHAPES = {"mlp": (2,), "unet1d": (16, 4), "simple_autoencoder": (2,), "mlp_classifier": (2,)}


@functools.cache
def shapes_of(name, **fields):
    """The shapes of the parameters of a network at its default size."""
    shape = SHAPES.get(name, (32, 32, 4 if name == "unet2d_condition" else 3))
    settings = ConfigDict({"name": name, **fields})
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    if "autoencoder" in name:
        net, args = make_autoencoder(settings, shape), (x,)
    elif "classifier" in name:
        net, args = make_classifier(settings, shape, 10), (x, t)
    else:
        net, args = make_backbone(settings, shape, 10), (x, t, jax.ShapeDtypeStruct((1,), jnp.int32))
    return jax.eval_shape(net.init, jax.random.key(0), *args)["params"]


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def bytes_on_a_device(tree, where):
    sizes = jax.tree.map(lambda leaf, at: np.prod(at.shard_shape(leaf.shape)) * leaf.dtype.itemsize, tree, where)
    return sum(jax.tree.leaves(sizes))


def test_a_mesh_has_the_three_axes_and_fits_the_devices():
    assert dict(training.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = training.make_mesh(2, -1, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))  # tensor innermost
    assert training.make_mesh(1, 2, 1, devices=jax.devices()[6:]).devices[0, 0, 0].id == 6
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        training.make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        training.make_mesh(data=2, fsdp=2)
    for sizes in ((-1, -1, 1), (0, 1, 1), (8, -2, 1)):
        with pytest.raises(ValueError, match="must be at least 1, and one of them may be -1"):
            training.make_mesh(*sizes)


@pytest.mark.long
def test_every_rule_splits_an_array_of_one_of_its_networks():
    """A rule whose path or axis is out of date would silently split nothing."""
    mesh = training.make_mesh(1, 4, 2)
    unused = {rule for rules in training.RULES.values() for rule in rules}
    for name, rules in training.RULES.items():
        tree = shapes_of(name, **({"num_heads": 2} if name in ("unet", "unet1d") else {}))
        for rule in rules:
            where = jax.tree.leaves(training.shardings(tree, mesh, [rule, (".*", P())]))
            wanted = "tensor" if "tensor" in rule[1] else "fsdp"
            if any(wanted in at.spec for at in where):
                unused.discard(rule)
    assert not unused
    assert set(training.RULES) == set(NETWORKS)


@pytest.mark.parametrize("name", sorted(set(NETWORKS) - {"mlp_classifier", "simple_autoencoder"}))
def test_over_fsdp_each_device_holds_an_eighth(name):
    """Of networks that are large enough to be split; those left out are tiny."""
    tree, mesh = shapes_of(name, **({"channels": 128} if name == "unet1d" else {})), training.make_mesh(1, 8, 1)
    held = bytes_on_a_device(tree, training.shardings(tree, mesh, training.RULES[name]))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    assert total / 8 <= held <= 1.05 * total / 8, held / (total / 8)


def test_a_training_state_of_dit_b_is_an_eighth_on_each_device():
    """Adam's two moments, the EMA and the accumulated gradients lie like the parameters, scanned or not."""
    optimizer = training.make_optimizer("adam", learning_rate=1e-3, num_steps=10, accumulation=2)
    mesh, rules = training.make_mesh(1, 8, 1), training.RULES["dit"]
    for scan in (False, True):
        net = dfn.backbones.DiT.B(scan_blocks=scan)
        params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((1, 32, 32, 4)), jnp.ones(1), jnp.ones(1, int))
        state = jax.eval_shape(lambda params: training.make_train_state(params["params"], optimizer), params)
        where = training.shardings(state, mesh, rules)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        assert bytes_on_a_device(state, where) <= 1.05 * total / 8
        compiled = jax.jit(lambda state: state.step, in_shardings=(where,), keep_unused=True).lower(state).compile()
        assert compiled.memory_analysis().argument_size_in_bytes == bytes_on_a_device(state, where)
        by_name, of_params = by_path(where), by_path(where.params)
        for path, at in of_params.items():
            same = [other for name, other in by_name.items() if name.endswith(f"/{path}")]
            assert len(same) == 5  # params, ema, mu, nu, acc_grads
            assert all(other == at for other in same)


def test_rules_fit_the_last_axes_and_what_the_mesh_divides():
    mesh = training.make_mesh(1, 4, 2)
    rules = [("kernel$", P("fsdp", "tensor")), ("whole$", P())]

    def spec(name, *shape, **options):
        tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32)}
        return tuple(training.shardings(tree, mesh, rules, **options)[name].spec)

    assert spec("kernel", 256, 128) == ("fsdp", "tensor")
    assert spec("kernel", 4, 256, 128) == (None, "fsdp", "tensor")  # the depth of a scan is not split
    assert spec("kernel", 4, 255, 129) == (None, None, None)
    assert spec("kernel", 255, 128) == (None, "tensor")
    assert spec("kernel", 256, 127) == ("fsdp", None)
    assert spec("kernel", 8, 8) == (None, "tensor")  # small
    assert spec("kernel", 8, 8, min_size=0) == ("fsdp", "tensor")
    assert spec("kernel", 250, 128, min_size=0) == (None, "tensor")
    assert spec("whole", 256, 128) == (None, None)
    assert spec("other", 64, 512) == (None, "fsdp")  # the largest axis that is divisible
    assert spec("other", 512, 64) == ("fsdp", None)
    assert spec("other", 513, 64) == (None, "fsdp")
    assert spec("other") == ()
    data = Mesh(np.asarray(jax.devices()), ("data",))
    tree = {"kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
    assert training.shardings(tree, data, rules)["kernel"].is_fully_replicated


def test_batches_are_split_over_data_and_fsdp_and_whole_over_tensor():
    mesh = training.make_mesh(2, 2, 2)
    batch = {"x": np.arange(24.0).reshape(8, 3), "key": jax.random.split(jax.random.key(0), 8)}
    placed = training.split_batch(batch, mesh)
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(2, 3)}
    assert placed["key"].sharding.shard_shape((8,)) == (2,)
    np.testing.assert_array_equal(placed["x"], batch["x"])
    steps = training.split_batch(np.ones((5, 4, 3)), mesh, axis=1)
    assert steps.sharding.shard_shape(steps.shape) == (5, 1, 3)
    with pytest.raises(ValueError, match=r"shape \(6, 3\) cannot be split evenly over 4 devices"):
        training.split_batch(np.ones((6, 3)), mesh)
    whole = training.replicate({"key": jax.random.key(3), "x": np.ones(3)}, mesh)
    assert jax.tree.all(jax.tree.map(lambda leaf: leaf.sharding.is_fully_replicated, whole))
    np.testing.assert_array_equal(jax.random.key_data(whole["key"]), jax.random.key_data(jax.random.key(3)))


def test_a_whole_tree_is_placed_part_by_part():
    mesh = training.make_mesh(1, 8, 1)
    tree = {"w": np.arange(2.0**14).reshape(128, 128), "b": np.ones(128)}
    placed = training.place(tree, training.shardings(tree, mesh))
    assert placed["w"].sharding.shard_shape((128, 128)) == (128, 16)
    assert placed["b"].sharding.is_fully_replicated
    np.testing.assert_array_equal(placed["w"], tree["w"])
