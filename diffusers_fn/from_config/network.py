"""From config.backbone to a linen module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from ml_collections import ConfigDict

from diffusers_fn import _threefry, backbones
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.module_fields import Field, described, fits, plain_fields, tupled

__all__ = [
    "AUTOENCODERS",
    "BACKBONES",
    "CLASSIFIERS",
    "DERIVED",
    "DTYPES",
    "NETWORKS",
    "BackboneEntry",
    "backbone_fields",
    "check_backbone_field",
    "check_fit",
    "check_other_size",
    "check_time_label",
    "init_params",
    "make_autoencoder",
    "make_backbone",
    "make_classifier",
]


class BackboneEntry(NamedTuple):
    """A network that config.backbone.name names; its module's plain fields are the fields of config.backbone.

    Attributes:
      module: the class of the network.
      wrapper: a module around it, called with the network and `wrapper_fields`; None for none.
      wrapper_fields: fields of config.backbone that are the wrapper's, not the network's.
      shape_field: a field that config.data.shape sets, so that it is not a field of config.backbone; "" for none.
      takes_text: whether it may be conditioned on texts: `backbones.TextContext` is the wrapper then.
    """

    module: type[nn.Module]
    wrapper: type[nn.Module] | None = None
    wrapper_fields: tuple[str, ...] = ()
    shape_field: str = ""
    takes_text: bool = False


BACKBONES: Mapping[str, BackboneEntry] = {
    "mlp": BackboneEntry(backbones.MLP),
    "unet": BackboneEntry(backbones.UNet),
    "unet2d": BackboneEntry(backbones.UNet2D),
    "song_unet": BackboneEntry(backbones.SongUNet),
    "dhariwal_unet": BackboneEntry(backbones.DhariwalUNet),
    "unet1d": BackboneEntry(backbones.UNet1D),
    "dit": BackboneEntry(backbones.DiT),
    "uvit": BackboneEntry(backbones.UViT),
    "unet2d_condition": BackboneEntry(
        backbones.UNet2DCondition,
        wrapper=backbones.ClassContext,
        wrapper_fields=("num_classes", "num_tokens"),
        takes_text=True,
    ),
}

CLASSIFIERS: Mapping[str, BackboneEntry] = {
    "mlp_classifier": BackboneEntry(backbones.MLPClassifier),
    "classifier": BackboneEntry(backbones.Classifier),
}

AUTOENCODERS: Mapping[str, BackboneEntry] = {
    "simple_autoencoder": BackboneEntry(backbones.SimpleAutoencoder, shape_field="input_dim"),
    "autoencoder_kl": BackboneEntry(backbones.AutoencoderKL),
}

NETWORKS: Mapping[str, BackboneEntry] = {**BACKBONES, **CLASSIFIERS, **AUTOENCODERS}

DERIVED = ("num_classes", "image_size")  # None in config.backbone: those of config.data

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def backbone_fields(name: str, networks: Mapping[str, BackboneEntry] = NETWORKS) -> list[Field]:
    """Returns the fields that config.backbone has beside `name`: the plain fields of the network's module.

    Raises:
      ValueError: if there is no such network.

    >>> {"hidden_size", "depth"} <= {field.name for field in backbone_fields("mlp")}
    True
    """
    entry = choose("backbone.name", name, networks)
    fields = [field for field in plain_fields(entry.module) if field.name != entry.shape_field]
    if entry.wrapper is not None:
        own = {field.name for field in fields}
        wanted = set(entry.wrapper_fields) - own
        fields += [field for field in plain_fields(entry.wrapper) if field.name in wanted]
    return fields


def check_backbone_field(name: str, field: str, value: Any, networks: Mapping[str, BackboneEntry] = NETWORKS) -> None:
    """Raises ValueError unless the field of config.backbone exists for the network `name` and may hold this value.

    >>> check_backbone_field("dit", "depth", 12)
    """
    known = {each.name: each for each in backbone_fields(name, networks)}
    if field not in known and field in DERIVED and not value:  # nothing that the network would need
        return
    if field not in known:
        raise ValueError(f"config.backbone has no field {field} for name = {name!r}; its fields are {', '.join(known)}")
    if field in ("dtype", "param_dtype"):
        choose(f"backbone.{field}", value, DTYPES)
    elif field in DERIVED and value is None:
        return
    elif not fits(value, known[field].type):
        allowed = described(known[field].type)
        raise ValueError(f"config.backbone.{field} must be of type {allowed}; got {value!r}")


def make_backbone(
    settings: ConfigDict,
    shape: tuple[int, ...],
    num_classes: int = 0,
    networks: Mapping[str, BackboneEntry] = BACKBONES,
    *,
    text: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Returns the module that config.backbone describes, for data of a shape.

    Args:
      settings: config.backbone.
      shape: of one example, from which image_size follows where it is None.
      num_classes: see `derived.num_classes`; 0 for an unconditional network.
      networks: those that config.backbone.name may name.
      text: fields of `backbones.TextContext`, for a model of texts; or None.

    Raises:
      ValueError: if a field is unknown or has a wrong type, the network takes no texts, or image_size is not that of
        the data for a network whose outputs depend on it.

    >>> make_backbone(ConfigDict({"name": "unet", "image_size": None}), (64, 64, 3)).image_size
    64
    """
    entry = choose("backbone.name", settings.name, networks)
    fields = _checked_fields(settings, networks) | _size(entry.module, settings, shape)
    if not 0 <= num_classes < 2**31:
        raise ValueError(f"config.backbone.num_classes must be 0 (unconditional) or more; got {num_classes}")
    if any(field.name == "num_classes" for field in backbone_fields(settings.name, networks)):
        fields["num_classes"] = num_classes or None
    if text is None:
        return _make(entry, fields)
    if not entry.takes_text:
        able = ", ".join(repr(name) for name, each in networks.items() if each.takes_text)
        raise ValueError(
            f"config.text.kind is set, but the network {settings.name!r} takes no texts: set backbone.name to {able}, "
            "or text.kind to 'none'"
        )
    own = {name: value for name, value in fields.items() if name not in entry.wrapper_fields}
    return backbones.TextContext(entry.module(**own), **text)


