"""A family of published weights of your own: checkpoints of a small torch network, read and written exactly.

    python docs/skeletons/family.py

A `Family` maps a published config.json to a linen module and back, and names, for every parameter, the tensors of the
checkpoint and their layout. Reading, checking, sharding, casting and writing are the same for all families.

Inside this repository the network is a file in `diffusers_fn/backbones/` and the family a file
`diffusers_fn/pretrained/NAME.py`, with one line in the table FAMILIES of `diffusers_fn/pretrained/load.py`.
`tests/pretrained/test_families.py` finds a small checkpoint of the reference with its outputs in
`tests/golden_nets/NAME/`.
"""

import json
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn import pretrained
from diffusers_fn.pretrained.entries import conv, linear


class Net(nn.Module):
    """The network; x [B, H, W, C], t [] or [B]."""

    in_channels: int = 3
    hidden_size: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        h = nn.Conv(self.hidden_size, (3, 3), name="conv_in")(x) + jnp.reshape(t, (-1, 1, 1, 1))
        return nn.Dense(self.in_channels, name="dense_out")(nn.silu(h))


def from_config(config):  # config.json -> the module; read_config refuses missing, unknown and unsupported fields
    fields = pretrained.read_config(config, required=["in_channels"], optional={"width": 16}, only={"act_fn": "silu"})
    return Net(in_channels=fields["in_channels"], hidden_size=fields["width"])


def to_config(module):  # the inverse: from_config(to_config(module)) == module
    return {"in_channels": module.in_channels, "width": module.hidden_size, "act_fn": "silu"}


def entries(module):  # parameter path, name in the checkpoint; `conv` and `linear` know torch's layouts
    return [*conv("conv_in", "stem"), *linear("dense_out", "head")]


def inputs(module):  # arguments with which module.init makes every parameter
    return jax.ShapeDtypeStruct((1, 8, 8, module.in_channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


family = pretrained.Family("net", ("NetModel",), from_config, to_config, entries, inputs)

if __name__ == "__main__":
    # A checkpoint as torch has it: dense kernels [out, in], convolutions [out, in, height, width].
    rng = np.random.default_rng(0)
    shapes = {"stem.weight": (16, 3, 3, 3), "stem.bias": (16,), "head.weight": (3, 16), "head.bias": (3,)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    module = from_config({"in_channels": 3})
    params = pretrained.from_torch(tensors, module, family)

    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(folder, module, params, family)
        print(json.loads((Path(folder) / "config.json").read_text()))
        again, loaded = pretrained.load(folder, families=[family])  # selected by the class name in config.json
    assert again == module
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    back = pretrained.to_torch(loaded, module, family)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    print("read and written bit for bit")
