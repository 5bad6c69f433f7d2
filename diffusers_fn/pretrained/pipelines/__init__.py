"""Published text-to-image pipelines as pure functions: Stable Diffusion 1, 2, XL, 3, Flux, PixArt-alpha."""

from diffusers_fn.pretrained.pipelines.control import Control
from diffusers_fn.pretrained.pipelines.load import load_pipeline
from diffusers_fn.pretrained.pipelines.pipeline import Pipeline, make_pipeline
from diffusers_fn.pretrained.pipelines.skip_layers import SkipLayers

__all__ = ["Control", "Pipeline", "SkipLayers", "load_pipeline", "make_pipeline"]


def __dir__() -> list[str]:
    return __all__