def make_classifier(settings: ConfigDict, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Returns the classifier that config.backbone describes. Args: as for `make_backbone`.

    Raises:
      ValueError: as `make_backbone`, or if there are fewer than two classes.

    >>> make_classifier(ConfigDict({"name": "mlp_classifier"}), (2,), 3).num_classes
    3
    """
    entry = choose("backbone.name", settings.name, CLASSIFIERS)
    if num_classes < 2:
        raise ValueError(
            f"a classifier needs at least 2 classes; got {num_classes}: set config.data.num_classes to those of the "
            "labels (backbone.num_classes None means the same)"
        )
    fields = _checked_fields(settings, CLASSIFIERS) | _size(entry.module, settings, shape)
    return _make(entry, {**fields, "num_classes": num_classes})


def make_autoencoder(settings: ConfigDict, shape: tuple[int, ...]) -> nn.Module:
    """Returns the autoencoder for data of a shape that config.backbone describes.

    Raises:
      ValueError: if a field is unknown or has a wrong type.

    >>> make_autoencoder(ConfigDict({"name": "simple_autoencoder", "latent_dim": 3}), (2,)).latent_dim
    3
    """
    entry = choose("backbone.name", settings.name, AUTOENCODERS)
    fields = _checked_fields(settings, AUTOENCODERS) | _size(entry.module, settings, shape)
    return _make(entry, fields, shape)


def _make(entry: BackboneEntry, fields: dict[str, Any], shape: tuple[int, ...] = ()) -> nn.Module:
    if entry.shape_field:
        fields = {**fields, entry.shape_field: shape}
    if entry.wrapper is None:
        return entry.module(**fields)
    own = {name: fields.pop(name) for name in entry.wrapper_fields if name in fields}
    return entry.wrapper(entry.module(**fields), **own)


def _size(module: type[nn.Module], settings: ConfigDict, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns {"image_size": that of the network}; {} if it has no such field, or data of no height and width.

    None in config.backbone is the size of the data: (H, W) for a network whose type allows it, else H.
    """
    declared = {field.name: field for field in plain_fields(module)}
    if "image_size" not in declared or len(shape) != 3:
        return {}
    given, (height, width) = settings.get("image_size"), shape[:2]
    if given is None and height != width and settings.get("stretch_positions"):
        raise ValueError(
            f"config.backbone.stretch_positions spreads positions over those of a square, and the data are "
            f"{height} x {width}: set backbone.image_size to the side of that square, or stretch_positions to False"
        )
    if given is None:
        oblong = height != width and fits((1, 1), declared["image_size"].type)
        return {"image_size": (height, width) if oblong else height}
    default = declared["attention_resolutions"].default if "attention_resolutions" in declared else ()
    resolutions = tuple(settings.get("attention_resolutions", default))
    if resolutions and given != height:
        same = tuple(height * resolution // given for resolution in resolutions)
        raise ValueError(
            f"config.backbone.image_size is {given}, but the data are {height} x {width}: leave it None, which is the "
            f"height of the data, to which attention_resolutions refer. (The network of image_size {given} with "
            f"attention_resolutions {resolutions} is that of image_size None with {same})"
        )
    return {"image_size": given}


def _checked_fields(settings: ConfigDict, networks: Mapping[str, BackboneEntry]) -> dict[str, Any]:
    """The fields of config.backbone that are given, checked, as the module takes them."""
    fields = {field: value for field, value in settings.items() if field != "name"}
    for field, value in fields.items():
        check_backbone_field(settings.name, field, value, networks)
    fields = {field: value for field, value in fields.items() if field not in DERIVED}
    for field, value in fields.items():
        fields[field] = DTYPES[value] if field in ("dtype", "param_dtype") else tupled(value)
    return fields


def check_time_label(settings: ConfigDict, time_label: str) -> None:
    """Raises ValueError unless the network of config.backbone takes time labels of this kind.

    >>> check_time_label(ConfigDict({"name": "song_unet", "sigma_labels": True}), "sigma")
    """
    for field in ("fourier_time", "sigma_labels"):
        if settings.get(field, False) and time_label != "sigma":
            raise ValueError(
                f"config.backbone.{field}: such a network divides by its time label, a sigma: set "
                f"config.noise_schedule.time_label to 'sigma'; got {time_label!r}"
            )
    if settings.get("num_timesteps") is not None:
        raise ValueError(
            "config.backbone.num_timesteps: time labels are floats here, between timesteps too; set it to None"
        )


def check_fit(module: nn.Module, cond: Any, shape: tuple[int, ...], name: str, *, doubled: bool = False) -> None:
    """Raises ValueError unless the network takes data of this shape and returns the same shape. Nothing is computed.

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


def check_other_size(
    apply: Callable[..., Any], params: Any, cond: Any, size: tuple[int, ...], shape: tuple[int, ...], name: str
) -> None:
    """Raises ValueError unless a network with these parameters, for data of `shape`, takes examples of `size` too.

    Nothing is computed.
    """
    x = jax.ShapeDtypeStruct((1, *size), jnp.result_type(float))
    try:
        out = jax.eval_shape(lambda params, x: apply(params, x, jnp.ones((1,)), cond), params, x)
    except (ValueError, TypeError, FlaxError) as error:
        raise ValueError(
            f"the network {name!r} of config.data.shape = {shape} takes no examples of shape {size}: {error}"
        ) from error
    if out.shape[1:-1] != size[:-1]:
        raise ValueError(f"the network {name!r} returns shape {out.shape[1:]} for examples of shape {size}")


@functools.partial(jax.jit, static_argnames="module")
def init_params(key: jax.Array, *args: Any, module: nn.Module) -> Any:
    """Returns the parameters of a network that is called with args. One compiled program; nothing else is computed.

    >>> jax.tree.map(jnp.shape, init_params(jax.random.key(0), jnp.ones((1, 2)), module=nn.Dense(3)))
    {'bias': (3,), 'kernel': (2, 3)}
    """
    return _start(key, *args, module=module)[1]


@functools.partial(jax.jit, static_argnames="module")
def _start(key: jax.Array, *args: Any, module: nn.Module) -> Any:
    """The network's output and parameters. `check_fit` and `init_params` share one trace of the network."""
    out, variables = module.init_with_output(_threefry.faster(key), *args)
    return out, variables["params"]
