"""The U-Net families against the published networks: same weights, same outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import unet_cases
from unet_cases import CASES

from diffusers_fn import Level, make_denoiser, parameterizations, pretrained
from diffusers_fn.backbones import Classifier, SongUNet, UNet, UNet2D

FAMILIES = {
    "unet2d_ddpm": "unet2d",
    "guided_unet_plain": "guided_unet",
    "improved_unet": "guided_unet",
    "edm_vp_ddpmpp": "edm",
}


def images(array):
    """Returns NCHW as NHWC."""
    return np.moveaxis(array, 1, -1)


def errors(name, dtype, calls):
    """Returns the largest |out - reference| / max |reference| of each call of a whole published network."""
    module, params = published.network(name, pretrained.FAMILIES[FAMILIES[name]], dtype)
    apply, found = jax.jit(module.apply), []
    for call in calls:
        arrays = published.recorded(name, call)
        x = jnp.asarray(images(arrays["in/x"]), dtype)
        label = arrays["in/c_noise" if "in/c_noise" in arrays else "in/t"]
        # Labels [] and [B], int and float, are one compilation here; test_laws.py compares them.
        out = apply({"params": params}, x, np.broadcast_to(label, len(x)).astype(dtype))
        assert out.dtype == dtype
        bits = 64 if dtype == jnp.float64 else 32
        reference = arrays[f"out.F_f{bits}" if "in/c_noise" in arrays else f"out_f{bits}"]
        found.append(published.error(out, images(reference)))
    return found


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("unet2d_ddpm", ["rect"]),
        ("guided_unet_plain", ["main"]),
        ("improved_unet", ["main"]),
        ("edm_vp_ddpmpp", ["main"]),
    ],
)
def test_same_outputs_in_float32(name, calls):
    # Two correct float32 evaluations of these networks differ by 2e-6 of the largest output; measured below 1e-6.
    assert max(errors(name, jnp.float32, calls)) < 2e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("unet2d_ddpm", ["main", "scalar_t", "float_t"]),
        ("guided_unet_plain", ["main"]),
        ("improved_unet", ["main"]),
        ("edm_vp_ddpmpp", ["main"]),
    ],
)
def test_same_outputs_in_float64(x64, name, calls):
    assert max(errors(name, jnp.float64, calls)) < 1e-10


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["family"] != "guided_classifier"])
def test_options_give_the_same_outputs(x64, name):
    apply = unet_cases.applied(name)
    for call in [call for call in CASES[name]["calls"] if call != "precond"]:
        arrays = unet_cases.recorded(name, call)
        cond = unet_cases.cond_of(name, arrays)
        args = [arrays["in/x"], arrays["in/t"], *([] if cond is None else [cond])]
        out = apply(*args)
        assert published.error(out, arrays["out"]) < 2e-7, call  # the reference is rounded to float32


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_names_and_configs_come_back(name):
    family = pretrained.FAMILIES[CASES[name]["family"]]
    module = family.from_config(CASES[name]["config"])
    assert family.from_config(json.loads(json.dumps(family.to_config(module)))) == module
    tensors = unet_cases.state_dict(name)
    again = pretrained.to_torch(pretrained.from_torch(tensors, module, family), module, family)
    assert set(again) == set(tensors)
    for key in CASES[name]["tensors"]:
        np.testing.assert_array_equal(again[key], tensors[key])


def test_tensors_of_older_checkpoints():
    """Attention under its old names, and the frequencies twice."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    module, family = unet_cases.network("unet2d_fourier", jnp.float32)[0], pretrained.FAMILIES["unet2d"]
    tensors = unet_cases.state_dict("unet2d_fourier")
    expected = pretrained.from_torch(tensors, module, family)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    tensors["time_proj.W"] = tensors["time_proj.weight"]
    jax.tree.map(np.testing.assert_array_equal, pretrained.from_torch(tensors, module, family), expected)


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (
            "unet2d",
            {"down_block_types": ["CrossAttnDownBlock2D"] * 4},
            r"down_block_types must have one of DownBlock2D, ",
        ),
        ("unet2d", {"act_fn": "elu"}, r"act_fn must be one of silu, swish, mish, gelu, relu; got 'elu'"),
        ("unet2d", {"norm_num_groups": None}, r"norm_num_groups must be an integer"),
        (
            "unet2d",
            {"resnet_time_scale_shift": "spatial"},
            r"resnet_time_scale_shift must be one of default, scale_shift",
        ),
        ("unet2d", {"depth": 3}, r"depth is unknown"),
        ("edm", {"model_type": "UNet"}, r"model_type must be SongUNet or DhariwalUNet, .*; got 'UNet' and None"),
        ("edm", {"model_type": "SongUNet", "img_channels": 3}, r"img_resolution is missing"),
        ("guided_unet", {"in_channels": 3}, r"model_channels is missing"),
        ("guided_classifier", {"image_size": 64, "dims": 3}, r"dims must be 2, the only implemented value; got 3"),
    ],
)
def test_configs_of_other_networks_are_refused(family, config, message):
    with pytest.raises(ValueError, match=message):
        pretrained.FAMILIES[family].from_config(config)


