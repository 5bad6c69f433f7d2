"""Activations by name: their formulas, networks with each, and the outputs of published networks that have another."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from unet_cases import drawn

from diffusers_fn import pretrained
from diffusers_fn.backbones import AutoencoderKL, ClipTextEncoder, UNet2D, UNet2DCondition, ops
from diffusers_fn.from_config.defaults import default_backbone
from diffusers_fn.from_config.network import make_autoencoder, make_backbone
from diffusers_fn.pretrained.activations import activation_name
from diffusers_fn.pretrained.convert import from_torch, to_torch

FORMULAS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
}


def test_every_name_is_its_formula():
    assert set(FORMULAS) == set(ops.ACTIVATIONS)
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    for name, formula in FORMULAS.items():
        np.testing.assert_allclose(ops.activation(name)(x), [formula(float(each)) for each in x], atol=1e-6)


# Networks that take a name, and the inputs of each.
SMALL = {"channels": 4, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 2}
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal([1, 4, 4, 4]), jnp.float32)
NETS = {
    "unet2d": (UNet2D(middle=False, down_attention=False, up_attention=False, **SMALL), (IMAGE, jnp.array(3))),
    "unet2d_condition": (
        UNet2DCondition(transformer_depths=(0,), mid_depth=None, **SMALL),
        (IMAGE, jnp.array(3), {}),
    ),
    "autoencoder_kl": (AutoencoderKL(in_channels=4, mid_attention=False, **SMALL), (IMAGE,)),
    "clip_text": (ClipTextEncoder(vocab_size=9, hidden_size=4, depth=1, num_heads=1), (jnp.array([[1, 2, 3]]),)),
}


@functools.cache
def program(net, inputs):
    """Returns the text of the program of `NETS[inputs]` with the fields of net."""
    args = NETS[inputs][1]
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    return str(jax.make_jaxpr(net.apply)(shapes, *args))


@pytest.mark.parametrize("name", NETS)
def test_a_name_is_the_same_program_as_its_function(name):
    net, _ = NETS[name]
    for activation, function in ops.ACTIVATIONS.items():
        assert program(net.clone(activation=activation), name) == program(net.clone(activation=function), name)
    assert len({program(net.clone(activation=activation), name) for activation in FORMULAS}) == len(FORMULAS) - 1
    default = "quick_gelu" if name == "clip_text" else "silu"
    assert program(net, name) == program(net.clone(activation=default), name)


@pytest.mark.parametrize("name", NETS)
def test_an_unknown_name_is_refused_with_the_list_of_names(name):
    net, args = NETS[name]
    message = "activation must be one of silu, swish, mish, gelu, gelu_tanh, quick_gelu, relu, or a function; got 'elu'"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.clone(activation="elu").init, jax.random.key(0), *args)


@pytest.mark.parametrize("name", ["unet2d", "unet2d_condition", "autoencoder_kl"])
def test_a_config_names_the_activation(name):
    settings = default_backbone(name)
    assert settings.activation == "silu"
    settings.activation = "mish"
    module = make_autoencoder(settings, (8, 8, 3)) if name == "autoencoder_kl" else make_backbone(settings, (8, 8, 3))
    assert getattr(module, "net", module).activation == "mish"


# Published networks.

FOLDER = published.GOLDEN / "activations"
CASES = json.loads((FOLDER / "cases.json").read_text())
LONG = [name for name in CASES if name not in ("unet2d_condition_mish", "autoencoder_kl_gelu")]
COND = ("context", "class_labels", "text_embeds", "time_ids", "timestep_cond")


def network(name, dtype):
    """Returns (module, params) of a recorded network; see meta.json."""
    family = pretrained.FAMILIES[CASES[name]["family"]]
    module = family.from_config(CASES[name]["config"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *family.inputs(module))["params"]
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    tensors = {key: drawn(key, tensor.shape) for key, tensor in to_torch(zeros, module, family).items()}
    params = from_torch(tensors, module, family, dtype=dtype)
    return module.clone(dtype=dtype, param_dtype=dtype, attention_fn=published.attention), params


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES])
def test_same_outputs_as_published(x64, name):
    module, params = network(name, jnp.float64)
    with np.load(FOLDER / "io.npz") as file:
        io = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    given = {key: jnp.asarray(np.moveaxis(io[key], 1, -1), float) for key in ("in/x", "in/z") if key in io}
    if CASES[name]["family"] == "autoencoder_kl":
        run = jax.jit(module.apply, static_argnames="method")
        found = {
            "moments": run({"params": params}, given["in/x"], method="moments"),
            "decoded": run({"params": params}, given["in/z"], method="decode"),
        }
    else:
        cond = {key: io[f"in/{key}"].astype(float) for key in COND if f"in/{key}" in io}
        found = {"out": jax.jit(module.apply)({"params": params}, given["in/x"], io["in/t"], cond)}
    assert set(found) == {key for key in io if not key.startswith("in/")}
    for key, out in found.items():
        assert published.error(out, np.moveaxis(io[key], 1, -1)) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_the_name_is_read_from_a_config_and_written_to_it(name):
    family, config = pretrained.FAMILIES[CASES[name]["family"]], CASES[name]["config"]
    module = family.from_config(config)
    assert module.activation == config["act_fn"]
    assert family.to_config(module)["act_fn"] == config["act_fn"]
    assert family.to_config(module.clone(activation=ops.ACTIVATIONS[config["act_fn"]]))["act_fn"] == config["act_fn"]
    assert family.from_config(config | {"act_fn": "swish"}).activation == "silu"


def test_a_config_without_a_name_for_the_activation_is_refused():
    assert activation_name("swish") == "silu"
    for activation in ("quick_gelu", jnp.tanh):
        with pytest.raises(ValueError, match="a config can hold the activations silu, swish, mish, gelu, relu; got"):
            activation_name(activation)
