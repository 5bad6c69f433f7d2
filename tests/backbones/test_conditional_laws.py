"""Laws of the networks that are not called as (x, t, class labels). A new one joins by an entry of CALLS (calls.py)."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from calls import CALLS, Case
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusers_fn.backbones import ControlNet, Flux, MMDiT, PixArt, UNet2DCondition

pytestmark = pytest.mark.long  # compiles every transform of every network

ZERO_START = (ControlNet, Flux, MMDiT, PixArt, UNet2DCondition)


@pytest.fixture(scope="module", params=CALLS)
def case(request):
    return Case(*CALLS[request.param])


@pytest.fixture(scope="module")
def gradients(case):
    return jax.jit(case.gradients)(case.params)


def seen(path, net):
    """Whether a parameter has a gradient.

    The softmax cancels a bias of the keys. MMDiT's positions are fixed, and its last block does not use the queries of
    the text, as published.
    """
    name = "/".join(key.key for key in path)
    queries = f"block_{net.depth - 1}/attention/context_heads/query" if isinstance(net, MMDiT) else None
    fixed = queries is not None and (name == "positions" or name.startswith(queries))
    return not name.endswith("key/bias") and not fixed


def test_every_parameter_has_a_gradient(case, gradients):
    for path, grad in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.isfinite(grad).all(), path
        if seen(path, case.net):
            assert np.abs(grad).max() > 1e-4, path


def test_zero_start_and_training_moves_every_parameter(case):
    """The layers before a zero-initialised layer have no gradient at first: for two steps within a zero block.

    For three steps in the text's stream of a block of two streams, which reaches the output through later blocks.
    """
    params = jax.jit(lambda key: case.net.init(key, *case.args)["params"])(nets.quick_key(0))
    step = jax.jit(case.gradients)
    for i in range(4):
        grads, out = step(params)
        if isinstance(case.net, ZERO_START):
            assert np.all(out == 0) == (i == 0)
        params = nets.moved(params, grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad != 0) or not seen(path, case.net), path


def test_remat_gives_the_same_gradients(case, gradients):
    again = jax.jit(functools.partial(case.gradients, remat=True))(case.params)
    assert "remat" in str(jax.make_jaxpr(functools.partial(case.gradients, remat=True))(case.params))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(gradients)):
        # A bias of the keys has no gradient, because the softmax cancels it: only rounding is left.
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max() + 1e-6 * max(1.0, largest))


def test_remat_keeps_less_for_the_backward_pass(case):
    def kept(remat):
        """Returns the size of what is kept, without the parameters."""
        backward = jax.eval_shape(lambda params: jax.vjp(lambda p: case.run(p, remat=remat), params)[1], case.params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - sum(p.size for p in jax.tree.leaves(case.params))

    assert kept(True) < 0.3 * kept(False)  # 0.13, 0.25 and 0.09 measured


def test_bfloat16_computes_close_to_float32_with_float32_parameters(case, gradients):
    shapes = jax.eval_shape(case.net.clone(dtype=jnp.bfloat16).init, jax.random.key(0), *case.args)["params"]
    assert nets.structure(shapes) == nets.structure(case.params)
    out = jax.jit(functools.partial(case.run, dtype=jnp.bfloat16))(case.params)
    assert 0 < nets.relative_rms(out, gradients[1]) < 0.02
    low = jax.eval_shape(case.net.clone(param_dtype=jnp.bfloat16).init, jax.random.key(0), *case.args)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_keeps_statistics_softmax_and_sinusoids_in_float32(case):
    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in equation.params.values():
                for inner in value if isinstance(value, list | tuple) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from equations(inner)

    traced = jax.make_jaxpr(functools.partial(case.run, dtype=jnp.bfloat16))(case.params)
    delicate = [eq for eq in equations(traced.jaxpr) if eq.primitive.name in ("exp", "rsqrt", "sin", "reduce_sum")]
    assert {eq.primitive.name for eq in delicate} >= {"exp", "rsqrt", "reduce_sum"}
    assert all(eq.invars[0].aval.dtype == jnp.float32 for eq in delicate)


def test_vmap_over_parameters(case, gradients):
    both = jax.tree.map(lambda p: jnp.stack([p, 1.1 * p]), case.params)
    out = jax.jit(jax.vmap(case.run))(both)
    np.testing.assert_allclose(out[0], gradients[1], atol=1e-4)
    assert nets.relative_rms(out[1], out[0]) > 1e-2


def test_examples_do_not_see_each_other(case, gradients):
    run = jax.jit(lambda args: case.run(case.params, args))
    flipped = run(jax.tree.map(lambda leaf: leaf[::-1], case.args))
    np.testing.assert_allclose(flipped[::-1], gradients[1], atol=1e-4)


def test_sharded_over_batch_and_parameters(case, gradients):
    mesh = Mesh(np.array(jax.devices()), ("d",))

    def place(leaf):
        axes = [i for i, size in enumerate(leaf.shape) if size % 8 == 0]
        return jax.device_put(leaf, NamedSharding(mesh, P(*[None] * axes[0], "d") if axes else P()))

    params = jax.tree.map(place, case.params)
    args = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("d"))), case.args)
    assert sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)) > 10
    out = jax.jit(lambda params, args: case.run(params, args), out_shardings=NamedSharding(mesh, P("d")))(params, args)
    np.testing.assert_allclose(out, gradients[1], atol=1e-4)


def test_lowers_for_accelerators_and_for_pmap(case):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (case.params, case.args))
    run = functools.partial(case.run, dtype=jnp.bfloat16)
    exported = jax.export.export(jax.jit(run), platforms=["tpu", "cuda"])(*shapes)
    assert exported.platforms == ("tpu", "cuda")
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, 1, *leaf.shape[1:]), leaf.dtype), shapes[1])
    jax.pmap(case.run, in_axes=(None, 0)).lower(shapes[0], one)
