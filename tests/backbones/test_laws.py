"""Laws that every backbone obeys. A new backbone joins by an entry of NETS."""

import dataclasses
import inspect
import pathlib

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn import backbones
from diffusers_fn.backbones import MLP, DhariwalUNet, DiT, SongUNet, UNet, UNet1D, UNet2D, UViT

T = jnp.array([7, 400])
LABELS = jnp.array([1, 2])
NETS = {
    "unet": UNet(  # as ADM: test_unet_parity.py runs the plain one
        image_size=8,
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(4,),
        head_dim=4,
        scale_shift_norm=True,
        resblock_updown=True,
        num_classes=3,
        learned_variance=True,
        norm_groups=4,
    ),
    "mlp": MLP(hidden_size=16, depth=2, embedding_dim=16, num_classes=3),
    "dit": DiT(image_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=3, learned_variance=True),
    "song_unet": SongUNet.ncsnpp(
        image_size=8,
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_classes=3,
    ),
    "dhariwal_unet": DhariwalUNet(
        image_size=8,
        channels=8,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(4,),
        head_dim=4,
        num_classes=3,
        learned_variance=True,
    ),
    "unet2d": UNet2D(
        channels=32,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        down_attention=(False, True),
        up_attention=(True, False),
        down_resample_block=True,
        num_classes=3,
        scale_shift_norm=True,
        norm_groups=4,
    ),
    "unet1d": UNet1D(
        channels=8, channel_multipliers=(1, 1), num_res_blocks=1, attention_levels=(1,), num_classes=3, norm_groups=4
    ),
    "uvit": UViT(image_size=8, hidden_size=64, depth=2, num_heads=2, num_classes=3, time_mlp=True),
}

SHAPES = {"unet1d": [2, 8, 3]}  # of x; [2, 8, 8, 3] for all others

# Networks that take other inputs, under the same laws: test_conditional_laws.py, test_autoencoder_kl.py. And those
# that hold another network: test_super_resolution.py, test_class_context.py.
ELSEWHERE = [
    "MLPClassifier",
    "SimpleAutoencoder",
    "TwoTimeConditioned",
    "SelfConditioned",
    "AutoencoderKL",
    "Classifier",
    "ClipTextEncoder",
    "SimpleDecoder",
    "SimpleEncoder",
    "UNet2DCondition",
    "ControlNet",
    "Flux",
    "MMDiT",
    "PixArt",
    "T5Encoder",
]
ELSEWHERE += ["ClassContext", "SuperResolution", "TextContext"]


@dataclasses.dataclass
class Case:
    net: object
    x: jax.Array
    params: dict

    def __call__(self, t=T, cond=LABELS, params=None, x=None, **kwargs):
        x = self.x if x is None else x
        return self.net.apply({"params": params or self.params}, x, t, cond, **kwargs)


# The laws of the other networks are compiled in the long set.
QUICK = ("dit", "mlp")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in NETS]
)
def case(request):
    net = NETS[request.param]
    shape = SHAPES.get(request.param, [2, 8, 8, 3])
    x = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    return Case(net, x, nets.random_params(net, x))


def test_every_public_backbone_is_in_the_table():
    public = {getattr(backbones, name) for name in backbones.__all__ if inspect.isclass(getattr(backbones, name))}
    elsewhere = {getattr(backbones, name) for name in ELSEWHERE}
    assert public == {type(net) for net in NETS.values()} | elsewhere


def test_the_vocabulary_names_every_field_and_the_networks_that_have_it():
    """docs/vocabulary.md: a new network takes its field names from there, or adds a row."""
    unets = {"UNet", "UNet1D", "UNet2D", "UNet2DCondition", "SongUNet", "DhariwalUNet"}
    table = {}
    for line in (pathlib.Path(__file__).parents[2] / "docs" / "vocabulary.md").read_text().splitlines():
        if line.startswith("| `"):
            field, *_, networks = line.strip("| ").split(" | ")
            named = set(networks.replace("`", "").split(", "))
            table[field.strip("`")] = (named - {"U-Nets"}) | (unets if "U-Nets" in named else set())
    fields = {}
    for name in filter(lambda name: inspect.isclass(getattr(backbones, name)), backbones.__all__):
        for field in dataclasses.fields(getattr(backbones, name)):
            if field.name not in ("parent", "name"):
                fields.setdefault(field.name, set()).add(name)
    assert table == fields


