"""From config.sampler to classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusers_fn import guidance
from diffusers_fn._types import ArrayLike
from diffusers_fn.denoisers import Transform
from diffusers_fn.from_config.choices import choose, listed
from diffusers_fn.parameterizations import Parameterization

__all__ = ["GUIDANCES", "GuidanceEntry", "GuidanceInputs", "is_guided", "make_guidance"]


class GuidanceInputs(NamedTuple):
    """The model that is guided.

    Attributes:
      null_cond: the label of the null class.
      parameterization: what the network predicts.
    """

    null_cond: Any
    parameterization: Parameterization


class GuidanceEntry(NamedTuple):
    """A guidance that config.sampler.guidance names.

    Attributes:
      make: (config.sampler, inputs, scale) -> transform. scale: [] or [B], or a function of the level.
      fields: those of config.sampler's cfg_channels, cfg_rescale and cfg_interval that it uses.
      neutral_scale: the scale that leaves the conditional prediction as it is, with one network evaluation; None if
        there is none.
    """

    make: Callable[[ConfigDict, GuidanceInputs, Any], Transform]
    fields: tuple[str, ...] = ()
    neutral_scale: float | None = 1.0


def _classifier_free(settings: ConfigDict, inputs: GuidanceInputs, scale: Any) -> Transform:
    options: dict[str, Any] = {}
    if settings.cfg_rescale:
        options["rule"] = guidance.rescaled(settings.cfg_rescale, on=inputs.parameterization)
    return guidance.classifier_free(
        scale, inputs.null_cond, batched=settings.cfg_batched, channels=settings.cfg_channels or None, **options
    )


def _projected(settings: ConfigDict, inputs: GuidanceInputs, scale: Any) -> Transform:
    rule = guidance.projected(settings.apg_eta, settings.apg_norm_threshold)
    return guidance.classifier_free(
        scale, inputs.null_cond, batched=settings.cfg_batched, channels=settings.cfg_channels or None, rule=rule
    )


def _classifier_free_pp(settings: ConfigDict, inputs: GuidanceInputs, scale: Any) -> Transform:
    return guidance.classifier_free_pp(scale, inputs.null_cond, batched=settings.cfg_batched)


GUIDANCES: Mapping[str, GuidanceEntry] = {
    "classifier_free": GuidanceEntry(_classifier_free, ("cfg_channels", "cfg_interval", "cfg_rescale")),
    "classifier_free_pp": GuidanceEntry(_classifier_free_pp, neutral_scale=None),
    "projected": GuidanceEntry(_projected, ("cfg_channels", "cfg_interval")),
}

# Values with which a field changes nothing: a guidance that does not use the field requires them.
_UNUSED = {"cfg_channels": 0, "cfg_rescale": 0.0, "cfg_interval": (0.0, float("inf"))}


def make_guidance(
    settings: ConfigDict, inputs: GuidanceInputs, guidances: Mapping[str, GuidanceEntry] = GUIDANCES
) -> Callable[[Any], Transform]:
    """Returns scale -> the transform that config.sampler describes.

    Raises:
      ValueError: if a name or number is not allowed, or two fields contradict each other.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> from diffusers_fn.parameterizations import epsilon
    >>> transform = make_guidance(default_config().sampler, GuidanceInputs(null_cond=10, parameterization=epsilon))(2.0)
    """
    entry: GuidanceEntry = choose("sampler.guidance", settings.guidance, guidances)
    low, high = (float(end) for end in settings.cfg_interval)
    if not 0 <= low < high:
        raise ValueError(
            "config.sampler.cfg_interval must be two ends of sigma / alpha, 0 <= low < high; got "
            f"{settings.cfg_interval}"
        )
    if settings.cfg_channels < 0:
        raise ValueError(f"config.sampler.cfg_channels must be 0 (all) or more; got {settings.cfg_channels}")
    for field, unused in _UNUSED.items():
        value = tuple(settings[field]) if isinstance(unused, tuple) else settings[field]
        if field not in entry.fields and value != unused:
            users = listed([repr(name) for name, other in guidances.items() if field in other.fields], "or")
            raise ValueError(
                f"config.sampler.{field} is {value}, which guidance {settings.guidance!r} does not use: set it to "
                f"{unused}, or guidance to {users}"
            )
    everywhere = low == 0 and high == float("inf")

    def transform(scale: ArrayLike) -> Transform:
        neutral = isinstance(scale, (int, float)) and scale == entry.neutral_scale
        limited = scale if everywhere or neutral else guidance.interval(scale, low, high)
        return entry.make(settings, inputs, limited)

    return transform


def is_guided(settings: ConfigDict, guidances: Mapping[str, GuidanceEntry] = GUIDANCES) -> bool:
    """Returns whether config.sampler guides, with a second network evaluation without the label.

    >>> is_guided(ConfigDict({"guidance": "classifier_free", "cfg_scale": 1.0}))
    False
    """
    entry: GuidanceEntry = choose("sampler.guidance", settings.guidance, guidances)
    return bool(settings.cfg_scale != entry.neutral_scale)
