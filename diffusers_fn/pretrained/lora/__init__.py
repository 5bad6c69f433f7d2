"""Low-rank adapters (LoRA) as functions on parameter trees: read, merged, trained, written.

An adapter of a kernel W adds scale alpha / rank up down, with down [rank, in] and up [out, rank]. Hu et al., "LoRA:
Low-Rank Adaptation of Large Language Models" (2021), https://arxiv.org/abs/2106.09685, section 4.1.

    pipeline, params = pretrained.load_pipeline("stable-diffusion-v1-5")
    params = lora.merge(params, lora.load("style.safetensors"), 0.8)
"""

from diffusers_fn.pretrained.lora.factors import Factors, Lora
from diffusers_fn.pretrained.lora.files import load, save
from diffusers_fn.pretrained.lora.merging import ATTENTION, init, merge

__all__ = ["ATTENTION", "Factors", "Lora", "init", "load", "merge", "save"]


def __dir__() -> list[str]:
    return __all__
