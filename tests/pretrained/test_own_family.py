"""The commented skeleton of a family in the docstring of `pretrained` is run as it stands there."""

import re
import textwrap

import jax
import numpy as np
import pytest

from diffusers_fn import pretrained


@pytest.fixture(scope="module")
def skeleton():
    """The names that the skeleton's code defines."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", pretrained.__doc__, flags=re.MULTILINE)
    names = {"__name__": "skeleton"}
    exec(textwrap.dedent(max(blocks, key=len)), names)
    return names


def test_the_skeleton_is_a_family_that_loads_and_saves(skeleton, tmp_path):
    family, net = skeleton["family"], skeleton["Net"](in_channels=2, hidden_size=8, depth=3)
    shapes, rng = jax.eval_shape(net.init, jax.random.key(0), *family.inputs(net))["params"], np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    pretrained.save(tmp_path / "net", net, params, family)
    for module, loaded in (
        pretrained.load(tmp_path / "net", family),
        pretrained.load(tmp_path / "net", families=[family]),
    ):
        assert module == net
        jax.tree.map(np.testing.assert_array_equal, loaded, params)
    tensors = pretrained.to_torch(params, net, family)
    assert tensors["conv_in.weight"].shape == (8, 2, 3, 3)
    assert tensors["blocks.2.fc.weight"].shape == (8, 8)
    old = tensors | {"position_ids": np.arange(77)[None]}
    jax.tree.map(np.testing.assert_array_equal, pretrained.from_torch(old, net, family), params)
