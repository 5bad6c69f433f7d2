"""Floating-point operations counted in a jaxpr: exact where they are known, the same with and without loops."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from experiments import flops, monitor

BATCH, WIDTH, DEPTH = 4, 8, 5


def layers(weights, x, *, scanned, remat=False):
    """A network of DEPTH products."""
    layer = lambda x, w: (jnp.tanh(x @ w), None)  # noqa: E731
    layer = jax.checkpoint(layer) if remat else layer
    if scanned:
        return lax.scan(layer, x, weights)[0]
    for w in weights:
        x, _ = layer(x, w)
    return x


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_a_training_step_costs_three_forward_passes_and_a_fourth_with_remat(scanned, remat):
    weights, x = jnp.ones((DEPTH, WIDTH, WIDTH)), jnp.ones((BATCH, WIDTH))
    forward = jax.jit(functools.partial(layers, scanned=scanned, remat=remat))
    one_pass = 2 * DEPTH * BATCH * WIDTH**2
    assert flops.count(forward, weights, x) == one_pass
    step = jax.jit(jax.grad(lambda weights, x: forward(weights, x).sum(), argnums=(0, 1)))
    assert flops.count(step, weights, x) == (4 if remat else 3) * one_pass


def test_without_loops_the_count_is_that_of_xla():
    weights, x = jnp.ones((DEPTH, 64, 64)), jnp.ones((64, 64))
    step = jax.jit(jax.grad(lambda weights, x: layers(weights, x, scanned=False).sum()))
    wanted = step.lower(weights, x).compile().cost_analysis()["flops"]
    assert flops.count(step, weights, x) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_convolutions_and_their_gradients(stride, groups):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    wanted = 2 * 2 * (8 // stride) ** 2 * 6 * 9 * 4 // groups
    assert flops.count(jax.jit(conv), x, kernel) == wanted
    step = jax.jit(jax.grad(lambda x, kernel: conv(x, kernel).sum() ** 2, argnums=(0, 1)))
    assert flops.count(step, x, kernel) == 3 * wanted


def test_a_condition_counts_its_costliest_branch_and_shards_count_together():
    x = jnp.ones((8, 8))
    chosen = jax.jit(lambda flag, x: lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x))
    assert flops.count(chosen, True, x) == 2 * 2 * 8**3
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("d",))
    shards = jax.jit(jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d")))
    assert flops.count(shards, x, x) == 2 * 8**3


def test_the_peak_of_the_longest_name():
    assert flops.peak("TPU v5 lite") == flops.peak("TPU v5e") < flops.peak("TPU v5p") == flops.peak("TPU v5")
    assert flops.peak("NVIDIA H100 PCIe") < flops.peak("NVIDIA H100 80GB HBM3")
    assert flops.peak("cpu") is None


def test_speeds_are_given_per_device_and_as_a_share_of_a_known_peak():
    devices = jax.device_count()
    assert devices == 8
    found = monitor.speeds(2.0, 16, 1e9, 1e9)
    assert found["examples_per_second"] == 32
    assert found["examples_per_second_per_device"] == 4
    assert found["flops_per_second"] == 2e9
    assert math.isclose(found["flops_utilization"], 0.25)
    assert "flops_utilization" not in monitor.speeds(2.0, 16, 1e9, None)
    assert set(monitor.speeds(2.0, 16, None, 1e9)) == {"examples_per_second", "examples_per_second_per_device"}
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(250_000)).compile()
    assert "1.0 MB of arguments" in monitor.memory_per_device(compiled)
    assert monitor.memory_per_device(None) == ""
