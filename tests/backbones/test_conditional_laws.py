"""Laws of the networks that are not called as (x, t, class labels). A new one joins by a line in CALLS."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffusers_fn.backbones import ClipTextEncoder, UNet2DCondition

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


CALLS = {
    "unet2d_condition": (
        UNet2DCondition(
            widths=(8, 8),
            num_res_blocks=1,
            transformer_depths=(1, 0),
            num_heads=2,
            context_width=6,
            norm_groups=4,
            num_classes=5,
            text_time_widths=(4, 13),
            time_cond_width=3,
        ),
        (
            normal(8, 4, 4, 4),
            jnp.arange(8) * 100,
            {
                "context": normal(8, 3, 6),
                "class_labels": jnp.arange(8) % 5,
                "text_embeds": normal(8, 5),
                "time_ids": 100 * normal(8, 2),
                "timestep_cond": normal(8, 3),
            },
        ),
    ),
    "clip_text": (
        ClipTextEncoder(
            vocab_size=20, max_length=6, width=8, num_layers=2, num_heads=2, mlp_width=16, projection_width=5
        ),
        (jnp.asarray(RNG.integers(0, 20, [8, 6])),),
    ),
}


class Case:
    """A network, its inputs, random parameters, and its output as one array [B, ...]."""

    def __init__(self, net, args):
        self.net, self.args = net, args
        self.shapes = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
        rng = np.random.default_rng(1)

        def draw(path, leaf):
            noise = rng.standard_normal(leaf.shape)
            if path[-1].key == "kernel":
                noise = noise / np.sqrt(leaf.size / leaf.shape[-1])
            elif path[-1].key in ("bias", "scale"):
                noise = 0.1 * noise + (path[-1].key == "scale")
            return jnp.asarray(noise, jnp.float32)

        self.params = jax.tree_util.tree_map_with_path(draw, self.shapes)

    def run(self, params, args=None, **fields):
        """Returns everything that comes out, side by side."""
        out = self.net.clone(**fields).apply({"params": params}, *(self.args if args is None else args))
        leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(out)]
        return jnp.concatenate(leaves, axis=1).astype(jnp.float32)

    def gradients(self, params, **fields):
        """Returns the gradients of a random projection of the output, and the output."""

        def projected(params):
            out = self.run(params, **fields)
            weights = np.random.default_rng(2).standard_normal(out.shape).astype(np.float32)
            return jnp.sum(jnp.asarray(weights) * out), out

        return jax.grad(projected, has_aux=True)(params)


@pytest.fixture(scope="module", params=CALLS)
def case(request):
    return Case(*CALLS[request.param])


@pytest.fixture(scope="module")
def gradients(case):
    return jax.jit(case.gradients)(case.params)


def seen(path):
    """Whether an output depends on a parameter: the softmax cancels a bias of the keys."""
    return [key.key for key in path[-2:]] != ["key", "bias"]


def test_every_parameter_has_a_gradient(case, gradients):
    for path, grad in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert np.isfinite(grad).all(), path
        if seen(path):
            assert np.abs(grad).max() > 1e-4, path


def test_zero_start_and_training_moves_every_parameter(case):
    """A zero-initialised layer hides what is before it for one step, and one within such a block for two."""
    params = jax.jit(lambda key: case.net.init(key, *case.args)["params"])(nets.quick_key(0))
    step = jax.jit(case.gradients)
    for i in range(3):
        grads, out = step(params)
        if isinstance(case.net, UNet2DCondition):
            assert np.all(out == 0) == (i == 0)
        params = jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), params, grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad != 0) or not seen(path), path


def test_remat_gives_the_same_gradients(case, gradients):
    again = jax.jit(functools.partial(case.gradients, remat=True))(case.params)
    assert "remat" in str(jax.make_jaxpr(functools.partial(case.gradients, remat=True))(case.params))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max() + 1e-6)


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
    mesh = jax.sharding.Mesh(jax.devices(), ("d",))

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
