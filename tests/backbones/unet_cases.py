"""The recorded options of the U-Net families (tests/golden_nets/unet_families): networks, weights, calls."""

import functools
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import published

from diffusers_fn import pretrained
from diffusers_fn.backbones import SuperResolution

FOLDER = published.GOLDEN / "unet_families"
CASES = json.loads((FOLDER / "cases.json").read_text())


@functools.cache
def arrays():
    with np.load(FOLDER / "io.npz") as io:
        return {key: io[key] for key in io.files}


def recorded(name, call):
    """Returns the arrays of one call, {"in/x": ..., "out": ...}; images as NHWC."""
    start = f"{name}/{call}/"
    found = {key.removeprefix(start): array for key, array in arrays().items() if key.startswith(start)}
    return {key: np.moveaxis(array, 1, -1) if array.ndim == 4 else array for key, array in found.items()}


def state_dict(name):
    """Returns the tensors of a case: random numbers that follow from their names (see meta.json)."""
    case = CASES[name]
    tensors = {key: drawn(key, shape) for key, shape in case["tensors"].items()}
    return tensors | {key: arrays()[f"{name}/constant/{key}"] for key in case["constants"]}


def network(name, dtype=jnp.float64):
    """Returns (module, params), the module of its config in this dtype."""
    family = pretrained.FAMILIES[CASES[name]["family"]]
    module = family.from_config(CASES[name]["config"])
    params = pretrained.from_torch(state_dict(name), module, family, dtype=dtype)
    fields = {"dtype": dtype, "param_dtype": dtype}
    if dtype == jnp.float64:
        fields["attention_fn"] = published.attention
    if isinstance(module, SuperResolution):
        return module.clone(net=module.net.clone(**fields)), params
    return module.clone(**fields), params


@functools.cache
def applied(name):
    """Returns (x, t, cond) -> output of a case's network in float64, compiled once for all tests."""
    module, params = network(name)
    apply = jax.jit(lambda *args: module.apply({"params": params}, *args))

    def widened(x, t, *cond):
        return apply(x.astype(float), t.astype(float) if t.dtype.kind == "f" else t, *cond)

    return widened


def cond_of(name, call):
    """Returns cond for the labels, augmentations and small images of a recorded call."""
    given = {key.removeprefix("in/"): value for key, value in call.items() if key.startswith("in/")}
    family = CASES[name]["family"]
    if "low_res" in given:
        return {"low_res": given["low_res"], "cond": given["y"]}
    if width := CASES[name]["config"].get("augment_dim"):
        augment = given.get("augment", np.zeros([len(given["x"]), width], np.float32))
        return {"label": given["label"], "augment": augment}
    return given.get("label", given.get("y")) if family != "guided_classifier" else None


def drawn(name, shape):
    """Returns the random tensor that follows from a name (see meta.json)."""
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
        n = 0.1 * n
    elif len(shape) > 1:
        n = n / np.sqrt(np.prod(shape[1:]))
    elif "norm" in name or re.search(r"(layers\.0|^out\.0|out\.1)\.weight$", name):
        n = 1 + 0.2 * n
    else:
        n = 2 * n
    return n.astype(np.float32)
