"""DiT's sizes, its start, its sizes of image; remat, sharding and lowering of the transformers and the autoencoder."""

import jax
import jax.export
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusers_fn.backbones import AutoencoderKL, DiT, UViT

X = jnp.asarray(np.random.default_rng(0).standard_normal([8, 8, 8, 3]), jnp.float32)
T = jnp.linspace(0, 900, 8)
LABELS = jnp.arange(8) % 3
TINY = DiT(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=3)
NETS = {
    "dit": (TINY, (X, T, LABELS)),
    "uvit": (UViT(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=3), (X, T, LABELS)),
    "autoencoder_kl": (AutoencoderKL(channels=8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4), (X,)),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "width", "published"),
    [("S", 384, 32_963_360), ("B", 768, 130_512_416), ("L", 1024, 458_102_816), ("XL", 1152, 675_129_632)],
)
def test_published_sizes(size, width, published):
    # The authors count the table of 16 x 16 positions, which is no parameter here: for XL 674,834,720 are left.
    net = getattr(DiT, size)()
    assert nets.count(net, jnp.zeros([1, 32, 32, 4])) + 256 * width == published
    larger = net.clone(patch_size=4, num_classes=10)
    more = width * (4 * 16 - 4 * 4) + (width + 1) * (8 * 16 - 8 * 4) - width * 990
    assert nets.count(larger, jnp.zeros([1, 64, 32, 4])) + 256 * width == published + more


def test_every_block_starts_as_the_identity():
    x = jnp.concatenate([X[:1], X[:1]])
    variables = jax.jit(TINY.init)(nets.quick_key(0), x, 0)
    zeros = jax.tree.map(lambda leaf: not leaf.any(), variables["params"])
    for name in ("block_0/modulation", "block_1/modulation", "modulation_out", "dense_out"):
        part = zeros
        for key in name.split("/"):
            part = part[key]
        assert part["kernel"], name
    assert not zeros["block_0"]["attention"]["qkv"]["kernel"]


@pytest.mark.long
def test_two_steps_from_the_start_move_every_parameter():
    def loss(params):
        return jnp.mean((TINY.apply({"params": params}, X, T, LABELS) - X[:, ::-1]) ** 2)

    params = jax.jit(TINY.init)(nets.quick_key(0), X, T)["params"]
    gradient = jax.jit(jax.grad(loss))
    for step in range(3):
        grads = gradient(params)
        still = [path for path, grad in jax.tree_util.tree_leaves_with_path(grads) if not np.any(grad)]
        if step == 0:  # only the last layer's output is not multiplied by a zero
            moved = set(grads) - {path[0].key for path in still}
            assert moved == {"dense_out"}
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    # The rows of classes that are not in the batch are part of a leaf that moves.
    assert still == []


def test_the_same_parameters_serve_every_size():
    params = nets.random_params(TINY, X)
    out = jax.jit(TINY.apply)({"params": params}, jnp.concatenate([X, X], axis=2), T, LABELS)
    assert out.shape == (8, 8, 16, 3)
    assert nets.relative_rms(out[:, :, :8], out[:, :, 8:]) > 0.1  # positions tell the halves apart


def test_positions_count_patches_or_stretch_over_the_image_of_training():
    params = nets.random_params(TINY, X)
    wide = jnp.concatenate([X[:2], X[:2]], axis=2)

    def run(net, x):
        return jax.jit(net.apply)({"params": params}, x, T[:2])

    counted = [run(TINY.clone(image_size=size), wide) for size in (8, 16)]
    np.testing.assert_array_equal(counted[0], counted[1])
    stretched = TINY.clone(stretch_positions=True)
    np.testing.assert_array_equal(run(stretched, X[:2]), run(TINY, X[:2]))
    assert nets.relative_rms(run(stretched, wide), counted[0]) > 0.01


