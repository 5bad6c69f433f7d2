"""What a pipeline is made of: networks, tokenizers, a scheduler, and what its kind does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from diffusers_fn.pretrained.schedulers import Scheduler
from diffusers_fn.text import Tokenizer, Tokens

__all__ = ["Cond", "Kind", "Parts"]

Cond = dict[str, Any]


class Parts(NamedTuple):
    """The parts of a pipeline by the names of their folders.

    Attributes:
      kind: what is done with them.
      modules: linen modules: "unet" or "transformer", "vae", "text_encoder", ...; "controlnet" if there is one.
      tokenizers: "tokenizer", "tokenizer_2", ...
      scheduler: of the folder, or another one.
      settings: fields of model_index.json and of the networks' configs on which the loop depends: sample_size, ...
    """

    kind: Kind
    modules: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: Scheduler
    settings: Mapping[str, Any]

    @property
    def network(self) -> str:
        """Returns the name of the denoising network."""
        return "unet" if "unet" in self.modules else "transformer"

    @property
    def latent_factor(self) -> int:
        """Returns how many pixels lie along a side of a latent."""
        vae: Any = self.modules["vae"]
        return int(2 ** (len(vae.channel_multipliers) - 1))


class Kind(NamedTuple):
    """A class of pipelines as functions of its parts.

    Attributes:
      class_names: in model_index.json.
      encode: (parts, params, tokens, clip_skip) -> the condition of the network, arrays [B, ...].
      apply: (parts, params, x, t, cond, **options) -> the network's output; the options are those of its call.
      sizes: (parts, batch, height, width, options) -> further entries of the condition, the same with and without a
        text.
      tokenizers: {tokenizer: the text encoder that takes its tokens}.
      guidance_scale, num_steps: defaults of the reference.
      max_lengths: {tokenizer: the length of its sequences}; others have the tokenizer's own.
      long_tokenizer: that of T5, whose sequences may be of any length.
      lower_case: whether prompts are put in lower case, without blanks at their ends.
      embeds_guidance: whether the network takes the guidance scale as an input.
      zeros: (settings) -> whether no negative prompt means zeros, and not the empty text.
      plan: (parts, latents' shape, num_steps) -> arguments of every plan, such as a shift that depends on the size.
    """

    class_names: tuple[str, ...]
    encode: Callable[[Parts, Mapping[str, Any], Mapping[str, Tokens], int], Cond]
    apply: Callable[..., Any]
    tokenizers: Mapping[str, str]
    sizes: Callable[[Parts, int, int, int, Mapping[str, Any]], Cond] = lambda *args: {}
    guidance_scale: float = 7.5
    num_steps: int = 50
    max_lengths: Mapping[str, int] = {}
    long_tokenizer: str | None = None
    lower_case: bool = False
    embeds_guidance: bool = False
    zeros: Callable[[Mapping[str, Any]], bool] = lambda settings: False
    plan: Callable[[Parts, tuple[int, ...], int | None], Mapping[str, Any]] = lambda *args: {}
