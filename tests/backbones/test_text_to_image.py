"""MMDiT, Flux, PixArt and ControlNet: published outputs and sizes, inputs, misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from calls import CALLS, Case

from diffusers_fn.backbones import ControlNet, Flux, MMDiT, PixArt, UNet2DCondition
from diffusers_fn.backbones.controlnet import scaled_residuals
from diffusers_fn.pretrained import controlnet, flux, pixart, sd3, unet2d_condition
from diffusers_fn.pretrained.load import find_family

FAMILIES = {"sd3": sd3.family, "flux": flux.family, "pixart": pixart.family, "controlnet": controlnet.family}
NAMES = {  # of the recorded inputs
    "ctx": "context",
    "mask": "context_mask",
    "pooled": "text_embeds",
    "guidance": "guidance",
    "resolution": "resolution",
    "aspect_ratio": "aspect_ratio",
    "text_embeds": "text_embeds",
    "time_ids": "time_ids",
    "image": "image",
}
RECORDED = [
    ("sd3_medium", "main"),
    ("sd3_medium", "skip"),  # without block 1
    ("sd3_dual", "main"),
    ("sd3_layer", "main"),
    ("flux_guidance", "main"),
    ("flux_plain", "main"),  # more channels in than out
    ("pixart_plain", "main"),
    ("pixart_sizes", "main"),  # no biases of qkv, exact GELU, no learned variance
    ("controlnet_plain", "main"),
    ("controlnet_plain", "guess"),
    ("controlnet_text_time", "main"),
]
ROWS, COLUMNS = 3, 4  # patches of the recorded calls of Flux


def family_of(name):
    return FAMILIES[name.split("_")[0]]


def image_last(array):
    return np.moveaxis(array, 1, -1)


def unpacked(patches):
    """Returns the images [B, H, W, C] of sequences of patches, each in the order channel, row, column."""
    images = patches.reshape(len(patches), ROWS, COLUMNS, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return images.reshape(len(patches), 2 * ROWS, 2 * COLUMNS, -1)


def outputs(name, call, dtype):
    """Returns (ours, theirs) for a recorded call: lists of arrays."""
    net, params = published.network(name, family_of(name), dtype)
    io = published.recorded(name, call)
    image = unpacked if name.startswith("flux") else image_last
    cond = {ours: io[f"in/{theirs}"] for theirs, ours in NAMES.items() if f"in/{theirs}" in io}
    cond |= {"image": image_last(cond["image"])} if "image" in cond else {}
    cond = {key: jnp.asarray(value, None if key == "context_mask" else dtype) for key, value in cond.items()}
    skipped = {"skip_blocks": (1,)} if call == "skip" else {}
    x, t = jnp.asarray(image(io["in/x"]), dtype), jnp.asarray(io["in/t"], dtype)
    out = jax.jit(lambda params, x, t, cond: net.apply({"params": params}, x, t, cond, **skipped))(params, x, t, cond)
    if name.startswith("controlnet"):
        out = scaled_residuals(out, 0.7, guess_mode=True) if call == "guess" else out
        keys = [*(f"out.down{i}" for i in range(len(out["down_residuals"]))), "out.mid"]
        out = [*out["down_residuals"], out["mid_residual"]]
    else:
        keys, out = ["out"], [out]
    suffix = "_f64" if dtype == jnp.float64 else "_f32"
    assert {f"{key}{suffix}" for key in keys} == {key for key in io if key.endswith(suffix)}
    return out, [image(io[f"{key}{suffix}"]) for key in keys]


QUICK = ("sd3_dual", "flux_guidance", "pixart_plain")
CALLED = [pytest.param(*case, marks=() if case[0] in QUICK else pytest.mark.long) for case in RECORDED]


@pytest.mark.parametrize(("name", "call"), CALLED)
def test_same_outputs_in_float32(name, call):
    for ours, theirs in zip(*outputs(name, call, jnp.float32), strict=True):
        assert ours.dtype == jnp.float32
        # 1.5e-5 measured, since the references round the frequencies of the time features to float32 (t = 700 here).
        assert published.error(ours, theirs) < 3e-5


@pytest.mark.long
@pytest.mark.parametrize(("name", "call"), RECORDED)
def test_same_outputs_in_float64(x64, name, call):
    # The references keep PixArt's positions, Flux's rotations, the means of root-mean-square norms and the factors of
    # guess mode in float32.
    exact = name in ("sd3_medium", "sd3_layer") or (name.startswith("controlnet") and call == "main")
    tolerance = 1e-12 if exact else 2e-7
    for ours, theirs in zip(*outputs(name, call, jnp.float64), strict=True):
        assert published.error(ours, theirs) < tolerance


@pytest.mark.parametrize("name", sorted({name for name, _ in RECORDED}))
def test_config_and_tensors_come_back(name):
    published.assert_round_trip(name, family_of(name))


# By torch, of the published configs in the references. MMDiT's tables of positions, which are no parameters there, are
# named apart.
PUBLISHED = {
    "sd3": (MMDiT.sd3(), 2_028_328_000 + 192 * 192 * 1536),
    "sd35_medium": (MMDiT.sd35_medium(), 2_243_171_520 + 384 * 384 * 1536),
    "sd35_large": (MMDiT.sd35_large(), 8_056_627_520 + 192 * 192 * 2432),
    "flux_dev": (Flux.dev(), 11_901_408_320),
    "flux_schnell": (Flux.schnell(), 11_891_178_560),
    "pixart_512": (PixArt.alpha_512(), 610_856_096),
    "pixart_1024": (PixArt.alpha_1024(), 611_349_152),
    "controlnet_sd1": (ControlNet.sd1(), 361_279_120),
    "controlnet_sdxl": (ControlNet.sdxl(), 1_251_014_160),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    net, expected = PUBLISHED[name]
    family = family_of(name.replace("sd35", "sd3"))
    variables = jax.eval_shape(net.init, jax.random.key(0), *family.inputs(net))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == expected
    assert family.from_config(family.to_config(net)) == net


def test_an_older_config_of_pixart_is_recognised():
    config = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "caption_channels": 4096}
    assert find_family(None, config) is pixart.family
    assert pixart.from_config(config | {"double_self_attention": False, "sample_size": 128}) == PixArt.alpha_1024()


# What the inputs mean.


def run(name, call=None, **changes):
    """Returns the output for the inputs of CALLS, with these entries of cond changed."""
    net, (x, t, cond) = CALLS[name]
    params = Case(net, (x, t, cond)).params
    return jax.jit(lambda cond: net.apply({"params": params}, x, t, cond, **(call or {})))(cond | changes)


@pytest.mark.long
def test_a_strength_is_traced_and_scales_every_residual():
    residuals = run("controlnet")
    compiled = []

    @jax.jit
    def scaled(residuals, strength):
        compiled.append(1)
        return scaled_residuals(residuals, strength, guess_mode=True)

    count = len(residuals["down_residuals"]) + 1
    for strength in (0.5, 2.0):
        found = scaled(residuals, jnp.array(strength))
        for k, (a, b) in enumerate(zip(jax.tree.leaves(found), jax.tree.leaves(residuals), strict=True)):
            np.testing.assert_allclose(a, strength * 10 ** (k / (count - 1) - 1) * b, rtol=1e-6)
    assert len(compiled) == 1
    half = scaled_residuals(residuals, jnp.arange(8) % 2)
    np.testing.assert_array_equal(half["mid_residual"][0], 0.0)
    np.testing.assert_array_equal(half["mid_residual"][1], residuals["mid_residual"][1])
    with pytest.raises(ValueError, match=r"strength must have shape \[\] or \[8\]; got \[3\]"):
        scaled_residuals(residuals, jnp.ones(3))


@pytest.mark.long
def test_the_residuals_are_those_of_a_unet_with_the_same_way_down():
    net, (x, t, cond) = CALLS["controlnet"]
    shared = {name: getattr(net, name) for name in controlnet._SHARED}
    unet = UNet2DCondition(**shared)
    text = {key: value for key, value in cond.items() if key != "image"}
    case = Case(unet, (x, t, text))
    plain = unet.apply({"params": case.params}, x, t, text)
    residuals = run("controlnet")
    for strength in (0.0, 1.0):
        out = unet.apply({"params": case.params}, x, t, text | scaled_residuals(residuals, strength))
        assert (np.abs(out - plain).max() < 1e-6) == (strength == 0)


@pytest.mark.long
def test_flux_takes_one_guidance_scale_or_one_per_example():
    one, same = run("flux", guidance=jnp.array(0.5)), run("flux", guidance=jnp.full([8], 0.5))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - run("flux", guidance=jnp.array(0.7))).max() > 1e-3


@pytest.mark.long
def test_a_skipped_block_is_left_out():
    net, (x, t, cond) = CALLS["mmdit"]
    case = Case(net, (x, t, cond))
    last = {key: value for key, value in case.params.items() if key != "block_0"} | {
        "block_0": case.params[f"block_{net.depth - 1}"]
    }
    shorter = net.clone(depth=1, dual_attention_blocks=())
    wanted = shorter.apply({"params": last}, x, t, cond)
    np.testing.assert_allclose(run("mmdit", {"skip_blocks": range(net.depth - 1)}), wanted, atol=1e-5)


@pytest.mark.long
def test_mmdit_takes_the_middle_of_its_positions():
    net, (x, t, cond) = CALLS["mmdit"]
    start = jax.jit(net.init)(jax.random.key(0), x, t, cond)["params"]["positions"]
    side, base = net.num_positions, net.image_size // net.patch_size
    assert start.shape == (side, side, net.hidden_size)
    omega = 1 / 10_000 ** (np.arange(net.hidden_size // 4) / (net.hidden_size // 4))
    np.testing.assert_allclose(start[2, 3, : len(omega)], np.sin(3 * base / side * omega), atol=1e-6)  # the column
    case = Case(net, (x, t, cond))
    rows, columns = (size // net.patch_size for size in x.shape[1:3])
    top, left = (side - rows) // 2, (side - columns) // 2
    outside = jnp.ones([side, side, 1]).at[top : top + rows, left : left + columns].set(0)
    changed = case.params | {"positions": case.params["positions"] + 5 * outside}
    np.testing.assert_array_equal(
        net.apply({"params": changed}, x, t, cond), net.apply({"params": case.params}, x, t, cond)
    )


MISUSE = [
    ("mmdit", {"dual_attention_blocks": (7,)}, {}, r"dual_attention_blocks must lie in 0 .. \d; got \(7,\)"),
    ("mmdit", {"qk_norm": "l2"}, {}, "qk_norm must be one of None, 'rms', 'layer'; got 'l2'"),
    ("mmdit", {"num_positions": 1}, {}, r"H and W must be at most num_positions patches, 2; got \(4, 8\)"),
    ("mmdit", {}, {"text_embeds": None}, r"missing \['text_embeds'\]"),
    ("mmdit", {}, {"text_embeds": jnp.ones([8, 9])}, r"cond\['text_embeds'\] must have shape \[8, 5\]; got \[8, 9\]"),
    ("mmdit", {"in_channels": 3}, {}, r"x must have shape \[B, H, W, 3\]"),
    ("flux", {"rope_dims": (2, 2, 2)}, {}, "rope_dims must be three even numbers whose sum is .* 8; got"),
    ("flux", {}, {"guidance": None}, r"missing \['guidance'\]"),
    ("flux", {}, {"guidance": jnp.ones([3])}, r"cond\['guidance'\] must have shape \[\] or \[8\]; got \(3,\)"),
    ("flux", {"depth": 0}, {}, "depth must be at least 1 and single_depth at least 0; got depth=0"),
    ("pixart", {"position_scale": 0.0}, {}, "position_scale positive; got .*position_scale=0.0"),
    ("pixart", {"hidden_size": 16}, {}, "hidden_size must be a multiple of 3 with size_conditions; got 16"),
    ("pixart", {}, {"resolution": jnp.ones([8, 1])}, r"cond\['resolution'\] must have shape \[8, 2\]; got \[8, 1\]"),
    ("controlnet", {}, {"image": jnp.ones([8, 4, 4, 3])}, r"cond\['image'\] must have shape \[8, 8, 8, 3\]"),
    ("controlnet", {}, {"mid_residual": jnp.ones([8])}, r"unknown \['mid_residual'\]"),
]


@pytest.mark.parametrize(("name", "fields", "changes", "message"), MISUSE)
def test_misuse_is_explained(name, fields, changes, message):
    net, (x, t, cond) = CALLS[name]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: net.clone(**fields).init(jax.random.key(0), x, t, cond | changes))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (sd3.family, {"caption_projection_dim": 7}, "caption_projection_dim must be .* = 1152; got 7"),
        (sd3.family, {"qk_norm": "l2"}, "qk_norm must be one of .*; got 'l2'"),
        (flux.family, {"patch_size": 2}, "patch_size must be 1, the only implemented value; got 2"),
        (flux.family, {"in_channels": 6}, "in_channels and out_channels must be multiples of 4, of patches; got"),
        (pixart.family, {"caption_channels": 8, "cross_attention_dim": 7}, "cross_attention_dim must be .*; got 7"),
        (pixart.family, {"caption_channels": 8, "norm_type": "ada_norm"}, "norm_type must be 'ada_norm_single'"),
        (controlnet.family, {"global_pool_conditions": True}, "global_pool_conditions must be False"),
        (controlnet.family, {"up_block_types": []}, "up_block_types belong to a U-Net"),
        (unet2d_condition.family, {"conditioning_channels": 3}, "conditioning_channels is unknown"),
    ],
)
def test_configs_of_other_networks_are_refused(family, config, message):
    with pytest.raises(ValueError, match=message):
        family.from_config(config)
