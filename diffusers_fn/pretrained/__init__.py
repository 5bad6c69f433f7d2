"""Published torch weights as linen parameters and back: exact and strict. No code from a checkpoint is run.

    module, params = load("stable-diffusion/unet")        # a folder with safetensors and config.json
    out = module.apply({"params": params}, x, t, cond)
    save("finetuned/unet", module, params, "unet2d_condition")

`from_torch` and `to_torch` do the same in memory, with a state dict of NumPy arrays. `load_single_file` reads whole
pipelines of Stable Diffusion from one file in the names of its original code.

A `Family` is a record of pure functions that describes one kind of published network: its config, and the names and
layouts of its tensors. Reading, checking, sharding, casting and writing are the same for all families. A new family is
one file like this one:

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from diffusers_fn.pretrained import Constant, Family, read_config
    from diffusers_fn.pretrained.entries import conv, linear, norm

    class Net(nn.Module):                            # the network; in this package it is in backbones/
        in_channels: int = 3
        hidden_size: int = 32
        depth: int = 2

        @nn.compact
        def __call__(self, x, t):
            h = nn.Conv(self.hidden_size, (3, 3), name="conv_in")(x) + t[:, None, None, None]
            for i in range(self.depth):
                h = h + nn.silu(nn.Dense(self.hidden_size, name=f"dense_{i}")(h))
            return nn.Dense(self.in_channels, name="dense_out")(nn.LayerNorm(name="norm_out")(h))

    def from_config(config):                         # the reference's config.json -> the module
        fields = read_config(config, required=["in_channels", "width"], optional={"depth": 2}, only={"act_fn": "silu"})
        return Net(in_channels=fields["in_channels"], hidden_size=fields["width"], depth=fields["depth"])

    def to_config(module):                           # the inverse: from_config(to_config(module)) == module
        return {"in_channels": module.in_channels, "width": module.hidden_size, "depth": module.depth, "act_fn": "silu"}

    def entries(module):                             # one Entry per parameter: its path and its tensors' names
        dense = [entry for i in range(module.depth) for entry in linear(f"dense_{i}", f"blocks.{i}.fc")]
        return [*conv("conv_in", "conv_in"), *dense, *norm("norm_out", "norm"), *linear("dense_out", "proj")]

    def inputs(module):                              # the arguments with which module.init makes all parameters
        return jax.ShapeDtypeStruct([1, 8, 8, module.in_channels], jnp.float32), jax.ShapeDtypeStruct([1], jnp.float32)

    def constants(module):                           # tensors in the checkpoint that are not parameters, if any
        return [Constant("position_ids", np.arange(77)[None], saved=False)]

    family = Family("net", ("NetModel",), from_config, to_config, entries, inputs, constants)

Outside this package, `load(folder, family)` reads its checkpoints, and `load(folder, families=[family])` selects it by
the class name in config.json. In this package the file is `pretrained/<family>.py`, and `FAMILIES` in `load.py` has a
line for it. `entries.py` and `layouts.py` have the entries of common layers. `guided_unet.py` is a complete example.
"""

from diffusers_fn.pretrained import lora, textual_inversion
from diffusers_fn.pretrained.convert import from_torch, to_torch
from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.load import FAMILIES, load
from diffusers_fn.pretrained.pipelines import Pipeline, load_pipeline
from diffusers_fn.pretrained.save import save
from diffusers_fn.pretrained.schedulers import Plan, Scheduler, load_scheduler
from diffusers_fn.pretrained.single_file import SingleFile, load_single_file

__all__ = [
    "FAMILIES",
    "Constant",
    "Entry",
    "Family",
    "Pipeline",
    "Plan",
    "Scheduler",
    "SingleFile",
    "from_torch",
    "load",
    "load_pipeline",
    "load_scheduler",
    "load_single_file",
    "lora",
    "read_config",
    "save",
    "textual_inversion",
    "to_torch",
]


def __dir__() -> list[str]:
    return __all__
