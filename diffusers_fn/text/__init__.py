"""Tokens of prompts, on the host: CLIP's byte pairs and T5's sentencepiece, through the packages of the extra `text`.

Padding and truncation are those of the published pipelines:

    tokenizer = load_tokenizer("stable-diffusion/tokenizer")
    tokens = tokenize(tokenizer, ["a photo of a cat"])  # ids [1, 77]
"""

from diffusers_fn.text.load import load_tokenizer
from diffusers_fn.text.tokenizer import Tokenizer, Tokens, tokenize

__all__ = ["Tokenizer", "Tokens", "load_tokenizer", "tokenize"]


def __dir__() -> list[str]:
    return __all__
