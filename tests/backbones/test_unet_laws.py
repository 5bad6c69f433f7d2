"""Laws of the U-Nets beside those of test_laws.py: remat, training, precision inside, sharding, other platforms."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from calls import Case, normal
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusers_fn.backbones import DhariwalUNet, SongUNet, UNet, UNet1D, UNet2D

pytestmark = pytest.mark.long  # compiles every transform of five networks

X, T, LABELS = normal(8, 4, 4, 3), jnp.arange(8) * 100, jnp.arange(8) % 3
LEVELS = {"image_size": 4, "channels": 8, "channel_multipliers": (1, 1), "num_res_blocks": 1}
VECTORS = {"label": LABELS, "augment": normal(8, 4)}
CASES = {
    "unet": (
        UNet(**LEVELS, attention_resolutions=(2,), head_dim=4, num_classes=3, norm_groups=4),
        (X, T, LABELS),
    ),
    "song_unet": (
        SongUNet.ncsnpp(**LEVELS, attention_resolutions=(2,), num_classes=3, augment_dim=4, output_pyramid=True),
        (X, T / 1000, VECTORS),
    ),
    "dhariwal_unet": (
        DhariwalUNet(**LEVELS, attention_resolutions=(2,), head_dim=4, num_classes=3, augment_dim=4),
        (X, T / 1000, VECTORS),
    ),
    "unet2d": (
        UNet2D(
            channels=8,
            channel_multipliers=(1, 1),
            num_res_blocks=1,
            down_attention=(True, False),
            up_attention=(False, True),
            down_resample_block=True,
            class_time=True,
            scale_shift_norm=True,
            norm_groups=4,
        ),
        (X, T, LABELS),
    ),
    "unet1d": (
        UNet1D(channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_levels=(1,), norm_groups=4),
        (X[:, :, 0], T),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(*CASES[request.param])


def moves(path):
    """Whether training changes a parameter: fixed frequencies it does not."""
    return path[-1].key != "frequencies"


def test_remat_keeps_less_for_the_backward_pass(case):
    def kept(remat):
        """Returns the size of what is kept, without the parameters."""
        backward = jax.eval_shape(lambda params: jax.vjp(lambda p: case.run(p, remat=remat), params)[1], case.params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward)) - sum(p.size for p in jax.tree.leaves(case.params))

    assert kept(True) < 0.3 * kept(False)


def test_remat_gives_the_same_gradients():
    case = Case(*CASES["unet2d"])
    once, again = (jax.jit(functools.partial(case.gradients, remat=remat))(case.params) for remat in (False, True))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(once)):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max() + 1e-6)


@pytest.mark.parametrize("name", ["song_unet", "dhariwal_unet", "unet2d"])
def test_zero_start_and_training_moves_every_parameter(name):
    """The layers before a zero-initialised layer have no gradient for one step, or for two within a zero block."""
    case = Case(*CASES[name])
    params = jax.jit(lambda key: case.net.init(key, *case.args)["params"])(nets.quick_key(0))
    step = jax.jit(case.gradients)
    for i in range(3):
        grads, out = step(params)
        assert np.all(out == 0) == (i == 0)
        params = nets.moved(params, grads)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad != 0) == moves(path), path


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
    assert {eq.primitive.name for eq in delicate} >= {"exp", "rsqrt", "sin", "reduce_sum"}
    assert all(eq.invars[0].aval.dtype == jnp.float32 for eq in delicate)


@pytest.mark.parametrize("name", ["unet", "song_unet"])
def test_sharded_over_batch_and_parameters(name):
    case, mesh = Case(*CASES[name]), Mesh(np.array(jax.devices()), ("d",))

    def place(leaf):
        axes = [i for i, size in enumerate(leaf.shape) if size % 8 == 0]
        return jax.device_put(leaf, NamedSharding(mesh, P(*[None] * axes[0], "d") if axes else P()))

    params = jax.tree.map(place, case.params)
    args = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("d"))), case.args)
    assert sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(params)) > 10
    out = jax.jit(lambda params, args: case.run(params, args), out_shardings=NamedSharding(mesh, P("d")))(params, args)
    np.testing.assert_allclose(out, jax.jit(case.run)(case.params), atol=1e-4)


def test_lowers_for_accelerators_and_for_pmap(case):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (case.params, case.args))
    run = functools.partial(case.run, dtype=jnp.bfloat16)
    exported = jax.export.export(jax.jit(run), platforms=["tpu", "cuda"])(*shapes)
    assert exported.platforms == ("tpu", "cuda")
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((8, 1, *leaf.shape[1:]), leaf.dtype), shapes[1])
    jax.pmap(case.run, in_axes=(None, 0)).lower(shapes[0], one)
