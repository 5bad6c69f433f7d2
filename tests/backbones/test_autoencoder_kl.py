"""AutoencoderKL against the published network: same weights, same numbers; its size, its scaling, its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from nets import relative_rms

from diffusers_fn.backbones import AutoencoderKL, diagonal_gaussian
from diffusers_fn.pretrained import autoencoder_kl
from diffusers_fn.pretrained.convert import from_torch, to_torch

NAMES = ["vae_kl", "vae_kl_options"]  # the options: attention at a level, none in the middle, no quant convolutions


def images(name, dtype=jnp.float32):
    """Returns the recorded image and latents of a network, as NHWC."""
    inputs = published.recorded(name, "main")
    return [jnp.asarray(np.moveaxis(inputs[key], 1, -1), dtype) for key in ("in/img", "in/z")]


def errors(name, dtype, reference):
    """Returns the largest |out - expected| / max |expected| of every recorded output."""
    module, params = published.network(name, autoencoder_kl.family, dtype)
    recorded = published.recorded(name, "main")

    @jax.jit
    def outputs(variables, image, z):
        mean, logvar = module.apply(variables, image, method="encode")
        return {
            "moments": module.apply(variables, image, method="moments"),
            "mean": mean,
            "mode": mean,
            "logvar": logvar,
            "std": jnp.exp(logvar / 2),
            "var": jnp.exp(logvar),
            "kl": diagonal_gaussian.kl_to_standard_normal(mean, logvar),
            "nll": diagonal_gaussian.negative_log_likelihood(z, mean, logvar),
            "decoded": module.apply(variables, z, method="decode"),
            "recon_mode": module.apply(variables, image),
        }

    found = {}
    for key, out in outputs({"params": params}, *images(name, dtype)).items():
        if f"out.{key}_{reference}" in recorded:
            assert out.dtype == dtype
            out = np.moveaxis(np.asarray(out), -1, 1) if out.ndim == 4 else out
            found[key] = published.error(out, recorded[f"out.{key}_{reference}"])
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("name", NAMES)
def test_same_numbers_in_float32(name):
    # Two correct float32 evaluations of these networks differ by 2e-6 of the largest output.
    assert max(errors(name, jnp.float32, "f32").values()) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_same_numbers_in_float64(x64, name):
    assert max(errors(name, jnp.float64, "f64").values()) < 1e-12


def test_older_names_of_the_attention_are_read():
    module, params = published.network("vae_kl", autoencoder_kl.family)
    weights = to_torch(params, module, autoencoder_kl.family)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name):
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        return name

    again = from_torch({rename(name): value for name, value in weights.items()}, module, autoencoder_kl.family)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_published_size_of_stable_diffusion():
    variables = jax.eval_shape(AutoencoderKL().init, jax.random.key(0), jnp.zeros([1, 64, 64, 3]))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 83_653_863


def test_log_variance_is_clipped_and_moments_are_not():
    net = AutoencoderKL(channels=4, channel_multipliers=(1,), num_res_blocks=1, norm_groups=2, latent_channels=1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x := jnp.ones([1, 2, 2, 3]))["params"]
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    encode, moments = (
        jax.jit(lambda params, method=method: net.apply({"params": params}, x, method=method))
        for method in ("encode", "moments")
    )
    for bias, clipped in ((100.0, 20.0), (-100.0, -30.0)):
        params["quant"] = {"kernel": jnp.zeros([2, 2]), "bias": jnp.full([2], bias)}
        mean, logvar = encode(params)
        np.testing.assert_array_equal(mean, np.full([1, 2, 2, 1], bias))
        np.testing.assert_array_equal(logvar, np.full([1, 2, 2, 1], clipped))
        assert (moments(params) == bias).all()


def test_scaling_is_that_of_the_fields_and_comes_back():
    z = jnp.asarray(np.random.default_rng(0).standard_normal([2, 3, 3, 2]), jnp.float32)
    plain = AutoencoderKL(scaling_factor=0.5, shift_factor=0.25)
    np.testing.assert_allclose(plain.scale(z), (np.asarray(z) - 0.25) * 0.5, rtol=1e-6)
    channels = AutoencoderKL(scaling_factor=0.5, latents_mean=(1.0, -2.0), latents_std=(2.0, 4.0))
    expected = (np.asarray(z) - np.array([1.0, -2.0])) * 0.5 / np.array([2.0, 4.0])
    np.testing.assert_allclose(channels.scale(z), expected, rtol=1e-5, atol=1e-6)
    for net in (plain, channels):
        np.testing.assert_allclose(net.unscale(net.scale(z)), z, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_bfloat16_computes_close_to_float32(method):
    module, params = published.network("vae_kl", autoencoder_kl.family)
    x = images("vae_kl")[method == "decode"]
    nets = module, module.clone(dtype=jnp.bfloat16)
    exact, half = (jax.jit(lambda x, net=net: net.apply({"params": params}, x, method=method))(x) for net in nets)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        assert 0 < relative_rms(a, b) < 0.02


@pytest.mark.long
def test_every_parameter_has_a_gradient():
    module, params = published.network("vae_kl", autoencoder_kl.family)
    image, z = images("vae_kl")

    def loss(params):
        mean, logvar = module.apply({"params": params}, image, method="encode")
        image_again = module.apply({"params": params}, mean + jnp.exp(logvar / 2) * z, method="decode")
        kl = diagonal_gaussian.kl_to_standard_normal(mean, logvar)
        return jnp.mean((image_again - image) ** 2) + 1e-2 * kl.mean()

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(grad).all(), path
        if path[-1].key == "bias" and path[-2].key == "qkv":
            grad = grad[np.array([0, 2])]  # the softmax cancels a bias of the keys
        assert np.abs(grad).max() > 1e-7, path


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (1, 9, 8, 3), r"H and W must be multiples of 2; got \(9, 8\)"),
        ({}, (1, 8, 8, 4), r"x must have shape \[B, H, W, 3\]; got \[1, 8, 8, 4\]"),
        ({"channel_multipliers": ()}, (1, 8, 8, 3), r"channel_multipliers must not be empty"),
        ({"num_res_blocks": 0}, (1, 8, 8, 3), r"num_res_blocks must be at least 1; got \(1, 2\) and 0"),
        ({"attention_levels": (2,)}, (1, 8, 8, 3), r"attention_levels must lie in 0 \.\. 1; got \(2,\)"),
        ({"norm_groups": 3}, (1, 8, 8, 3), r"norm_groups=3 and a layer of 4 channels"),
    ],
)
def test_misuse_is_explained(fields, shape, message):
    net = AutoencoderKL(
        **{"channels": 4, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 2, **fields}
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))


def test_latents_of_another_width_are_refused():
    net = AutoencoderKL(channels=4, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=2)
    with pytest.raises(ValueError, match=r"z must have shape \[B, h, w, 4\]; got \[1, 4, 4, 3\]"):
        jax.eval_shape(lambda: net.apply({"params": {}}, jnp.zeros([1, 4, 4, 3]), method="decode"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"act_fn": "elu"}, "act_fn must be one of silu, swish, mish, gelu, relu; got 'elu'"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 2}, "must each have 1 names"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "attention at the same levels; got levels"),
        ({"codebook_size": 8}, "codebook_size is unknown"),
    ],
)
def test_configs_of_other_networks_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_kl.from_config(config)
