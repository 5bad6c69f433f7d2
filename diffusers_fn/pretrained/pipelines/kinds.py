"""The kinds of published pipelines: how each turns tokens into a condition, and calls its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import ops
from diffusers_fn.backbones.clip_text import ClipText
from diffusers_fn.backbones.controlnet import scaled_residuals
from diffusers_fn.pretrained.pipelines.parts import Cond, Kind, Parts
from diffusers_fn.text import Tokens

__all__ = ["KINDS"]

_Params = Mapping[str, Any]
_Texts = Mapping[str, Tokens]


def _clip(parts: Parts, params: _Params, name: str, tokens: Tokens) -> ClipText:
    """The outputs of a CLIP encoder. Padding is not masked: the published models were trained so."""
    encoder: Any = parts.modules[name]
    found: ClipText = encoder.apply({"params": params[name]}, jnp.asarray(tokens.ids))
    return found


def _hidden(out: ClipText, index: int) -> jax.Array:
    """hidden[-index]; ValueError if the encoder has fewer layers."""
    if not 1 <= index <= len(out.hidden):
        raise ValueError(f"clip_skip must leave a layer of {len(out.hidden) - 1}; got one too large")
    return out.hidden[-index]


def _with_control(parts: Parts, params: _Params, x: Any, t: Any, cond: Cond) -> Cond:
    """The condition with the residuals of a ControlNet: its image is cond["control"]."""
    control = cond.pop("control", None)
    if control is None:
        return cond
    network: Any = parts.modules["controlnet"]
    residuals = network.apply({"params": params["controlnet"]}, x, t, {**cond, "image": control["image"]})
    on = control["strength"] * ((t <= control["first"]) & (t >= control["last"]))
    return {**cond, **scaled_residuals(residuals, on, guess_mode="guess" in control)}


def _unet(parts: Parts, params: _Params, x: Any, t: Any, cond: Cond) -> Any:
    cond = _with_control(parts, params, x, t, dict(cond))
    more = cond.pop("channels", None)  # a mask and the latents of what is known
    x = x if more is None else jnp.concatenate([x, more.astype(x.dtype)], axis=-1)
    return parts.modules["unet"].apply({"params": params["unet"]}, x, t, cond)


def _sd(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> Cond:
    """The last hidden state; with clip_skip an earlier one, normalised like the last."""
    out = _clip(parts, params, "text_encoder", texts["tokenizer"])
    if not clip_skip:
        return {"context": out.last_hidden}
    encoder: Any = parts.modules["text_encoder"]
    norm: Any = ops.LayerNorm(encoder.norm_eps, dtype=encoder.dtype)
    hidden = _hidden(out, clip_skip + 1)
    return {"context": ops.array(norm.apply({"params": params["text_encoder"]["norm_out"]}, hidden))}


def _two_clips(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """The penultimate hidden states of the CLIP encoders, without a normalisation, and their pooled outputs."""
    hidden, pooled = [], []
    for number in ("", "_2"):
        if f"text_encoder{number}" in parts.modules:
            out = _clip(parts, params, f"text_encoder{number}", texts[f"tokenizer{number}"])
            hidden.append(_hidden(out, clip_skip + 2))
            pooled.append(out.pooled if out.text_embeds is None else out.text_embeds)
    return hidden, pooled


def _sdxl(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> Cond:
    hidden, pooled = _two_clips(parts, params, texts, clip_skip)
    return {"context": jnp.concatenate(hidden, axis=-1), "text_embeds": pooled[-1]}


def _time_ids(parts: Parts, batch: int, height: int, width: int, options: Mapping[str, Any]) -> Cond:
    """Original height and width, the crop's top and left, target height and width."""
    size = (height, width)
    ids = [*options.get("original_size", size), *options.get("crop", (0, 0)), *options.get("target_size", size)]
    return {"time_ids": jnp.broadcast_to(jnp.asarray(ids, jnp.float32), (batch, 6))}


