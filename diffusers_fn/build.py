"""TEMP"""


class Diffusion: ...


def build(c): ...
