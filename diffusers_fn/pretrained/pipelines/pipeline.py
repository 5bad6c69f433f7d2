"""A pipeline as a record of pure functions, from prompts to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn.denoisers import Denoiser
from diffusers_fn.pretrained.pipelines import sampling
from diffusers_fn.pretrained.pipelines.inputs import latent_shape, make_plan
from diffusers_fn.pretrained.pipelines.parts import Cond, Parts
from diffusers_fn.pretrained.schedulers import Plan
from diffusers_fn.text import Tokens, tokenize

__all__ = ["Pipeline", "make_pipeline"]

_Params = Mapping[str, Any]
_Texts = dict[str, Tokens]


class Pipeline(NamedTuple):
    """The pure functions of a text-to-image pipeline; its parameters are arguments, one tree by networks.

    Latents are [B, h, w, C], scaled as the denoising network takes them; images [B, H, W, 3] in [-1, 1].

    Attributes:
      tokenize: (prompts, prompts_2=None, prompts_3=None, max_length=None) -> tokens, on the host. prompts_2 and
        prompts_3 are for the further text encoders, and `prompts` by default. max_length is that of T5's sequences.
      encode_text: (params, tokens, clip_skip=0) -> cond, the condition of the denoiser, a dict of arrays [B, ...].
      denoiser: (params) -> the denoiser of latents.
      decode: (params, latents) -> images.
      encode: (key, params, images) -> latents, drawn from the encoder's distribution; its mean if key is None.
      sample: (params, key, tokens, **options) -> images, or Samples with `emit`: see `make_pipeline`.
      plan: (num_steps=None, *, height=None, width=None, **options) -> Plan, the scheduler's loop for images of a size.
      parts: networks, tokenizers and scheduler.
    """

    tokenize: Callable[..., _Texts]
    encode_text: Callable[..., Cond]
    denoiser: Callable[[_Params], Denoiser]
    decode: Callable[[_Params, jax.Array], jax.Array]
    encode: Callable[[jax.Array | None, _Params, jax.Array], jax.Array]
    sample: Callable[..., Any]
    plan: Callable[..., Plan]
    parts: Parts


def make_pipeline(parts: Parts) -> Pipeline:
    """Returns the pipeline of its parts.

    Its `sample(params, key, tokens, **options)` returns images [B, H, W, 3], nearly in [-1, 1]. All numbers and arrays
    below may be traced, so that one compilation serves all of their values, and all plans whose tables have one shape:

        run = jax.jit(lambda params, key, tokens, plan, scale: pipeline.sample(
            params, key, tokens, plan=plan, guidance_scale=scale))

    key: one key, or [B] keys; with these an image depends on its own key, whatever the batch and the devices.

    Options of `sample`:
      negative: tokens of the negative prompts, for 1 or B images; None for none.
      guidance_scale: [] or [B]; None for the reference's default. Numbers up to 1 skip the evaluation without a text.
        Where the network takes the scale as an input (Flux) it is that, and guidance is true_cfg_scale.
      num_steps: None for the reference's default; or plan, of `Pipeline.plan`.
      height, width: of the images, in pixels; None for the network's own size, or that of image or latents.
      latents: [B, h, w, C] standard normal noise to start from; None draws it. If the plan has denoising_start, those
        which the steps before it have made.
      image: [B or 1, H, W, 3] in [-1, 1] to start from; strength, in (0, 1], is the share of the steps that are run
        on it (None: all of them). A plan has its own num_steps and strength.
      mask: [B or 1, H, W, 1], at least 0.5 where the image is painted anew.
      control: a `Control`, where there is a ControlNet.
      guidance_rescale: [] or [B], phi of `guidance.rescaled`.
      rule: another rule of guidance, such as `guidance.projected()`.
      transform: of the denoiser before guidance.
      skip_layers: a `SkipLayers`, guidance away from the network without some blocks (Stable Diffusion 3).
      clip_skip: the number of CLIP's last layers that are left out for the prompt.
      sizes: of Stable Diffusion XL: original_size, crop and target_size, (height, width) or (top, left); with negative_
        before the name those for the negative prompt.
      true_cfg_scale: [] or [B], see guidance_scale.
      emit, scan: as for `diffusers_fn.sample`; with emit the result is Samples(images, trace).
      output: "images", or "latents" for the last latents.

    It raises ValueError for an unknown option, and for tokens, sizes, images or a plan that do not fit the networks or
    each other.
    """

    def sample(params: _Params, key: jax.Array, tokens: _Texts, *, output: str = "images", **options: Any) -> Any:
        if output not in ("images", "latents"):
            raise ValueError(f"output must be 'images' or 'latents'; got {output!r}")
        unknown = set(options) - set(sampling.Options._fields)
        if unknown:
            raise ValueError(
                f"a pipeline's sample has no option {', '.join(sorted(unknown))}; it takes "
                f"{', '.join(sampling.Options._fields)}, output"
            )
        samples = sampling.draw(parts, params, key, tokens, sampling.Options(**options))
        found = samples.x0 if output == "latents" else sampling.decode(parts, params, samples.x0)
        return found if options.get("emit") is None else type(samples)(found, samples.trace)

    def plan(num_steps: int | None = None, *, height: int | None = None, width: int | None = None, **more: Any) -> Plan:
        return make_plan(parts, latent_shape(parts, height, width), num_steps, **more)

    return Pipeline(
        tokenize=lambda *prompts, **options: _tokenize(parts, *prompts, **options),
        encode_text=lambda params, tokens, clip_skip=0: sampling.encode_text(parts, params, tokens, clip_skip),
        denoiser=lambda params: sampling.denoiser(parts, params),
        decode=lambda params, latents: sampling.decode(parts, params, latents),
        encode=lambda key, params, images: sampling.encode(parts, key, params, images),
        sample=sample,
        plan=plan,
        parts=parts,
    )


def _tokenize(
    parts: Parts,
    prompts: str | Sequence[str],
    prompts_2: str | Sequence[str] | None = None,
    prompts_3: str | Sequence[str] | None = None,
    *,
    max_length: int | None = None,
) -> _Texts:
    """The tokens for each text encoder."""
    given = {"tokenizer": prompts, "tokenizer_2": prompts_2, "tokenizer_3": prompts_3}
    found = {}
    for name, tokenizer in parts.tokenizers.items():
        own = given[name]
        text = prompts if own is None else own
        length = parts.kind.max_lengths.get(name)
        if max_length is not None and name == parts.kind.long_tokenizer:
            length = max_length
        if parts.kind.lower_case:
            text = text.lower().strip() if isinstance(text, str) else [each.lower().strip() for each in text]
        found[name] = tokenize(tokenizer, text, length)
    long = parts.kind.long_tokenizer
    if long is not None and long not in found:  # its encoder is missing: only the length of the sequence counts
        shape = (len(next(iter(found.values())).ids), max_length or parts.kind.max_lengths[long])
        found[long] = Tokens(np.zeros(shape, np.int32), np.zeros(shape, bool))
    return found
