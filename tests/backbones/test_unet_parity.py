"""UNet against the published networks: same weights, same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_weights

from diffusers_fn.backbones import UNet


def _attention(query, key, value):
    """Attention in the dtype of its inputs: jax.nn.dot_product_attention takes every softmax in float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


def _ddpm(config, weights, dtype):
    levels = len(config["block_out_channels"])
    sizes = [config["sample_size"] // 2**level for level in range(levels)]
    unet = UNet(
        out_channels=config["out_channels"],
        image_size=config["sample_size"],
        channels=config["block_out_channels"][0],
        channel_multipliers=[width // config["block_out_channels"][0] for width in config["block_out_channels"]],
        num_res_blocks=config["layers_per_block"],
        attention_resolutions=[size for size, kind in zip(sizes, config["down_block_types"]) if "Attn" in kind],
        norm_groups=config["norm_num_groups"],
        norm_eps=config["norm_eps"],
        time_freq_shift=config["freq_shift"],
        dtype=dtype,
        param_dtype=dtype,
    )
    return unet, torch_weights.diffusers_unet(weights, levels, config["layers_per_block"], heads=1)


def _openai(config, weights, dtype):
    unet = UNet(
        image_size=16,
        channels=config["model_channels"],
        channel_multipliers=config["channel_mult"],
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=[16 // factor for factor in config["attention_resolutions"]],
        num_heads=config["num_heads"],
        scale_shift_norm=config.get("use_scale_shift_norm", False),
        learned_variance=config["out_channels"] == 2 * config["in_channels"],
        norm_eps=1e-5,
        time_cos_first=True,
        time_freq_shift=0,
        downsample_padding=(1, 1),
        dtype=dtype,
        param_dtype=dtype,
    )
    levels = len(config["channel_mult"])
    return unet, torch_weights.openai_unet(weights, levels, config["num_res_blocks"], config["num_heads"])


NETWORKS = {"unet2d_ddpm": _ddpm, "guided_unet_plain": _openai, "improved_unet": _openai}


def _relative_errors(name, dtype, reference, calls):
    """Returns the largest |out - reference| / max |reference| of each call."""
    config, weights, io = torch_weights.load(name)
    unet, params = NETWORKS[name](config, weights, dtype)
    if dtype == jnp.float64:
        unet = unet.clone(attention_fn=_attention)
    shapes = jax.eval_shape(unet.init, jax.random.key(0), jnp.zeros([1, 16, 16, 3]), 0)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    apply, errors = jax.jit(unet.apply), []
    for call in calls:
        x = torch_weights.images(io[f"{call}/in/x"]).astype(dtype)
        # Labels [] and [B], int and float, are one compilation here; test_laws.py compares them.
        t = np.broadcast_to(io[f"{call}/in/t"], len(x)).astype(dtype)
        out = np.asarray(apply({"params": params}, x, t))
        expected = torch_weights.images(io[f"{call}/{reference}"])
        assert out.dtype == dtype
        assert out.shape == expected.shape
        errors.append(np.abs(out - expected).max() / np.abs(expected).max())
    return errors


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize(
    ("name", "calls"), [("unet2d_ddpm", ["rect"]), ("guided_unet_plain", ["main"]), ("improved_unet", ["main"])]
)
def test_same_outputs_in_float32(name, calls):
    # Two correct float32 evaluations of these networks differ by 2e-6 of the largest output.
    assert max(_relative_errors(name, jnp.float32, "out_f32", calls)) < 2e-5


@pytest.mark.parametrize(
    ("name", "calls"),
    [("unet2d_ddpm", ["main", "scalar_t", "float_t"]), ("guided_unet_plain", ["main"]), ("improved_unet", ["main"])],
)
def test_same_outputs_in_float64(x64, name, calls):
    assert max(_relative_errors(name, jnp.float64, "out_f64", calls)) < 1e-10
