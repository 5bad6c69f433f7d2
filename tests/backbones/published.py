"""Published networks for the parity tests: module, parameters and recorded calls of a folder in golden_nets."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.pretrained.checkpoint import open_checkpoint
from diffusers_fn.pretrained.convert import from_torch, to_torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden_nets"


def attention(query, key, value, mask=None):
    """Attention in the dtype of its inputs: jax.nn.dot_product_attention computes every softmax in float32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    logits = logits if mask is None else jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)


def network(name, family, dtype=jnp.float32):
    """Returns (module, params), the module of its config in this dtype."""
    checkpoint = open_checkpoint(GOLDEN / name)
    module = family.from_config(config(name))
    params = from_torch(checkpoint.tensors, module, family, dtype=dtype)
    module = module.clone(dtype=dtype, param_dtype=dtype)
    return module.clone(attention_fn=attention) if dtype == jnp.float64 else module, params


def config(name):
    return json.loads((GOLDEN / name / "config.json").read_text())


def recorded(name, call):
    """Returns the arrays of one call, {"in/x": ..., "out_f32": ...}."""
    with np.load(GOLDEN / name / "io.npz") as io:
        return {key.removeprefix(f"{call}/"): io[key] for key in io.files if key.startswith(f"{call}/")}


def error(out, expected):
    """Returns the largest |out - expected| / max |expected|."""
    assert out.shape == expected.shape
    return np.abs(np.asarray(out) - expected).max() / np.abs(expected).max()


def assert_round_trip(name, family):
    """The config and, bit by bit, the tensors come back."""
    module, params = network(name, family)
    plain = family.from_config(config(name))
    assert family.from_config(json.loads(json.dumps(family.to_config(plain)))) == plain
    tensors, again = open_checkpoint(GOLDEN / name).tensors, to_torch(params, module, family)
    assert set(again) == set(tensors)
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor.read())