def test_labels_without_a_row_give_nan_under_a_trace():
    net = TINY.clone(null_class=False)
    params = nets.random_params(net, X, cond=0)
    assert params["embedding"]["class_table"]["embedding"].shape == (3, 16)
    out = jax.jit(net.apply)({"params": params}, X[:3], 0, jnp.array([2, 3, -1]))
    np.testing.assert_array_equal(np.isnan(out).all((1, 2, 3)), [False, True, True])


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_remat_computes_the_same_gradients(name):
    net, args = NETS[name]
    params = nets.random_params(net, *args[:1]) if name != "autoencoder_kl" else _autoencoder_params(net)

    def gradient(net):
        return jax.jit(jax.grad(lambda params: jnp.sum(net.apply({"params": params}, *args) ** 2)))

    plain, remat = (gradient(each)(params) for each in (net, net.clone(remat=True)))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_remat_keeps_less_for_the_backward_pass(name):
    net, args = NETS[name]
    variables = jax.eval_shape(net.init, jax.random.key(0), *args)

    def kept(net):
        """Returns the size of what is kept, with the parameters."""
        backward = jax.eval_shape(lambda variables: jax.vjp(lambda v: net.apply(v, *args), variables)[1], variables)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert kept(net.clone(remat=True)) - parameters < 0.4 * (kept(net) - parameters)


@pytest.mark.parametrize("name", NETS)
def test_bfloat16_keeps_statistics_softmax_and_sinusoids_in_float32(name):
    net, args = NETS[name]
    net = net.clone(dtype=jnp.bfloat16)
    variables = jax.eval_shape(net.init, jax.random.key(0), *args)

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)

    traced = jax.make_jaxpr(net.apply)(variables, *args).jaxpr
    names = {"exp", "rsqrt", "reduce_sum", *({"sin", "cos"} if name != "autoencoder_kl" else ())}
    delicate = [equation for equation in equations(traced) if equation.primitive.name in names]
    assert {equation.primitive.name for equation in delicate} == names
    assert {str(equation.invars[0].aval.dtype) for equation in delicate} == {"float32"}


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_sharded_parameters_and_batch_give_the_same_outputs(name):
    net, args = NETS[name]
    params = nets.random_params(net, *args[:1]) if name != "autoencoder_kl" else _autoencoder_params(net)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def split(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % 8 == 0]
        spec = [None] * leaf.ndim
        if axes:
            spec[axes[-1]] = "data"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    batch = jax.device_put(args, NamedSharding(mesh, PartitionSpec("data")))
    expected = jax.jit(net.apply)({"params": params}, *args)
    out = jax.jit(net.apply)({"params": jax.tree.map(split, params)}, *batch)
    assert nets.relative_rms(out, expected) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name", NETS)
def test_lowering_for_accelerators_and_over_devices_and_ensembles(name):
    net, args = NETS[name]
    variables = jax.eval_shape(net.init, jax.random.key(0), *args)
    exported = jax.export.export(jax.jit(net.apply), platforms=["tpu", "cuda"])(variables, *args)
    assert exported.platforms == ("tpu", "cuda")
    per_device = jax.tree.map(lambda leaf: leaf[:, None], args)
    jax.pmap(net.apply, in_axes=(None, *[0] * len(args))).lower(variables, *per_device)
    both = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), variables)
    out = jax.eval_shape(jax.vmap(net.apply, in_axes=(0, *[None] * len(args))), both, *args)
    assert out.shape == (2, *X.shape)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (2, 8, 9, 3), r"H and W must be multiples of patch_size=2; got 8 and 9"),
        ({}, (2, 8, 3), r"x must have shape \[B, H, W, C\]; got \[2, 8, 3\]"),
        ({"in_channels": 4}, (2, 8, 8, 3), r"in_channels=4 channels; got 3"),
        ({"depth": 0}, (2, 8, 8, 3), r"depth must be at least 1 .*got depth=0"),
        ({"num_heads": 3}, (2, 8, 8, 3), r"num_heads must divide hidden_size; got num_heads=3, hidden_size=16"),
        ({"hidden_size": 18}, (2, 8, 8, 3), r"multiple of 4; got 18"),
        ({"image_size": 1}, (2, 8, 8, 3), r"image_size at least patch_size; got .*image_size=1"),
    ],
)
def test_misuse_is_explained(fields, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(TINY.clone(**fields).init, jax.random.key(0), jnp.zeros(shape), jnp.zeros([2]))


def _autoencoder_params(net):
    return jax.jit(net.init)(nets.quick_key(0), X)["params"]
