"""Checks of the parameters that are loaded for the small family of tests/pretrained/conftest.py."""

import jax
import numpy as np

CONFIG = {"_class_name": "NetModel", "_version": "1", "width": 8}


def flat(params):
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def check_loaded(params, tensors):
    found = flat(params)
    assert same_bits(found["conv/kernel"], tensors["conv.weight"].transpose(2, 3, 1, 0))
    assert same_bits(found["pair/kernel"][:, 1], tensors["second.weight"].T)
    assert same_bits(found["pair/bias"][0], tensors["first.bias"])
    assert same_bits(found["norm/scale"], tensors["norm.weight"])
    assert same_bits(found["out/kernel"], tensors["out.weight"].T)