def test_output_has_the_shape_of_x_or_twice_its_channels_in_float32(case):
    channels = 6 if case.net.learned_variance else 3
    out = case()
    assert out.shape == (*case.x.shape[:-1], channels)
    assert out.dtype == jnp.float32
    half = jax.eval_shape(case, x=case.x.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_output_is_zero_at_the_start_unless_asked_otherwise(case):
    shape_of = jax.eval_shape(case.net.init, jax.random.key(0), case.x, T)["params"]
    assert nets.structure(shape_of) == nets.structure(case.params)
    for zero in (True, False):
        net = case.net.clone(zero_init_output=zero)
        start, _ = net.init_with_output(nets.quick_key(0), case.x, T)
        assert np.all(start == 0) if zero else 0.05 < np.std(start) < 10


def test_no_label_is_the_null_class_and_labels_matter(case):
    null = case(cond=None)
    np.testing.assert_array_equal(null, case(cond=3))
    np.testing.assert_array_equal(null, case(cond=jnp.array([3, 3])))
    outs = [case(cond=label) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert nets.relative_rms(outs[i], outs[j]) > 0.01
    np.testing.assert_array_equal(case(cond=jnp.array([0, 2]))[1], outs[2][1])


def test_one_time_label_serves_the_batch_and_labels_matter(case):
    np.testing.assert_array_equal(case(t=5), case(t=jnp.array([5, 5])))
    np.testing.assert_array_equal(case(t=5), case(t=jnp.array([5.0, 5.0])))
    assert nets.relative_rms(case(t=5.5), case(t=5)) > 1e-3
    assert nets.relative_rms(case(t=600), case(t=5)) > 1e-2


def test_examples_do_not_see_each_other(case):
    x, t, cond = case.x.at[0].add(1.0), T.at[0].add(100), LABELS.at[0].set(0)
    before, after = case(), case(x=x, t=t, cond=cond)
    np.testing.assert_array_equal(before[1], after[1])
    assert nets.relative_rms(after[0], before[0]) > 0.1


def test_dropout_acts_in_training_only_and_follows_its_key(case):
    noisy = Case(case.net.clone(dropout=0.3), case.x, case.params)
    np.testing.assert_array_equal(noisy(), case())
    train = jax.jit(lambda key: noisy(train=True, rngs={"dropout": key}))
    np.testing.assert_array_equal(case(train=True), case())  # no rate: no key needed
    first, again, other = (train(nets.quick_key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert nets.relative_rms(first, other) > 0.01
    assert nets.relative_rms(first, case()) > 0.01


def test_every_parameter_has_a_gradient_and_jit_and_vmap_work(case):
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(case().shape), jnp.float32)

    def weighted(params):
        out = case(params=params)
        return jnp.sum(weights * out), out

    grads, out = jax.jit(jax.grad(weighted, has_aux=True))(case.params)
    np.testing.assert_allclose(out, case(), atol=5e-5)
    both = jax.tree.map(lambda p: jnp.stack([p, p]), case.params)
    assert jax.eval_shape(jax.vmap(lambda params: case(params=params)), both).shape == (2, *out.shape)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        if path[-1].key == "frequencies":  # fixed
            continue
        if path[-1].key == "bias" and path[-2].key == "qkv":
            grad = grad[np.array([0, 2])]  # the softmax cancels a bias of the keys
        assert np.abs(grad).max() > 1e-4, path


def test_bfloat16_computes_close_to_float32_with_float32_parameters(case):
    half = Case(case.net.clone(dtype=jnp.bfloat16), case.x, case.params)
    shapes = jax.eval_shape(half.net.init, jax.random.key(0), case.x, T)["params"]
    assert nets.structure(shapes) == nets.structure(case.params)
    out = jax.jit(lambda: half())()
    assert out.dtype == jnp.float32
    assert 0 < nets.relative_rms(out, case()) < 0.02  # 2^-9 per rounding, about a hundred in sequence
    low = jax.eval_shape(case.net.clone(param_dtype=jnp.bfloat16).init, jax.random.key(0), case.x, T)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"cond": jnp.array([1.0, 2.0])}, r"\b(cond|labels)\b"),  # the messages themselves: test_embeddings.py
        ({"cond": jnp.array([1, 2, 3])}, r"\b(cond|labels)\b"),
        ({"cond": 4}, r"\b(cond|labels)\b"),
        ({"cond": -1}, r"\b(cond|labels)\b"),
        ({"t": jnp.zeros([3])}, r"\bt\b"),
        ({"t": jnp.zeros([2, 1])}, r"\bt\b"),
        ({"x": jnp.zeros([2])}, r"\bx\b"),
    ],
)
def test_calls_that_do_not_fit_are_explained(case, call, message):
    with pytest.raises(ValueError, match=message):
        case(**call)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": None}, "num_classes"),
        ({"num_classes": 0}, "num_classes"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_fields_that_do_not_fit_are_explained(case, fields, message):
    with pytest.raises(ValueError, match=message):
        case.net.clone(**fields).init(jax.random.key(0), case.x, T, LABELS)