def test_modules_that_the_reference_does_not_have_are_refused():
    for family, module in (("unet2d", UNet2D(num_classes=3)), ("guided_unet", UNet(num_classes=3, out_channels=3))):
        with pytest.raises(ValueError, match="must have null_class=False"):
            pretrained.FAMILIES[family].entries(module)
    with pytest.raises(ValueError, match="must have sigma_labels=False"):
        pretrained.FAMILIES["edm"].to_config(SongUNet(out_channels=3, sigma_labels=True))
    skips = {"input_pyramid": "skip", "output_pyramid": True, "sigma_labels": True}
    module = SongUNet.ncsnpp(out_channels=3, num_classes=3, **skips)
    with pytest.raises(ValueError, match=r"no UNet2DModel has these fields of SongUNet: .*num_classes"):
        pretrained.FAMILIES["unet2d"].to_config(module)


def classified(module, params, x, t, y):
    """Returns logits, and the gradient of the log probability of the labels, each example's own."""

    def log_prob(x):
        logits = module.apply({"params": params}, x, t)
        return jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(len(y)), y]), logits

    grad, logits = jax.jit(jax.grad(log_prob, has_aux=True))(x)
    return logits, grad


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["family"] == "guided_classifier"])
def test_classifiers_give_the_same_logits_and_gradients(x64, name):
    module, params = unet_cases.network(name)
    assert isinstance(module, Classifier)
    arrays = unet_cases.recorded(name, "main")
    logits, grad = classified(module, params, arrays["in/x"].astype(float), arrays["in/t"], arrays["in/y"])
    assert published.error(logits, arrays["logits"]) < 2e-7
    assert published.error(grad, arrays["grad"]) < 2e-7


@pytest.mark.long
def test_the_published_classifier_in_float32():
    name = "guided_classifier_attention"
    module, params = published.network(name, pretrained.FAMILIES["guided_classifier"])
    arrays = published.recorded(name, "main")
    logits, grad = classified(module, params, images(arrays["in/x"]), arrays["in/t"], arrays["in/y"])
    assert published.error(logits, arrays["out.logits_f32"]) < 2e-5
    assert published.error(grad, images(arrays["out.cond_grad_f32"])) < 2e-5


# EDM's preconditionings are parameterizations, at levels x = x0 + sigma eps or, for the older networks, at the levels
# of a variance-preserving process.


def vp_label(sigma, beta_d=19.9, beta_min=0.1):
    return 999 * (np.sqrt(beta_min**2 + 2 * beta_d * np.log1p(sigma**2)) - beta_min) / beta_d


def preserving(sigma, label):
    return Level(1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2), label)


def denoised(apply, level, parameterization, x):
    denoise = make_denoiser(lambda params, x, t, cond=None: apply(x, t), None, parameterization)
    return denoise(x * level.alpha[:, None, None, None], level).x0


@pytest.mark.long
def test_vp_preconditioning_is_epsilon_at_preserving_levels(x64):
    module, params = published.network("edm_vp_ddpmpp", pretrained.FAMILIES["edm"], jnp.float64)
    arrays = published.recorded("edm_vp_ddpmpp", "main")
    sigma = arrays["in/sigma"].astype(float)
    level = preserving(sigma, vp_label(sigma))
    apply = jax.jit(lambda x, t: module.apply({"params": params}, x, t))
    out = denoised(apply, level, parameterizations.epsilon, images(arrays["in/x"]).astype(float))
    assert published.error(out, images(arrays["out.D_f64"])) < 1e-10


@pytest.mark.long
@pytest.mark.parametrize("name", ["edm_ncsnpp", "edm_ddpmpp_cond", "edm_adm_cond", "edm_iddpm_adm"])
def test_other_preconditionings(x64, name):
    arrays = unet_cases.recorded(name, "precond")
    x, sigma, cond = arrays["in/x"].astype(float), arrays["in/sigma"].astype(float), unet_cases.cond_of(name, arrays)

    def apply(x, t):
        return unet_cases.applied(name)(x, t, *([] if cond is None else [cond]))

    kind = CASES[name]["config"]["precond"]
    if kind == "VEPrecond":  # the network's output is -eps
        expected = x + sigma[:, None, None, None] * np.asarray(apply(x, np.log(sigma / 2)))
    elif kind == "EDMPrecond":
        level = Level(np.ones_like(sigma), sigma, np.log(sigma) / 4)
        expected = denoised(apply, level, parameterizations.edm(0.5), x)
    else:
        u = arrays_u(name)
        level = preserving(sigma, 999.0 - np.argmin(np.abs(u[None] - sigma[:, None]), axis=1))
        expected = denoised(apply, level, parameterizations.epsilon, x)
    assert published.error(expected, arrays["D"]) < 2e-7


def arrays_u(name):
    """Returns iDDPM's noise levels, largest first."""
    return unet_cases.state_dict(name)["u"].astype(float)
