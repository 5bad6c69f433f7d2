"""Published torch weights as linen parameters, and back: exact, strict, and without running anything that a file says.

    module, params = load("stable-diffusion/unet")        # a folder: safetensors and config.json
    out = module.apply({"params": params}, x, t, cond)
    save("finetuned/unet", module, params, "unet2d_condition")

`from_torch` and `to_torch` do the same in memory, with a state dict of NumPy arrays.

A family of networks is a value, `Family`: pure functions that know its config and the names and layouts of its
tensors. Everything else (reading and checking files, sharding, casting, writing) is written once for all of them, in
`load.py` and `save.py`. A family is one file, `pretrained/<family>.py`, of this form:

    from diffusers_fn.backbones import Net
    from diffusers_fn.pretrained.entries import Entry, conv, linear
    from diffusers_fn.pretrained.family import Constant, Family, read_config

    def from_config(config):                         # the reference's config.json -> the linen module
        fields = read_config(config, required=["in_channels", "width"], optional={"depth": 2}, only={"act_fn": "silu"})
        return Net(channels=fields["in_channels"], width=fields["width"], depth=fields["depth"])

    def to_config(module):                           # and back: from_config(to_config(module)) == module
        return {"in_channels": module.channels, "width": module.width, "depth": module.depth, "act_fn": "silu"}

    def entries(module):                             # a list of `Entry`, one a parameter, every parameter once
        return [*conv("conv_in", "conv_in"), *(e for i in range(module.depth) for e in linear(f"fc_{i}", f"fc.{i}"))]

    def inputs(module):                              # positional arguments of an init that makes every parameter
        return jax.ShapeDtypeStruct([1, 8, 8, module.channels], jnp.float32), jax.ShapeDtypeStruct([1], jnp.float32)

    def constants(module):                           # tensors of the file that are no parameters here; () if none
        return [Constant("position_ids", np.arange(77)[None], saved=False)]

    family = Family("net", ("NetModel",), from_config, to_config, entries, inputs, constants)

and a line in `FAMILIES` of `load.py`. Paths in entries are below "params", joined by "/". An entry of several tensors
(query, key and value kept stacked) gets them in the order of its names; `to_torch` should return views (transposes,
reshapes, slices) of what it is given, and must invert `to_linen` exactly. `rename` maps the names of older
checkpoints to those in entries; `weights_name` is the file that the reference looks for.

`guided_unet.py` is a worked example.
"""

from diffusers_fn.pretrained.convert import from_torch, to_torch
from diffusers_fn.pretrained.entries import Entry
from diffusers_fn.pretrained.family import Constant, Family
from diffusers_fn.pretrained.load import FAMILIES, load
from diffusers_fn.pretrained.save import save

__all__ = ["FAMILIES", "Constant", "Entry", "Family", "from_torch", "load", "save", "to_torch"]