def _sd3(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> Cond:
    """Both CLIPs side by side, padded to T5's width, then T5's tokens; zeros where there is no T5."""
    hidden, pooled = _two_clips(parts, params, texts, clip_skip)
    clip = jnp.concatenate(hidden, axis=-1)
    network: Any = parts.modules["transformer"]
    clip = jnp.pad(clip, ((0, 0), (0, 0), (0, network.context_dim - clip.shape[-1])))
    if "text_encoder_3" in parts.modules:
        long = _t5(parts, params, "text_encoder_3", texts["tokenizer_3"], masked=False)
    else:
        long = jnp.zeros((*texts["tokenizer_3"].ids.shape, network.context_dim), clip.dtype)
    return {"context": jnp.concatenate([clip, long], axis=1), "text_embeds": jnp.concatenate(pooled, axis=-1)}


def _t5(parts: Parts, params: _Params, name: str, tokens: Tokens, *, masked: bool) -> jax.Array:
    mask = (jnp.asarray(tokens.mask),) if masked else ()
    encoder: Any = parts.modules[name]
    out: jax.Array = encoder.apply({"params": params[name]}, jnp.asarray(tokens.ids), *mask)
    return out


def _transformer(parts: Parts, params: _Params, x: Any, t: Any, cond: Cond, **options: Any) -> Any:
    return parts.modules["transformer"].apply({"params": params["transformer"]}, x, t, cond, **options)


def _flux_text(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> Cond:
    if clip_skip:
        raise ValueError("clip_skip has no meaning for this pipeline: of CLIP it takes the pooled output alone")
    pooled = _clip(parts, params, "text_encoder", texts["tokenizer"]).pooled
    return {"context": _t5(parts, params, "text_encoder_2", texts["tokenizer_2"], masked=False), "text_embeds": pooled}


def _flux(parts: Parts, params: _Params, x: Any, t: Any, cond: Cond) -> Any:
    """The network's times lie in [0, 1], those of the scheduler in [0, 1000]."""
    return _transformer(parts, params, x, t / 1000.0, cond)


def _pixart_text(parts: Parts, params: _Params, texts: _Texts, clip_skip: int) -> Cond:
    if clip_skip:
        raise ValueError("clip_skip has no meaning for this pipeline: it has no CLIP")
    tokens = texts["tokenizer"]
    context = _t5(parts, params, "text_encoder", tokens, masked=True)
    return {"context": context, "context_mask": jnp.asarray(tokens.mask)}


def _pixart(parts: Parts, params: _Params, x: Any, t: Any, cond: Cond) -> Any:
    """Half of the output is a variance, which no scheduler of this pipeline uses."""
    return _transformer(parts, params, x, t, cond)[..., : x.shape[-1]]


def _aspect(parts: Parts, batch: int, height: int, width: int, options: Mapping[str, Any]) -> Cond:
    network: Any = parts.modules["transformer"]
    if not network.size_conditions:
        return {}
    rows = lambda *values: jnp.broadcast_to(jnp.asarray(values, jnp.float32), (batch, len(values)))  # noqa: E731
    return {"resolution": rows(height, width), "aspect_ratio": rows(height / width)}


def _shift(parts: Parts, shape: tuple[int, ...], num_steps: int | None) -> Mapping[str, Any]:
    """The number of tokens, on which a dynamic shift of the noise levels depends."""
    if not parts.scheduler.options.get("use_dynamic_shifting"):
        return {}
    network: Any = parts.modules["transformer"]
    patch = getattr(network, "patch_size", 2)
    return {"image_seq_len": (shape[-3] // patch) * (shape[-2] // patch)}


def _flux_plan(parts: Parts, shape: tuple[int, ...], num_steps: int | None) -> Mapping[str, Any]:
    """Noise levels 1, 1 - 1/N, ..., 1/N, before they are shifted."""
    even = {} if num_steps is None else {"sigmas": np.linspace(1.0, 1.0 / num_steps, num_steps)}
    return {**_shift(parts, shape, num_steps), **even}


_SD = Kind(
    ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    _sd,
    _unet,
    {"tokenizer": "text_encoder"},
)
KINDS: Mapping[str, Kind] = {
    "sd": _SD,
    "sdxl": Kind(
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        _sdxl,
        _unet,
        {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"},
        sizes=_time_ids,
        guidance_scale=5.0,
        zeros=lambda settings: bool(settings.get("force_zeros_for_empty_prompt", True)),
    ),
    "sd3": Kind(
        ("StableDiffusion3Pipeline",),
        _sd3,
        _transformer,
        {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "tokenizer_3": "text_encoder_3"},
        guidance_scale=7.0,
        num_steps=28,
        max_lengths={"tokenizer": 77, "tokenizer_2": 77, "tokenizer_3": 256},
        long_tokenizer="tokenizer_3",
        plan=_shift,
    ),
    "flux": Kind(
        ("FluxPipeline",),
        _flux_text,
        _flux,
        {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"},
        guidance_scale=3.5,
        num_steps=28,
        max_lengths={"tokenizer": 77, "tokenizer_2": 512},
        long_tokenizer="tokenizer_2",
        embeds_guidance=True,
        plan=_flux_plan,
    ),
    "pixart": Kind(
        ("PixArtAlphaPipeline",),
        _pixart_text,
        _pixart,
        {"tokenizer": "text_encoder"},
        sizes=_aspect,
        guidance_scale=4.5,
        num_steps=20,
        max_lengths={"tokenizer": 120},
        long_tokenizer="tokenizer",
        lower_case=True,
    ),
}
