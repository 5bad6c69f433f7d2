"""From tokens to latents: one function for all kinds of pipelines; text to image, image to image, inpainting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import concrete
from diffusers_fn._types import Scan
from diffusers_fn.backbones.mmdit import MMDiT
from diffusers_fn.denoisers import Denoiser, Transform, bind, make_denoiser
from diffusers_fn.guidance import classifier_free, linear, rescaled
from diffusers_fn.guidance.rules import Rule
from diffusers_fn.levels import add_noise
from diffusers_fn.pretrained.pipelines import control as controls
from diffusers_fn.pretrained.pipelines.inpainting import keeping, known_channels, latent_mask
from diffusers_fn.pretrained.pipelines.inputs import (
    check_start,
    check_tokens,
    latent_shape,
    make_plan,
    size_of,
    split_sizes,
)
from diffusers_fn.pretrained.pipelines.parts import Cond, Parts
from diffusers_fn.pretrained.pipelines.skip_layers import SkipLayers, skip_layer_guidance
from diffusers_fn.pretrained.schedulers import Plan
from diffusers_fn.sampling import Samples, sample
from diffusers_fn.text import Tokens, tokenize

__all__ = ["Options", "decode", "denoiser", "draw", "encode", "encode_text"]

_Params = Mapping[str, Any]
_Texts = Mapping[str, Tokens]


class Options(NamedTuple):
    """The options of `Pipeline.sample`, which explains them."""

    negative: _Texts | None = None
    guidance_scale: Any = None
    num_steps: int | None = None
    height: int | None = None
    width: int | None = None
    latents: jax.Array | None = None
    plan: Plan | None = None
    image: jax.Array | None = None
    mask: jax.Array | None = None
    strength: float | None = None
    control: controls.Control | None = None
    true_cfg_scale: Any = 1.0
    guidance_rescale: Any = 0.0
    rule: Rule | None = None
    transform: Transform | None = None
    skip_layers: SkipLayers | None = None
    clip_skip: int = 0
    sizes: Mapping[str, Any] = {}
    emit: Callable[..., Any] | None = None
    scan: Scan = jax.lax.scan


def encode_text(parts: Parts, params: _Params, tokens: _Texts, clip_skip: int = 0) -> Cond:
    """Returns the condition of the network: arrays [B, ...]."""
    check_tokens(parts, tokens)
    return parts.kind.encode(parts, params, tokens, clip_skip)


def denoiser(parts: Parts, params: _Params, **options: Any) -> Denoiser:
    """Returns the denoiser of scaled latents; the options are those of the network's call."""

    def apply(params: _Params, x: jax.Array, t: jax.Array, cond: Any) -> Any:
        return parts.kind.apply(parts, params, x, t, cond, **options)

    return make_denoiser(apply, params, parts.scheduler.parameterization)


def decode(parts: Parts, params: _Params, latents: jax.Array) -> jax.Array:
    """Returns images [B, H, W, C] of scaled latents."""
    vae: Any = parts.modules["vae"]
    images: jax.Array = vae.apply({"params": params["vae"]}, vae.unscale(latents), method="decode")
    return images


def encode(parts: Parts, key: jax.Array | None, params: _Params, images: jax.Array) -> jax.Array:
    """Returns scaled latents of images: drawn from the encoder's distribution, or its mean if key is None."""
    vae: Any = parts.modules["vae"]
    mean, logvar = vae.apply({"params": params["vae"]}, images, method="encode")
    drawn = mean if key is None else mean + jnp.exp(0.5 * logvar) * _random.normal(key, mean)
    latents: jax.Array = vae.scale(drawn)
    return latents


