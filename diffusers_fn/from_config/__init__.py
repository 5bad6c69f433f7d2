"""From a config to pure functions: the only package that reads names.

`defaults` lists every field, `diffusion`, `classifier` and `autoencoder` build models (`dfn.build` and its siblings),
`tables` maps the names to functions and networks. Each of the other modules makes one part from its own section of the
config.
"""

__all__: list[str] = []
