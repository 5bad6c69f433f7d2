"""DiT and U-ViT against the published networks: same weights, same outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

import diffusers_fn as dfn
from diffusers_fn.pretrained import dit, dit_diffusers, uvit

FAMILIES = {
    "dit_fb": dit.family,
    "dit_fb_patch4": dit.family,  # patches of 4, no learned variance, an mlp ratio of 2
    "dit_fb_no_null": dit.family,  # a class table without a null row
    "dit_diffusers": dit_diffusers.family,
    "dit_diffusers_options": dit_diffusers.family,  # exact GELU, a norm with scale and bias, no biases of qkv
    "uvit_uncond": uvit.family,
    "uvit_class": uvit.family,  # and a time network, and biases of qkv
    "uvit_no_skip": uvit.family,  # and no convolution at the end
    "uvit_text": uvit.family,
}
CALLS = [(name, call) for name in FAMILIES for call in ("main", *["larger"] * (name == "dit_diffusers_options"))]


def run(name, call, dtype):
    """Returns the output, as NCHW, for the inputs of a call."""
    module, params = published.network(name, FAMILIES[name], dtype)
    inputs = published.recorded(name, call)
    labels, text = inputs.get("in/y"), inputs.get("in/context")
    cond = labels if text is None else text
    cond = None if cond is None else jnp.asarray(cond, jnp.int32 if text is None else dtype)
    x = jnp.asarray(np.moveaxis(inputs["in/x"], 1, -1), dtype)
    out = jax.jit(module.apply)({"params": params}, x, jnp.asarray(inputs["in/t"], dtype), cond)
    assert out.dtype == dtype
    return np.moveaxis(np.asarray(out), -1, 1)


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_same_outputs_in_float32(name, call):
    # Two correct float32 evaluations of these networks differ by 4e-6 of the largest output.
    assert published.error(run(name, call, jnp.float32), published.recorded(name, call)["out_f32"]) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize(("name", "call"), CALLS)
def test_same_outputs_in_float64(x64, name, call):
    tolerance = 2e-7 if "dit" in name else 1e-12  # DiT's reference keeps its positions in float32
    assert published.error(run(name, call, jnp.float64), published.recorded(name, call)["out_f64"]) < tolerance


def test_guidance_of_the_first_three_channels_is_composed():
    module, params = published.network("dit_fb", dit.family)
    inputs = published.recorded("dit_fb", "cfg4")
    half = np.moveaxis(inputs["in/x"], 1, -1)[:2]
    labels = inputs["in/y"].astype(np.int32)
    out = jax.jit(module.apply)({"params": params}, np.concatenate([half, half]), inputs["in/t"], labels)
    guided = dfn.apply_guidance(out[:2, ..., :3], out[2:, ..., :3], 4.0)
    out = np.concatenate([np.concatenate([guided, guided]), out[..., 3:]], axis=-1)
    assert published.error(np.moveaxis(out, -1, 1), inputs["out_f32"]) < 2e-5


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (dit.family, {"attention": "linear"}, "attention is unknown"),
        (dit_diffusers.family, {"norm_type": "layer_norm"}, "norm_type must be 'ada_norm_zero'"),
        (dit_diffusers.family, {"activation_fn": "geglu"}, "activation_fn must be one of .*; got 'geglu'"),
        (uvit.family, {"clip_dim": 8, "num_classes": 10}, "num_classes is unknown"),
        (uvit.family, {"qk_scale": 0.5}, "qk_scale must be None"),
    ],
)
def test_configs_of_other_networks_are_refused(family, config, message):
    with pytest.raises(ValueError, match=message):
        family.from_config(config)
