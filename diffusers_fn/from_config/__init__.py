"""From a config to pure functions: the only package that reads names.

`defaults` lists every field, `diffusion`, `classifier` and `autoencoder` build models (`dfn.build` and its siblings),
`tables` has what the names stand for. The other modules make one part each from their own section of the config.
"""

__all__: list[str] = []
