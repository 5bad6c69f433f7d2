"""From config.sampler to classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusers_fn import guidance
from diffusers_fn.denoisers import Transform
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.objectives import make_parameterization

GUIDANCES: Mapping[str, Callable[..., Transform]] = {
    "classifier_free": guidance.classifier_free,
    "classifier_free_pp": guidance.classifier_free_pp,
    "projected": guidance.classifier_free,
}


def make_guidance(config: ConfigDict, null_cond: Any) -> Callable[[Any], Transform]:
    """Returns scale -> the transform that config.sampler describes.

    Raises:
      ValueError: if a name or number is not allowed, or two fields contradict each other.

    >>> from configs.default import default_config
    >>> transform = make_guidance(default_config(), null_cond=10)(2.0)
    """
    settings = config.sampler
    make = choose("sampler.guidance", settings.guidance, GUIDANCES)
    low, high = (float(end) for end in settings.cfg_interval)
    if not 0 <= low < high:
        raise ValueError(
            "config.sampler.cfg_interval must be two ends of sigma / alpha, 0 <= low < high; got "
            f"{settings.cfg_interval}"
        )
    everywhere = low == 0 and high == float("inf")
    if settings.cfg_channels < 0:
        raise ValueError(f"config.sampler.cfg_channels must be 0 (all) or more; got {settings.cfg_channels}")
    if settings.guidance != "classifier_free" and settings.cfg_rescale:
        raise ValueError(
            f"config.sampler.cfg_rescale is {settings.cfg_rescale}, which goes with guidance 'classifier_free'; got "
            f"{settings.guidance!r}"
        )
    options: dict[str, Any] = {"batched": settings.cfg_batched, "channels": settings.cfg_channels or None}
    if settings.guidance == "projected":
        options["rule"] = guidance.projected(settings.apg_eta, settings.apg_norm_threshold)
    elif settings.guidance == "classifier_free_pp":
        if settings.cfg_channels:
            raise ValueError("config.sampler.cfg_channels goes with guidance 'classifier_free': set it to 0")
        if not everywhere:
            raise ValueError(
                "config.sampler.cfg_interval goes with guidance 'classifier_free' or 'projected': no scale of "
                f"classifier_free_pp is the conditional prediction; got {settings.cfg_interval}"
            )
        del options["channels"]
    elif settings.cfg_rescale:
        options["rule"] = guidance.rescaled(settings.cfg_rescale, on=make_parameterization(config))

    def transform(scale: Any) -> Transform:
        neutral = isinstance(scale, (int, float)) and scale == 1
        limited = scale if everywhere or neutral else guidance.interval(scale, low, high)
        return make(limited, null_cond, **options)

    return transform
