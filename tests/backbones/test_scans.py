"""Blocks in a scan: equal to the loop with the same parameters, with remat, dropout, and one embedding per block."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn import training
from diffusers_fn.backbones import DiT, UViT, stack_blocks, unstack_blocks

X = jnp.asarray(np.random.default_rng(0).standard_normal([8, 8, 8, 3]), jnp.float32)
T = jnp.linspace(0, 900, 8)
LABELS = jnp.arange(8) % 3
FIELDS = {"image_size": 8, "hidden_size": 16, "num_heads": 2, "num_classes": 3}
NETS = {
    "dit": DiT(depth=3, **FIELDS),
    "dit_embeddings": DiT(depth=3, shared_embedding=False, **FIELDS),
    "uvit": UViT(depth=4, **FIELDS),
    "uvit_no_skips": UViT(depth=4, long_skips=False, **FIELDS),
}


def value_and_grad(net):
    def loss(params, **apply):
        return jnp.mean((net.apply({"params": params}, X, T, LABELS, **apply) - X[:, ::-1]) ** 2)

    return jax.jit(jax.value_and_grad(loss), static_argnames="train")


@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(name, marks=pytest.mark.long) for name in NETS if name != "dit")]
)
def test_a_scan_computes_what_the_loop_computes(name):
    """Float32 rounding of sums in another order."""
    net = NETS[name]
    params = nets.random_params(net, X)
    expected, gradient = value_and_grad(net)(params)
    stacked = stack_blocks(params)
    for remat in (False, True):
        scanned = net.clone(scan_blocks=True, remat=remat)
        assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
            jnp.shape, jax.eval_shape(scanned.init, jax.random.key(0), X, T, LABELS)["params"]
        )
        found, grads = value_and_grad(scanned)(stacked)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        for got, leaf in zip(jax.tree.leaves(unstack_blocks(grads)), jax.tree.leaves(gradient)):
            np.testing.assert_allclose(got, leaf, rtol=1e-4, atol=1e-6 * float(jnp.abs(leaf).max()) + 1e-9)


@pytest.mark.parametrize("name", ["dit", "uvit"])
def test_every_block_of_a_scan_has_its_own_start_and_dropout(name):
    net = NETS[name].clone(scan_blocks=True, dropout=0.5, zero_init_output=False)
    params = jax.jit(net.init)(jax.random.key(0), X, T, LABELS)["params"]
    kernel = params["blocks" if name == "dit" else "in_blocks"]["mlp"]["dense_0"]["kernel"]
    assert float(jnp.std(kernel[0] - kernel[1])) > 1.2 * float(jnp.std(kernel[0]))  # independent: sqrt(2)

    def run(seed):
        return jax.jit(net.apply, static_argnames="train")(
            {"params": params}, X, T, LABELS, train=True, rngs={"dropout": jax.random.key(seed)}
        )

    assert nets.relative_rms(run(0), run(1)) > 1e-3
    np.testing.assert_array_equal(run(0), run(0))


def test_stacks_of_a_whole_training_state_come_apart_again():
    params = nets.random_params(NETS["uvit"], X)
    optimizer = training.make_optimizer("adam", learning_rate=1e-3, num_steps=10)
    state = training.make_train_state(params, optimizer)
    stacked = stack_blocks(state)
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(state))
    again = unstack_blocks(stacked)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state)))
