"""Checks of what a pipeline is given, and the sizes and plans that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusers_fn.pretrained.pipelines.parts import Parts
from diffusers_fn.pretrained.schedulers import Plan
from diffusers_fn.text import Tokens

__all__ = ["check_start", "check_tokens", "latent_shape", "make_plan", "size_of", "split_sizes"]


def check_tokens(parts: Parts, tokens: Mapping[str, Tokens]) -> None:
    """Raises ValueError unless there are tokens for each text encoder, as many of each."""
    needed = [name for name, encoder in parts.kind.tokenizers.items() if encoder in parts.modules]
    if not isinstance(tokens, Mapping) or any(name not in tokens for name in needed):
        raise ValueError(f"tokens must be those of pipeline.tokenize, for {', '.join(needed)}; got {tokens!r:.80}")
    sizes = {name: tokens[name].ids.shape[0] for name in needed}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"there must be equally many prompts for all text encoders; got {sizes}")


def check_start(plan: Plan, options: Any) -> None:
    """Raises ValueError unless the options of `Pipeline.sample` have what the plan starts from."""
    if options.plan is not None and (options.strength is not None or options.num_steps is not None):
        raise ValueError("a plan has its own num_steps and strength: give them to pipeline.plan, not to sample")
    if options.strength is not None and options.image is None:
        raise ValueError("strength is the share of the steps that are run on an image: pass image")
    if plan.partial and options.image is None and options.latents is None:
        raise ValueError(
            "this plan leaves out its first steps (strength, denoising_start): pass the image to start from, or the "
            "latents of those steps"
        )


def size_of(
    parts: Parts, image: Any, latents: Any, height: int | None, width: int | None
) -> tuple[int | None, int | None]:
    """Returns height and width in pixels: as given, or those of the image or of the latents.

    Raises:
      ValueError: if the image has another size than given.
    """
    if image is not None:
        if image.ndim != 4 or image.shape[-1] != 3:
            raise ValueError(f"image must have shape [B, H, W, 3]; got {list(image.shape)}")
        own = image.shape[1:3]
        for name, given, size in zip(("height", "width"), (height, width), own):
            if given not in (None, size):
                raise ValueError(f"{name} is {given}, but the image has {own[0]} x {own[1]} pixels: resize it first")
        return own
    if latents is not None:
        sides = tuple(parts.latent_factor * side for side in latents.shape[1:3])
        return sides[0] if height is None else height, sides[1] if width is None else width
    return height, width


def split_sizes(sizes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the sizes of Stable Diffusion XL for the prompt, and those for the negative prompt.

    Negative sizes count only if there are both an original and a target size, as in the reference.

    Raises:
      ValueError: for another name.
    """
    names = ("original_size", "crop", "target_size")
    unknown = set(sizes) - {*names, *(f"negative_{name}" for name in names)}
    if unknown:
        raise ValueError(
            f"size options are {', '.join(names)}, and each with negative_ before it; got {', '.join(sorted(unknown))}"
        )
    own = {name: sizes[name] for name in names if name in sizes}
    negative = {name: sizes[f"negative_{name}"] for name in names if f"negative_{name}" in sizes}
    return own, negative if {"original_size", "target_size"} <= set(negative) else own


def latent_shape(parts: Parts, height: int | None, width: int | None) -> tuple[int, int, int]:
    """Returns (h, w, channels) of the latents of an image; None for the network's own size.

    Raises:
      ValueError: if height or width is not a multiple of what the networks need.
    """
    vae: Any = parts.modules["vae"]
    own = parts.settings["sample_size"]
    sides = tuple(own) if isinstance(own, tuple | list) else (own, own)
    found = []
    for name, given, side in (("height", height, sides[0]), ("width", width, sides[1])):
        pixels = side * parts.latent_factor if given is None else given
        multiple = parts.latent_factor * (1 if parts.network == "unet" else 2)
        if isinstance(pixels, bool) or not isinstance(pixels, int | np.integer) or pixels < 1 or pixels % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}; got {pixels}")
        found.append(int(pixels) // parts.latent_factor)
    return found[0], found[1], int(vae.latent_channels)


def make_plan(parts: Parts, shape: tuple[int, ...], num_steps: int | None, **options: Any) -> Plan:
    """Returns the scheduler's plan for latents of a shape [..., h, w, channels].

    Args:
      parts: of the pipeline.
      shape: of the latents, on which the noise levels of some schedulers depend.
      num_steps: None for the reference's default.
      **options: of the plan, see `load_scheduler`; None is left out.
    """
    options = {name: value for name, value in options.items() if value is not None}
    given = bool({"timesteps", "sigmas"} & set(options))
    num_steps = parts.kind.num_steps if num_steps is None and not given else num_steps
    own = parts.kind.plan(parts, shape, None if given else num_steps)
    return parts.scheduler.plan(num_steps, **{**own, **options})
