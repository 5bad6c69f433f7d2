"""One run on every layout of the devices: the same losses and parameters, one compilation, gathered parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusers_fn as dfn
from experiments import states
from experiments.tasks import make_task
from experiments.train import train

NETS = {
    "dit": {"name": "dit", "hidden_size": 64, "depth": 3, "num_heads": 4, "qkv_bias": False, "scan_blocks": True},
    "unet": {
        "name": "unet", "channels": 64, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 8,
        "attention_resolutions": (),
    },
}  # fmt: skip
LAYOUTS = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp_tensor": (1, 4, 2)}


def small_config(backbone, **training):
    config = dfn.default_config()
    settings = {"batch_size": 8, "num_steps": 50, "warmup_steps": 10, "steps_per_call": 10, **training}
    return dfn.customise(config, backbone=backbone, data={"shape": (4, 4, 1), "num_classes": 10}, training=settings)


def layout(sizes):
    return dfn.training.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def parts(config, workdir, mesh):
    task = make_task(config, workdir)
    like = states.state_like(config, task.init, task.extras_like, mesh)
    return task, like, states.make_train_steps(config, task.loss, task.update_extras, mesh, like)


def batches(config, mesh):
    settings, rng = config.training, np.random.default_rng(0)
    size = (settings.num_steps, settings.batch_size)
    stack = {"image": rng.standard_normal([*size, 4, 4, 1], np.float32), "label": rng.integers(0, 10, size)}
    for start in range(0, settings.num_steps, settings.steps_per_call):
        chosen = {name: each[start : start + settings.steps_per_call] for name, each in stack.items()}
        yield dfn.training.split_batch(chosen, mesh, axis=1)


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_a_run_is_the_same_on_every_layout(name, tmp_path):
    """50 steps. Losses differ by the order of float32 sums; Adam divides by the gradient's size, so that parameters
    without a gradient, such as the bias of attention's keys, move by rounding alone: the absolute bound is 1e-4 of the
    50 * 1e-3 that Adam moves an entry."""
    found = {}
    for which, sizes in LAYOUTS.items():
        config, mesh = small_config(NETS[name]), layout(sizes)
        task, like, train_steps = parts(config, tmp_path, mesh)
        state = states.new_state(config, task.init, jax.random.key(1), None, mesh)
        split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
        assert len(split) > (20 if which == "fsdp_tensor" else -1)
        key, losses = dfn.training.replicate(jax.random.key(2), mesh), []
        for batch in batches(config, mesh):
            state, metrics = train_steps(state, key, batch)
            losses.append(np.asarray(metrics["loss"]))
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, like)
        assert train_steps._cache_size() == 1
        found[which] = np.concatenate(losses), jax.device_get((state.params, state.ema))
    losses, trees = found["one"]
    assert losses[-5:].mean() < losses[:5].mean()
    for which in ("data", "fsdp_tensor"):
        np.testing.assert_allclose(found[which][0], losses, rtol=1e-5)
        for got, leaf in zip(jax.tree.leaves(found[which][1]), jax.tree.leaves(trees), strict=True):
            assert np.linalg.norm(got - leaf) <= 1e-4 * np.linalg.norm(leaf) + 5e-6 * np.sqrt(leaf.size)


@pytest.mark.long
def test_parameters_are_gathered_and_their_gradients_are_never_whole(tmp_path):
    """XLA's CPU compiler writes a reduce-scatter as an all-reduce of which a slice is used, inside the scan."""
    config, mesh = small_config(NETS["dit"], steps_per_call=1), layout((1, 8, 1))
    _, like, train_steps = parts(config, tmp_path, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.tree.map(lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=each.sharding),
                         next(batches(config, mesh)))  # fmt: skip
    compiled = train_steps.lower(like, key, batch).compile()
    blocks = sum(leaf.size for leaf in jax.tree.leaves(like.params["blocks"])) // 3
    text = compiled.as_text()
    largest = max(sum(map(_size, re.findall(r"f32\[([\d,]*)\]", line))) for line in _lines(text, "all-reduce"))
    assert _lines(text, "all-gather")
    assert largest <= 1.01 * blocks  # the gradients of one block, not of all of them
    held = compiled.memory_analysis().argument_size_in_bytes
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))
    assert held < 0.5 * total


def _lines(text, operation):
    found = re.findall(rf"= (\(?[^=]*?) {operation}(?:-start)?\(", text)
    return [each for each in found if "f32" in each]


def _size(dims):
    return int(np.prod([int(each) for each in dims.split(",") if each]))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_tracing():
    config = small_config({"name": "mlp"}, batch_size=12)
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of mesh.data \* mesh.fsdp = 8"):
        states.make_mesh(config)
    config.mesh.tensor = 2
    assert dict(states.make_mesh(config).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    config.mesh.fsdp = 3
    with pytest.raises(ValueError, match=r"config.mesh: a mesh of .* does not fit 8 devices"):
        states.make_mesh(config)


@pytest.mark.long
def test_a_run_over_fsdp_compiles_its_step_once_and_resumes(tmp_path, caplog):
    config = dfn.customise(
        dfn.default_config(),
        backbone={"name": "mlp", "hidden_size": 128, "depth": 1},
        data={"name": "toy2d", "shape": (2,), "num_examples": 64, "num_classes": 0},
        training={
            "num_steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2, "sample_every": 0,
            "heldout_every": 0, "accumulation": 2, "warmup_steps": 1,
        },
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
    )  # fmt: skip
    with jax.log_compiles():
        train(config, tmp_path / "run")
    compiled = re.compile(r"Finished XLA compilation of (jit\()?train_steps")
    assert sum(bool(compiled.match(record.getMessage())) for record in caplog.records) == 1
    config.training.num_steps = 6
    config.mesh.update({"data": 8, "fsdp": 1, "tensor": 1})  # another layout needs no --allow_changes
    train(config, tmp_path / "run", allow_changes=True)
    assert "done" not in (tmp_path / "run" / "changes.jsonl").read_text()


def test_parameters_are_born_equal_on_every_layout(tmp_path):
    """Each device draws its own part of the same random numbers."""
    config = small_config({**NETS["dit"], "depth": 1})
    task = make_task(config, tmp_path)
    whole = states.new_state(config, task.init, jax.random.key(1), None)
    split = states.new_state(config, task.init, jax.random.key(1), None, layout((1, 4, 2)))
    for got, leaf in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-6, atol=1e-7)
    kernel = split.params["blocks"]["mlp"]["dense_0"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 16, 128)
    assert jnp.array_equal(split.ema["blocks"]["mlp"]["dense_0"]["kernel"], kernel)
