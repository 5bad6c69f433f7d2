"""From config.backbone to a linen module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _threefry, backbones
from diffusers_fn.from_config import module_fields as fields
from diffusers_fn.from_config.choices import choose

BACKBONES: Mapping[str, type[nn.Module]] = {
    "mlp": backbones.MLP,
    "unet": backbones.UNet,
    "unet2d": backbones.UNet2D,
    "song_unet": backbones.SongUNet,
    "dhariwal_unet": backbones.DhariwalUNet,
    "unet1d": backbones.UNet1D,
    "dit": backbones.DiT,
    "uvit": backbones.UViT,
    "unet2d_condition": backbones.UNet2DCondition,  # inside a ClassContext
}

CLASSIFIERS: Mapping[str, type[nn.Module]] = {
    "mlp_classifier": backbones.MLPClassifier,
    "classifier": backbones.Classifier,
}

AUTOENCODERS: Mapping[str, type[nn.Module]] = {
    "simple_autoencoder": backbones.SimpleAutoencoder,
    "autoencoder_kl": backbones.AutoencoderKL,
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def backbone_fields(name: str) -> list[fields.Field]:
    """Returns what config.backbone may hold beside `name`: the fields of a backbone's module that are plain data.

    Raises:
      ValueError: if there is no such backbone.

    >>> {"hidden_size", "depth"} <= {field.name for field in backbone_fields("mlp")}
    True
    """
    plain = fields.plain_fields(choose("backbone.name", name, {**BACKBONES, **CLASSIFIERS, **AUTOENCODERS}))
    if name == "simple_autoencoder":  # data.shape says it
        plain = [field for field in plain if field.name != "input_dim"]
    if name == "unet2d_condition":
        plain += [field for field in fields.plain_fields(backbones.ClassContext) if field.name == "num_tokens"]
    return plain


def check_backbone_field(name: str, field: str, value: Any) -> None:
    """Raises ValueError unless config.backbone, for the backbone called `name`, may hold this value of a field.

    >>> check_backbone_field("dit", "depth", 12)
    """
    known = {each.name: each for each in backbone_fields(name)}
    if field not in known:
        raise ValueError(f"config.backbone has no field {field} for name = {name!r}; its fields are {', '.join(known)}")
    if field in ("dtype", "param_dtype"):
        choose(f"backbone.{field}", value, DTYPES)
    elif not fields.fits(value, known[field].type):
        allowed = fields.described(known[field].type)
        raise ValueError(f"config.backbone.{field} must be of type {allowed}; got {value!r}")


def make_backbone(config: ConfigDict) -> nn.Module:
    """Returns the module that config.backbone describes.

    Raises:
      ValueError: if a field is unknown or has a wrong type.

    >>> make_backbone(ConfigDict({"name": "mlp", "hidden_size": 8})).hidden_size
    8
    """
    choose("backbone.name", config.name, BACKBONES)
    given = _given(config)
    num_classes = given.get("num_classes") or 0
    if not 0 <= num_classes < 2**31:
        raise ValueError(f"config.backbone.num_classes must be 0 (unconditional) or more; got {num_classes}")
    given["num_classes"] = num_classes or None
    if config.name == "unet2d_condition":
        own = {field: given.pop(field) for field in ("num_classes", "num_tokens") if field in given}
        return backbones.ClassContext(backbones.UNet2DCondition(**given), **own)
    return BACKBONES[config.name](**given)


def make_classifier(config: ConfigDict) -> nn.Module:
    """Returns the classifier that config.backbone describes.

    >>> make_classifier(ConfigDict({"name": "mlp_classifier", "num_classes": 3})).num_classes
    3
    """
    choose("backbone.name", config.name, CLASSIFIERS)
    if config.num_classes < 2:
        raise ValueError(f"config.backbone.num_classes must be at least 2 for a classifier; got {config.num_classes}")
    return CLASSIFIERS[config.name](**_given(config))


def make_autoencoder(config: ConfigDict, shape: tuple[int, ...]) -> nn.Module:
    """Returns the autoencoder for data of a shape that config.backbone describes.

    >>> make_autoencoder(ConfigDict({"name": "simple_autoencoder", "latent_dim": 3}), (2,)).latent_dim
    3
    """
    choose("backbone.name", config.name, AUTOENCODERS)
    own = {"input_dim": shape} if config.name == "simple_autoencoder" else {}
    return AUTOENCODERS[config.name](**own, **_given(config))


def _given(config: ConfigDict) -> dict[str, Any]:
    """The fields of a module, checked, as it takes them."""
    given = {field: value for field, value in config.items() if field != "name"}
    for field, value in given.items():
        check_backbone_field(config.name, field, value)
        given[field] = DTYPES[value] if field in ("dtype", "param_dtype") else fields.tupled(value)
    return given


def check_fit(module: nn.Module, cond: Any, shape: tuple[int, ...], name: str, *, doubled: bool = False) -> None:
    """Raises ValueError unless the network takes data of this shape and returns the same. Nothing is computed.

    With `doubled`, for a learned variance, it must return twice the channels. Equal networks are traced once.
    """

    def run(key: jax.Array) -> Any:
        return _start(key, jnp.zeros((1, *shape)), jnp.ones((1,)), cond, module=module)[0]

    where = f"config.data.shape = {shape} and config.backbone (name = {name!r}) do not fit"
    try:
        out: Any = jax.eval_shape(run, jax.eval_shape(lambda: jax.random.key(0)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    wanted = (*shape[:-1], 2 * shape[-1]) if doubled else shape
    if out.shape[1:] != wanted:
        learned = f", but a learned variance needs {wanted}; see its learned_variance and" if doubled else "; see its"
        raise ValueError(f"{where}: the network's output has shape {out.shape[1:]}{learned} out_channels")


@functools.partial(jax.jit, static_argnames="module")
def init_params(key: jax.Array, *args: Any, module: nn.Module) -> Any:
    """Returns the parameters of a network that is called with args, in one program: nothing else is computed.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), jnp.ones((1, 2)), module=nn.Dense(3)))
    {'bias': (3,), 'kernel': (2, 3)}
    """
    return _start(key, *args, module=module)[1]


@functools.partial(jax.jit, static_argnames="module")
def _start(key: jax.Array, *args: Any, module: nn.Module) -> Any:
    """Returns the first output and the parameters: one trace of the network for `check_fit` and `init_params`."""
    out, variables = module.init_with_output(_threefry.faster(key), *args)
    return out, variables["params"]
