"""The random bits computed here equal JAX's, for every width, shape and placement."""

import re

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import diffusers_fn as dfn
from diffusers_fn import _random, _threefry

KEY = jax.random.key(11)
SHAPES = [(), (0,), (1,), (7,), (2, 3), (5, 4, 3, 2), (300, 401)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_bit_is_jaxs(shape):
    ours = _threefry.faster(KEY)
    assert str(jax.random.key_impl(ours)) != str(jax.random.key_impl(KEY))  # or this compares JAX with itself

    @jax.jit
    def draws(key):
        bits = [jax.random.bits(key, shape, dtype) for dtype in ("uint8", "uint16", "uint32")]
        normal = [jax.random.normal(key, shape, dtype) for dtype in ("float32", "bfloat16", "float16")]
        return bits, [numbers.astype("float32") for numbers in normal]

    got, wanted = draws(ours), draws(KEY)
    assert [bits.dtype for bits in got[0]] == ["uint8", "uint16", "uint32"]
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_every_bit_of_64_is_jaxs(x64):
    ours = _threefry.faster(KEY)
    np.testing.assert_array_equal(jax.random.bits(ours, (3, 5), "uint64"), jax.random.bits(KEY, (3, 5), "uint64"))
    np.testing.assert_array_equal(jax.random.normal(ours, (9,), "float64"), jax.random.normal(KEY, (9,), "float64"))
    np.testing.assert_array_equal(jax.random.randint(ours, (9,), 0, 1000), jax.random.randint(KEY, (9,), 0, 1000))


def test_splits_and_keys_folded_in_are_jaxs():
    ours = _threefry.faster(KEY)
    for change in (jax.random.split, lambda key: jax.random.fold_in(key, 5)):
        np.testing.assert_array_equal(jax.random.key_data(change(ours)), jax.random.key_data(change(KEY)))


def test_one_key_and_one_key_per_example_draw_what_jax_does():
    x = jnp.zeros((4, 5, 3))
    keys = jax.random.split(KEY, 4)
    np.testing.assert_array_equal(jax.jit(_random.normal)(KEY, x), jax.random.normal(KEY, x.shape))
    each = np.stack([jax.random.normal(key, x.shape[1:]) for key in keys])
    np.testing.assert_array_equal(jax.jit(_random.normal)(keys, x), each)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, key: (c, _random.normal(key, x[0])), 0, keys)[1], each)


def test_keys_of_other_generators_and_older_settings_are_unchanged():
    for key in (jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0)):
        assert _threefry.faster(key) is key
    with jax.threefry_partitionable(False):
        assert _threefry.faster(KEY) is KEY


def test_devices_draw_their_own_part_without_communication():
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    split = NamedSharding(mesh, PartitionSpec("batch"))
    x = jax.device_put(jnp.zeros((16, 6, 3)), split)
    draw = jax.jit(_random.normal, out_shardings=split).lower(KEY, x).compile()
    np.testing.assert_array_equal(draw(KEY, x), jax.random.normal(KEY, x.shape))
    for message in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert message not in draw.as_text()
    keys = jax.device_put(jax.random.split(KEY, 16), split)
    part = jax.shard_map(_random.normal, mesh=mesh, in_specs=PartitionSpec("batch"), out_specs=PartitionSpec("batch"))
    np.testing.assert_array_equal(jax.jit(part)(keys, x), _random.normal(keys, jnp.zeros(x.shape)))


def test_an_exported_program_draws_the_same_on_every_platform():
    draw = jax.jit(lambda data: _random.normal(jax.random.wrap_key_data(data), jnp.zeros((4, 3))))
    exported = jax.export.export(draw, platforms=["cpu", "cuda", "tpu"])(jax.random.key_data(KEY))
    np.testing.assert_array_equal(exported.call(jax.random.key_data(KEY)), jax.random.normal(KEY, (4, 3)))


@pytest.mark.parametrize(("platform", "loops"), [("cpu", 1), ("cuda", 0)])
def test_only_cpus_get_the_written_out_program(platform, loops):
    draw = jax.jit(lambda data: _random.normal(jax.random.wrap_key_data(data), jnp.zeros((4, 3))))
    program = jax.export.export(draw, platforms=[platform])(jax.random.key_data(KEY)).mlir_module()
    assert program.count("stablehlo.while") == loops  # the loop that keeps XLA from fusing the bits


@pytest.mark.parametrize(("size", "sorts"), [(63, 0), (64, 1)])
def test_a_loop_that_draws_many_numbers_holds_a_sort(size, sorts):
    """A sort keeps XLA from compiling the whole loop into one kernel on one core."""
    draw = jax.jit(lambda key, x: jax.lax.scan(lambda x, key: (_random.normal(key, x), None), x, key)[0])
    for keys in (KEY, jax.random.split(KEY, 3)):
        lowered = draw.lower(jnp.stack([keys] * 5), jnp.ones((*keys.shape, size)))
        assert lowered.as_text().count("stablehlo.sort") == sorts
        # JAX 0.12 calls a loop in one kernel `small_call`.
        assert "f32" not in "".join(re.findall(r"= (.*) call\(.*small_call", lowered.compile().as_text())) or not sorts


def test_a_row_of_a_sampler_costs_one_fold_in_and_one_draw():
    levels = dfn.grids.karras(5)
    solver, x = dfn.solvers.ancestral(levels), jnp.zeros((2, 3))
    for key in (KEY, jax.random.split(KEY, 2)):
        denoise = dfn.oracles.gaussian(0.0, 1.0)
        text = str(jax.make_jaxpr(lambda key: dfn.sample(key, denoise, solver, x).x0)(key))  # noqa: B023
        assert text.count("random_fold_in") == text.count("random_bits") == 1
        assert "random_split" not in text


def test_dropout_drops_what_it_would_with_jaxs_own_bits():
    x, module = jnp.ones((8, 9, 3)), nn.Dropout(0.3, deterministic=False)
    drop = jax.jit(lambda key: module.apply({}, x, rngs={"dropout": key}))
    np.testing.assert_array_equal(drop(_threefry.faster(KEY)), drop(KEY))
    assert 0 < float(jnp.mean(drop(KEY) == 0)) < 0.6
