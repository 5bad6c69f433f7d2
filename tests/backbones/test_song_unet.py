"""SongUNet and DhariwalUNet: exact sizes, conditions as vectors, fields, misuse."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from diffusers_fn.backbones import DhariwalUNet, SongUNet
from diffusers_fn.backbones.embeddings import FourierFeatures
from diffusers_fn.backbones.vector_labels import kept_labels, vector_conditions
from diffusers_fn.pretrained import unet2d

SONG = SongUNet(
    image_size=4,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    num_classes=3,
    augment_dim=4,
    zero_init_output=False,
)
DHARIWAL = DhariwalUNet(
    image_size=4,
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(2,),
    head_dim=8,
    num_classes=3,
    augment_dim=4,
    zero_init_output=False,
)
BOTH = {"song": SONG, "dhariwal": DHARIWAL}
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal([2, 4, 4, 3]), jnp.float32)
T = jnp.array([-0.3, 0.4])
AUGMENT = jnp.asarray(RNG.standard_normal([2, 4]), jnp.float32)


@pytest.mark.long
@pytest.mark.parametrize(
    ("net", "size", "expected"),
    [
        # EDM's networks for CIFAR-10, with nine numbers that describe an augmentation.
        (SongUNet(channel_multipliers=(2, 2, 2), augment_dim=9), 32, 55_733_891),
        (SongUNet(channel_multipliers=(2, 2, 2), augment_dim=9, num_classes=10), 32, 55_735_299),
        # The reference counts 56,397,827, because its 128 frequencies are no parameters.
        (SongUNet.ncsnpp(channel_multipliers=(2, 2, 2), augment_dim=9), 32, 56_397_827 + 128),
        (SongUNet(image_size=64, augment_dim=9), 64, 61_805_571),  # FFHQ and AFHQ
        (SongUNet.ncsnpp(image_size=64, augment_dim=9), 64, 62_761_091 + 128),
        (DhariwalUNet(num_classes=1000), 64, 295_899_267),  # ImageNet
    ],
)
def test_published_parameter_counts(net, size, expected):
    assert nets.count(net, jnp.zeros([1, size, size, 3])) == expected


def test_the_score_network_for_256_pixels():
    """NCSN++ for CelebA-HQ (Song et al. 2021), as UNet2DModel counts it."""
    skip = ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2
    config = {"sample_size": 256, "time_embedding_type": "fourier", "norm_num_groups": None, "norm_eps": 1e-6}
    config |= {"down_block_types": skip, "up_block_types": [name.replace("Down", "Up") for name in skip[::-1]]}
    config |= {"block_out_channels": [128, 128, *[256] * 5], "attention_head_dim": None}
    net = unet2d.from_config(config | {"mid_block_scale_factor": 1.41421356237})
    assert net.attention_resolutions == (16,)
    assert nets.count(net, jnp.zeros([1, 64, 64, 3])) == 65_574_549


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": [32, 64]}, r"attention, and the last level, must have at least 128 channels"),
        ({"block_out_channels": [96, 128]}, r"block_out_channels must be multiples of the first; got \(96, 128\)"),
        ({"up_block_types": ["SkipUpBlock2D"] * 2}, r"with attention on the same levels"),
        ({"time_embedding_type": "positional"}, r"time_embedding_type must be 'fourier', the only implemented value"),
        ({"sample_size": 9}, r"sample_size must be a multiple of 2 for 2 levels; got 9"),
    ],
)
def test_configs_of_other_score_networks_are_refused(change, message):
    config = {"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"], "block_out_channels": [128, 128]}
    config |= {"up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"], "time_embedding_type": "fourier"}
    config |= {"norm_num_groups": None, "attention_head_dim": None}
    unet2d.from_config(config)
    with pytest.raises(ValueError, match=message):
        unet2d.from_config(config | change)


@pytest.fixture(scope="module", params=BOTH)
def net(request):
    return BOTH[request.param]


def conditions(cond):
    return vector_conditions(cond, 3, 4, 2, jnp.float32)


def test_labels_are_rows_of_the_identity_and_no_label_is_zero():
    for same in (np.array([2, 0]), {"label": np.array([2, 0])}, jnp.eye(3)[jnp.array([2, 0])]):
        np.testing.assert_array_equal(conditions(same)[0], [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(conditions(1)[0], [[0, 1, 0]] * 2)
    for none in (None, 3, np.array([3, 3]), {}, {"label": None, "augment": AUGMENT}):
        np.testing.assert_array_equal(conditions(none)[0], np.zeros([2, 3]))


def test_no_augmentation_is_zero():
    np.testing.assert_array_equal(conditions({"augment": AUGMENT})[1], AUGMENT)
    for none in (None, {"label": 1}, {"augment": None}):
        np.testing.assert_array_equal(conditions(none)[1], np.zeros([2, 4]))
    assert vector_conditions(None, None, None, 2, jnp.float32) == (None, None)


def test_labels_outside_give_nan_under_a_trace():
    out = jax.jit(lambda label: conditions(label)[0])(jnp.array([4, 3]))
    np.testing.assert_array_equal(np.isnan(out).all(-1), [True, False])
    out = jax.jit(lambda label: conditions(label)[0])(jnp.array([-1, 3]))
    np.testing.assert_array_equal(np.isnan(out).all(-1), [True, False])


@pytest.mark.long
def test_labels_are_left_out_in_training_at_their_rate(net):
    """Every example has the output of its label or of no label, both occur, and evaluation leaves none out."""
    net = net.clone(label_dropout=0.5)
    params = nets.random_params(net, X[:1])
    x, t = jnp.repeat(X[:1], 16, axis=0), jnp.full([16], 0.4)

    @jax.jit
    def apply(label):
        call = {"params": params}, x, t, label
        return net.apply(*call), net.apply(*call, train=True, rngs={"dropout": nets.quick_key(0)})

    labels, none = np.full(16, 2), np.full(16, 3)
    (kept, trained), (left_out, _) = apply(labels), apply(none)
    distance = lambda a, b: np.abs(a - b).max((1, 2, 3))  # noqa: E731
    is_kept, is_out = distance(trained, kept) < 1e-4, distance(trained, left_out) < 1e-4
    assert np.all(is_kept ^ is_out)
    assert 2 <= is_out.sum() <= 14  # of 16 at 1/2: all but 5e-4


def test_rate_of_left_out_labels():
    kept = kept_labels(jnp.ones([40_000, 1]), 0.1, jax.random.key(0))
    assert abs(float(kept.mean()) - 0.9) < 4 * np.sqrt(0.09 / 40_000)


@pytest.mark.long
def test_division_by_sigma_and_its_logarithm():
    net = SONG.clone(fourier_features=True, num_classes=None, augment_dim=None)
    params, sigma = nets.random_params(net, X), jnp.array([0.3, 7.0])
    plain = net.apply({"params": params}, X, jnp.log(sigma))
    score = net.clone(sigma_labels=True).apply({"params": params}, X, sigma)
    np.testing.assert_allclose(score, plain / sigma[:, None, None, None], rtol=1e-5, atol=1e-6)


def test_frequencies_are_fixed():
    features = FourierFeatures(dim=8)
    params = {"frequencies": jnp.array([0.1, 2.0, -1.0, 0.0])}
    out = features.apply({"params": params}, jnp.array([0.0, 0.25]))
    angles = 2 * np.pi * np.array([0.0, 0.25])[:, None] * np.array(params["frequencies"])[None]
    np.testing.assert_allclose(out, np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), atol=1e-6)
    grads = jax.grad(lambda p: jnp.sum(features.apply({"params": p}, jnp.array([0.25]))))(params)
    np.testing.assert_array_equal(grads["frequencies"], 0)


CHANGES = {
    "out_channels": 5,
    "image_size": 2,  # attention at 2 is now level 0's
    "channels": 16,
    "channel_multipliers": (2, 1),
    "num_res_blocks": 2,
    "attention_resolutions": (4,),
    "embedding_multiplier": 2,
    "feature_multiplier": 2,
    "fourier_features": True,
    "input_pyramid": "skip",
    "output_pyramid": True,
    "resample_taps": (1, 3, 3, 1),
    "head_dim": 16,
    "num_classes": None,
    "augment_dim": None,
    "dropout": 0.5,
    "learned_variance": True,
    "norm_eps": 0.1,
    "sigma_labels": True,
    "mid_divisor": 1.0,
    "attention_fn": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, scale=0.0),
}
ELSEWHERE = {
    "native_conv",
    "label_dropout",
    "zero_init_output",
    "remat",
    "dtype",
    "param_dtype",
}  # above and test_laws.py


@pytest.fixture(scope="module")
def before(net):
    params = nets.random_params(net, X)
    return params, net.apply({"params": params}, X, jnp.abs(T))


def test_every_field_has_a_change():
    fields = {field.name for net in BOTH.values() for field in dataclasses.fields(net)} - {"parent", "name"}
    assert set(CHANGES) | ELSEWHERE == fields


@pytest.mark.long
@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_network(net, before, field):
    if not hasattr(net, field):
        pytest.skip("the other network's")
    params, out = before
    changed = net.clone(**{field: CHANGES[field]})
    shapes = jax.eval_shape(changed.init, jax.random.key(0), X, T)["params"]
    if nets.structure(shapes) == nets.structure(params):
        again = changed.apply({"params": params}, X, jnp.abs(T), train=True, rngs={"dropout": nets.quick_key(0)})
        assert nets.relative_rms(again, out) > 1e-4


@pytest.mark.parametrize(
    ("fields", "cond", "message"),
    [
        ({}, {"labels": 1}, r'cond may have "label" and "augment"; got labels'),
        ({}, {"augment": jnp.zeros([2, 3])}, r'cond\["augment"\] must have shape \[2, 4\]; got \[2, 3\]'),
        ({"augment_dim": None}, {"augment": AUGMENT}, r"no augmentation \(augment_dim=None\)"),
        ({}, jnp.zeros([2, 4]), r"label vectors must have shape \[2, 3\]; got \[2, 4\]"),
        ({"label_dropout": 1.0}, None, r"label_dropout must lie in \[0, 1\); got 1.0"),
        ({"channels": 6}, None, r"channels must be a multiple of 4; got 6"),
        ({"channel_multipliers": ()}, None, r"channel_multipliers must not be empty"),
        ({"channel_multipliers": (1, 1, 1, 1)}, None, r"image_size must be a multiple of 8 for 4 levels; got 4"),
        (
            {"image_size": 8, "channel_multipliers": (1, 1, 1, 1)},
            None,
            r"H and W must be multiples of 8 .*got \(4, 4\)",
        ),
    ],
)
def test_misuse_is_explained(net, fields, cond, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.clone(**fields).init, jax.random.key(0), X, T, cond)


def test_an_unknown_pyramid_is_refused():
    with pytest.raises(ValueError, match=r'input_pyramid must be None, "residual" or "skip"; got \'full\''):
        jax.eval_shape(SONG.clone(input_pyramid="full").init, jax.random.key(0), X, T)
