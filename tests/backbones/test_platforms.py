"""Backbones on meshes with axes of type Explicit, and exported for batches of any size."""

import calls
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import nets
import numpy as np
import pytest
import test_dit
import test_unet_laws
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusers_fn.backbones.ops import Dropout

pytestmark = pytest.mark.long  # compiles every network for meshes and for other platforms

NETS = {**test_unet_laws.CASES, **calls.CALLS, **test_dit.NETS}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))


def loss(net, variables, args):
    """Returns a scalar that depends on the whole output, and the output."""
    out = net.apply(variables, *args)
    return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(out)), out


def shapes(net, args):
    return jax.eval_shape(net.init, jax.random.key(0), *args)


@pytest.mark.parametrize("name", NETS)
def test_an_explicit_axis_splits_the_batch_from_end_to_end(name, mesh):
    net, args = NETS[name]

    def placed(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    def run(variables, args):
        grads, out = jax.grad(lambda variables: loss(net, variables, args), has_aux=True)(variables)
        assert all(jax.typeof(leaf).sharding.spec[0] == "d" for leaf in jax.tree.leaves(out))
        assert not any(jax.typeof(leaf).sharding.spec[0] for leaf in jax.tree.leaves(grads))

    jax.jit(run).trace(placed(shapes(net, args), P()), placed(args, P("d")))


def test_dropout_is_linens_and_on_an_explicit_mesh_too(mesh):
    x, rngs = jax.random.normal(jax.random.key(0), (8, 40)), {"dropout": jax.random.key(1)}
    wanted = nn.Dropout(0.3, deterministic=False).apply({}, x, rngs=rngs)
    for given in (x, jax.device_put(x, NamedSharding(mesh, P("d")))):
        np.testing.assert_array_equal(Dropout(0.3).apply({}, given, rngs=rngs), wanted)


def test_numbers_on_an_explicit_mesh(mesh):
    case = calls.Case(*NETS["unet"])
    run = jax.jit(jax.value_and_grad(lambda params, args: loss(case.net, {"params": params}, args)[0]))
    placed = (
        jax.device_put(case.params, NamedSharding(mesh, P())),
        jax.device_put(case.args, NamedSharding(mesh, P("d"))),
    )
    wanted, got = run(case.params, case.args), run(*placed)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    errors = jax.tree.map(nets.relative_rms, got[1], wanted[1])
    assert max(jax.tree.leaves(errors)) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_a_batch_of_any_size_is_exported(name):
    net, args = NETS[name]
    (batch,) = jax.export.symbolic_shape("batch")
    symbolic = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), args)
    exported = jax.export.export(jax.jit(net.apply), platforms=["cpu", "cuda"])(shapes(net, args), *symbolic)
    assert all(aval.shape[0] == batch for aval in exported.out_avals)
    if name == "unet":
        case = calls.Case(net, args)
        np.testing.assert_allclose(
            exported.call({"params": case.params}, *args), case.run(case.params).reshape(8, 4, 4, 3), atol=1e-5
        )
