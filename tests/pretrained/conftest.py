"""A small family that uses every feature of `Family`, and its checkpoint."""

import functools
import json
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusers_fn.pretrained import Constant, Entry, Family, convert
from diffusers_fn.pretrained.entries import conv, linear, norm
from diffusers_fn.pretrained.family import read_config
from diffusers_fn.pretrained.safetensors_file import write_safetensors


class Net(nn.Module):
    """A convolution, a kernel that torch stores as two tensors, a norm and a dense layer."""

    width: int = 8

    @nn.compact
    def __call__(self, x, t):
        h = nn.Conv(self.width, (1, 3), name="conv")(x) + t
        h = nn.DenseGeneral((2, 4), name="pair")(h)[..., 0, :]
        return nn.Dense(2, use_bias=False, name="out")(nn.LayerNorm(name="norm")(h))


def _entries(net):
    stack = Entry(
        "pair/kernel",
        ("first.weight", "second.weight"),
        lambda a, b: np.stack([a.T, b.T], 1),
        lambda a: (a[:, 0].T, a[:, 1].T),
    )
    bias = Entry("pair/bias", ("first.bias", "second.bias"), lambda a, b: np.stack([a, b]), lambda a: (a[0], a[1]))
    return [*conv("conv", "conv"), stack, bias, *norm("norm", "norm"), *linear("out", "out", bias=False)]


def _constants(net):
    return [
        Constant("table", np.sin(np.arange(6, dtype=np.float32))[None]),
        Constant("ids", np.arange(3), saved=False),
        Constant("counter", None, saved=False),
    ]


FAMILY = Family(
    "net",
    ("NetModel",),
    lambda config: Net(read_config(config, optional={"width": 8}, only={"act": "relu"})["width"]),
    lambda net: {"width": net.width},
    _entries,
    lambda net: (jax.ShapeDtypeStruct((1, 2, 3, 5), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)),
    _constants,
    rename=lambda name: name.replace("old_", ""),
)
SHAPES = {
    "conv.weight": (8, 5, 1, 3),
    "conv.bias": (8,),
    "first.weight": (4, 8),
    "second.weight": (4, 8),
    "first.bias": (4,),
    "second.bias": (4,),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "out.weight": (2, 4),
}

cached_parameter_shapes = functools.cache(convert.parameter_shapes)


@pytest.fixture(scope="module", autouse=True)
def one_trace_per_network():
    """Loading and saving trace a network for the shapes of its parameters; here each network is traced only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "parameter_shapes", cached_parameter_shapes)
        yield


@pytest.fixture
def net(tmp_path):
    """The family, its module and tensors, and functions that write them as a checkpoint."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors["table"] = np.sin(np.arange(6, dtype=np.float32))[None]

    def write(tensors, config=None, name="model.safetensors"):
        write_file(tmp_path / name, tensors)
        if config is not None:
            (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return SimpleNamespace(family=FAMILY, module=Net(), tensors=tensors, write=write, write_file=write_file)


def write_file(path, tensors):
    """Writes a safetensors file."""
    with open(path, "wb") as file:
        specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        write_safetensors(file, specs, tensors.items())