def draw(parts: Parts, params: _Params, key: jax.Array, tokens: _Texts, options: Options) -> Samples:
    """Returns samples in scaled latents, see `Pipeline.sample`.

    Args:
      parts: of the pipeline.
      params: of all networks.
      key: one key, or [B] keys.
      tokens: of the prompts.
      options: all others.
    """
    shape = latent_shape(parts, *size_of(parts, options.image, options.latents, options.height, options.width))
    text = encode_text(parts, params, tokens, options.clip_skip)
    batch = text["context"].shape[0]
    latents = options.latents
    if latents is not None and latents.shape != (batch, *shape):
        raise ValueError(f"latents must have shape {[batch, *shape]} for these prompts; got {list(latents.shape)}")
    plan = options.plan
    if plan is None:
        plan = make_plan(parts, shape, options.num_steps, strength=options.strength)
    check_start(plan, options)
    start_key, image_key, mask_key, sample_key = _random.split(key, 4)

    pixels = (shape[0] * parts.latent_factor, shape[1] * parts.latent_factor)
    sizes, negative_sizes = (parts.kind.sizes(parts, batch, *pixels, each) for each in split_sizes(options.sizes))
    if options.sizes and not sizes:
        raise ValueError("sizes are inputs of Stable Diffusion XL; this pipeline's network has none")
    shared: Cond = {}
    scale = parts.kind.guidance_scale if options.guidance_scale is None else options.guidance_scale
    if getattr(parts.modules[parts.network], "guidance_embedding", False):
        shared["guidance"] = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (batch,))
    if parts.kind.embeds_guidance:
        scale = options.true_cfg_scale
    if _takes_mask(parts):
        shared["channels"] = known_channels(
            parts, params, mask_key, options.image, options.mask, (batch, *shape), encode
        )

    noise = _random.normal(start_key, jnp.zeros((batch, *shape))) if latents is None else jnp.asarray(latents)
    known = None
    if options.image is not None and (plan.partial or not _takes_mask(parts)):
        known = jnp.broadcast_to(encode(parts, image_key, params, options.image), noise.shape)
    if known is not None and (plan.partial or options.mask is None):
        x = add_noise(known, noise, plan.start)
    else:  # latents of the steps that a partial plan leaves out are gone on with
        x = noise if plan.partial else plan.init_scale * noise

    def network(**more: Any) -> Denoiser:
        own = denoiser(parts, params, **more)
        return own if options.transform is None else options.transform(own)

    denoise, guided = network(), {**text, **shared, **sizes}
    if options.control is not None:
        guided["control"] = controls.condition(options.control, plan, batch)
    if _is_guided(scale):
        null = {**_without_text(parts, params, tokens, text, options), **shared, **negative_sizes}
        if options.control is not None:
            null["control"] = controls.without_text(guided["control"])
        rule = linear if options.rule is None else options.rule
        if options.rule is None and concrete(options.guidance_rescale) != 0:
            rule = rescaled(options.guidance_rescale, on=parts.scheduler.parameterization)
        denoise = classifier_free(scale, null, rule=rule)(denoise)
    if options.skip_layers is not None:
        short = network(skip_blocks=_blocks(parts, options.skip_layers))
        denoise = skip_layer_guidance(denoise, network(), short, options.skip_layers, plan)
    solver = plan.solver
    if known is not None and options.mask is not None and not _takes_mask(parts):
        solver = keeping(plan, known, noise, latent_mask(parts, options.mask, noise.shape))
    denoise = bind(denoise, guided)
    return sample(
        sample_key, denoise, solver, x, emit=options.emit, final_denoise=plan.final_denoise, scan=options.scan
    )


def _takes_mask(parts: Parts) -> bool:
    """Returns whether the network takes a mask and the latents of what is known, beside its own latents."""
    network: Any = parts.modules[parts.network]
    vae: Any = parts.modules["vae"]
    return parts.network == "unet" and network.in_channels == 2 * vae.latent_channels + 1


def _blocks(parts: Parts, skip: SkipLayers) -> tuple[int, ...]:
    """The numbers of the blocks that are left out; ValueError if the network cannot leave out any."""
    network: Any = parts.modules[parts.network]
    if not isinstance(network, MMDiT):
        raise ValueError(f"skip_layers needs a transformer of Stable Diffusion 3; this is a {type(network).__name__}")
    return tuple(skip.blocks)


def _is_guided(scale: Any) -> bool:
    """Whether the second evaluation is needed: not for numbers up to 1, as in the published pipelines."""
    known = concrete(scale)
    return known is None or bool((known > 1).any())


def _without_text(parts: Parts, params: _Params, tokens: _Texts, text: Cond, options: Options) -> Cond:
    """The condition of the negative prompt: by default that of the empty prompt, or zeros."""
    if options.negative is not None:
        return encode_text(parts, params, options.negative)
    if parts.kind.zeros(parts.settings):
        return jax.tree.map(jnp.zeros_like, text)
    empty = {
        name: tokenize(parts.tokenizers[name], "", each.ids.shape[1]) if name in parts.tokenizers else each
        for name, each in tokens.items()
    }
    return encode_text(parts, params, empty)
