"""The networks of EDM (SongUNet and DhariwalUNet): configs, tensor names and layouts.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022),
https://arxiv.org/abs/2206.00364. The config holds the keyword arguments of a preconditioned network, with `precond` and
`model_type` for the classes of the preconditioning and of the network. The module is the inner network F; its
preconditioning is a parameterization here (`parameterizations.edm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.backbones import DhariwalUNet, SongUNet
from diffusers_fn.pretrained.entries import Entry, conv, linear, norm, same
from diffusers_fn.pretrained.family import Constant, Family, read_config
from diffusers_fn.pretrained.layouts import joint_attention, pointwise

__all__ = ["constants", "entries", "family", "from_config", "inputs", "to_config"]

_PRECONDS = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond")
_SHARED = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.1, "label_dropout": 0}
_SONG = {"model_channels": 128, "channel_mult": (1, 2, 2, 2), "num_blocks": 4, "attn_resolutions": (16,)}
_SONG |= {"embedding_type": "positional", "channel_mult_noise": 1, "resample_filter": (1, 1)}
_SONG |= {"encoder_type": "standard", "decoder_type": "standard"}
_DHARIWAL = {"model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3, "attn_resolutions": (32, 16, 8)}
_UNUSED = ("use_fp16", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "epsilon_t")


def from_config(config: Mapping[str, Any]) -> SongUNet | DhariwalUNet:
    """Returns the network F with these arguments; ValueError for arguments that are not supported.

    >>> config = {"precond": "VPPrecond", "model_type": "SongUNet", "img_resolution": 32, "img_channels": 3}
    >>> from_config(config).num_res_blocks
    4
    """
    kind = config.get("model_type", "DhariwalUNet" if config.get("precond") in (None, "EDMPrecond") else None)
    song = kind == "SongUNet"
    if kind not in ("SongUNet", "DhariwalUNet") or config.get("precond", "EDMPrecond") not in _PRECONDS:
        raise ValueError(
            f"model_type must be SongUNet or DhariwalUNet, and precond one of {', '.join(_PRECONDS)}; "
            f"got {config.get('model_type')!r} and {config.get('precond')!r}"
        )
    fields = read_config(
        config,
        required=["img_resolution", "img_channels"],
        optional=_SHARED | (_SONG if song else _DHARIWAL),
        only={"M": 1000, "C_1": 0.001, "C_2": 0.008},
        unused=("model_type", "precond", *_UNUSED),
    )
    own: dict[str, Any] = {
        "out_channels": fields["img_channels"],
        "image_size": fields["img_resolution"],
        "channels": fields["model_channels"],
        "channel_multipliers": fields["channel_mult"],
        "num_res_blocks": fields["num_blocks"],
        "attention_resolutions": fields["attn_resolutions"],
        "embedding_multiplier": fields["channel_mult_emb"],
        "num_classes": fields["label_dim"] or None,
        "augment_dim": fields["augment_dim"] or None,
        "dropout": fields["dropout"],
        "label_dropout": fields["label_dropout"],
        "learned_variance": config.get("precond") == "iDDPMPrecond",
    }
    if not song:
        return DhariwalUNet(**own)
    for name, known in (
        ("embedding_type", ("positional", "fourier")),
        ("encoder_type", ("standard", "skip", "residual")),
        ("decoder_type", ("standard", "skip")),
    ):
        if fields[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {fields[name]!r}")
    return SongUNet(
        feature_multiplier=fields["channel_mult_noise"],
        fourier_features=fields["embedding_type"] == "fourier",
        input_pyramid=None if fields["encoder_type"] == "standard" else fields["encoder_type"],
        output_pyramid=fields["decoder_type"] == "skip",
        resample_taps=fields["resample_filter"],
        **own,
    )


def to_config(module: SongUNet | DhariwalUNet) -> dict[str, Any]:
    """Returns the arguments of this network in EDM's preconditioning, or in iDDPM's if the variance is learned.

    >>> to_config(SongUNet.ncsnpp(out_channels=3))["encoder_type"]
    'residual'
    """
    if isinstance(module, SongUNet) and module.sigma_labels:
        raise ValueError("EDM's networks take c_noise as t: modules of this family must have sigma_labels=False")
    config: dict[str, Any] = {
        "precond": "iDDPMPrecond" if module.learned_variance else "EDMPrecond",
        "model_type": type(module).__name__,
        "img_resolution": module.image_size,
        "img_channels": module.out_channels,
        "label_dim": module.num_classes or 0,
        "augment_dim": module.augment_dim or 0,
        "model_channels": module.channels,
        "channel_mult": list(module.channel_multipliers),
        "channel_mult_emb": module.embedding_multiplier,
        "num_blocks": module.num_res_blocks,
        "attn_resolutions": list(module.attention_resolutions),
        "dropout": module.dropout,
        "label_dropout": module.label_dropout,
    }
    if isinstance(module, SongUNet):
        config["embedding_type"] = "fourier" if module.fourier_features else "positional"
        config["channel_mult_noise"] = module.feature_multiplier
        config["encoder_type"] = module.input_pyramid or "standard"
        config["decoder_type"] = "skip" if module.output_pyramid else "standard"
        config["resample_filter"] = list(module.resample_taps)
    return config


def inputs(module: SongUNet | DhariwalUNet) -> tuple[Any, ...]:
    """Returns shapes of x and t with which `init` makes all parameters.

    >>> inputs(SongUNet(out_channels=3))[0].shape
    (1, 32, 32, 3)
    """
    shape = (1, module.image_size, module.image_size, module.out_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)


def entries(module: SongUNet | DhariwalUNet) -> list[Entry]:
    """Returns the entries of all parameters.

    >>> entries(SongUNet(out_channels=3))[0].names
    ('model.map_layer0.weight',)
    """
    song = isinstance(module, SongUNet)
    found = [*linear("embedding_0", "model.map_layer0"), *linear("embedding_1", "model.map_layer1")]
    if module.num_classes is not None:
        found += linear("embedding_label", "model.map_label", bias=song)
    if module.augment_dim is not None:
        found += linear("embedding_augment", "model.map_augment", bias=False)
    if isinstance(module, SongUNet) and module.fourier_features:
        found += same("fourier/frequencies", "model.map_noise.freqs")

    for path, name, width, block in _layers(module):
        if block == "conv":
            found += conv(path, name)
        elif block == "pointwise":
            found += pointwise(path, name)
        elif block == "norm":
            found += norm(path, name)
        elif block == "attention":
            heads = 1 if isinstance(module, SongUNet) else width // module.head_dim
            names = f"{name}.norm2", f"{name}.qkv", f"{name}.proj"
            found += joint_attention(path, names, width, heads, order="hc3", axes=2)
        else:
            found += _res_block(path, name, skip=block == "block and skip")
    return found


def constants(module: SongUNet | DhariwalUNet) -> list[Constant]:
    """Returns the resampling filters that the reference stores per layer, and iDDPM's noise levels.

    >>> constants(SongUNet(out_channels=3))[0].value.shape
    (1, 1, 2, 2)
    """
    taps = np.asarray(module.resample_taps if isinstance(module, SongUNet) else (1, 1), np.float32)
    value = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    found = []
    for _, name, _, block in _layers(module):
        if name.endswith(("_down", "_up")):
            found += [Constant(f"{name}.{part}.resample_filter", value) for part in ("conv0", "skip")]
        elif name.endswith("_aux_residual") or block == "filter":
            found.append(Constant(f"{name}.resample_filter", value))
    if isinstance(module, SongUNet) and module.input_pyramid == "skip":
        names = [f"model.enc.{_size(module, level)}_aux_down" for level in range(1, len(module.channel_multipliers))]
        found += [Constant(f"{name}.resample_filter", value) for name in names]
    if isinstance(module, SongUNet) and module.output_pyramid:
        names = [f"model.dec.{_size(module, level)}_aux_up" for level in range(len(module.channel_multipliers) - 1)]
        found += [Constant(f"{name}.resample_filter", value) for name in names]
    return found + ([Constant("u", _iddpm_sigmas())] if module.learned_variance else [])


family = Family("edm", (*_PRECONDS, "SongUNet", "DhariwalUNet"), from_config, to_config, entries, inputs, constants)


def _layers(module: SongUNet | DhariwalUNet) -> list[tuple[str, str, int, str]]:
    """Returns (path, name, channels, kind) per layer with parameters, without the embedding."""
    song = isinstance(module, SongUNet)
    widths = module.widths()
    attends = [module.image_size // 2**level in module.attention_resolutions for level in range(len(widths))]
    last, blocks = len(widths) - 1, module.num_res_blocks
    found = [("conv_in", f"model.enc.{_size(module, 0)}_conv", widths[0], "conv")]

    def block(path: str, name: str, given: int, width: int, attention: str | None = None) -> None:
        found.append((path, name, width, "block and skip" if given != width else "block"))
        if attention and (song or width >= module.head_dim):  # type: ignore[union-attr]
            found.append((attention, name, width, "attention"))

    saved = [width := module.channels if song else widths[0]]
    for level, to in enumerate(widths):
        size = f"model.enc.{_size(module, level)}"
        for i in range(blocks):
            attention = f"down_{level}_attention_{i}" if attends[level] else None
            block(f"down_{level}_block_{i}", f"{size}_block{i}", width, to, attention)
            saved.append(width := to)
        if level < last:
            size = f"model.enc.{_size(module, level + 1)}"
            found.append((f"down_{level}_downsample", f"{size}_down", to, "block and skip" if song else "block"))
            pyramid = module.input_pyramid if isinstance(module, SongUNet) else None
            if pyramid is not None:
                kind = "conv" if pyramid == "residual" else "pointwise"
                found.append((f"down_{level}_pyramid", f"{size}_aux_{pyramid}", to, kind))
            saved.append(to)

    size = f"model.dec.{_size(module, last)}"
    block("mid_block_0", f"{size}_in0", width, width, "mid_attention")
    block("mid_block_1", f"{size}_in1", width, width)
    for level in reversed(range(len(widths))):
        size, to = f"model.dec.{_size(module, level)}", widths[level]
        if level < last:
            kind = "block and skip" if song else "block"
            found.append((f"up_{level + 1}_upsample", f"{size}_up", width, kind))
        for i in range(blocks + 1):
            attention = f"up_{level}_attention" if song and i == blocks else f"up_{level}_attention_{i}"
            here = attends[level] and (not song or i == blocks)
            block(f"up_{level}_block_{i}", f"{size}_block{i}", width + saved.pop(), to, attention if here else None)
            width = to
        if isinstance(module, SongUNet) and (level == 0 or module.output_pyramid):
            found.append((f"up_{level}_norm_out", f"{size}_aux_norm", to, "norm"))
            found.append((f"up_{level}_conv_out", f"{size}_aux_conv", to, "conv"))
    if not song:
        found += [("norm_out", "model.out_norm", width, "norm"), ("conv_out", "model.out_conv", width, "conv")]
    return found


def _res_block(path: str, name: str, *, skip: bool) -> list[Entry]:
    found = [*norm(f"{path}/norm_0", f"{name}.norm0"), *conv(f"{path}/conv_0", f"{name}.conv0")]
    found += linear(f"{path}/emb", f"{name}.affine")
    found += [*norm(f"{path}/norm_1", f"{name}.norm1"), *conv(f"{path}/conv_1", f"{name}.conv1")]
    return found + (pointwise(f"{path}/skip", f"{name}.skip") if skip else [])


def _size(module: SongUNet | DhariwalUNet, level: int) -> str:
    size = module.image_size // 2**level
    return f"{size}x{size}"


def _iddpm_sigmas() -> np.ndarray:
    """Returns u_0 .. u_1000 of Karras et al. (2022), table 1 and eq. 168: iDDPM's noise levels, largest first."""
    steps = np.arange(1001)
    alpha_bar = np.sin(0.5 * np.pi * steps / 1000 / 1.008) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.001) - 1)
    return u
