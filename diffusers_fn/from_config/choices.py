"""Names in a config: what they may be, and the messages when they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# What `build` reads, section by section; () is a field of its own. configs/default.py has all of it.
WANTED: Mapping[str, tuple[str, ...]] = {
    "data": ("shape",),
    "backbone": ("name",),
    "noise_schedule": (
        "process",
        "beta_schedule",
        "noise_steps",
        "beta_start",
        "beta_end",
        "zero_terminal_snr",
        "time_label",
        "beta_min",
        "beta_max",
        "sigma_min",
        "sigma_max",
        "shift",
        "t_min",
        "t_max",
    ),
    "loss": (
        "objective",
        "loss_type",
        "weight",
        "time_sampler",
        "label_dropout",
        "offset_noise",
        "vlb_weight",
        "num_levels",
        "min_snr_gamma",
        "p2_gamma",
        "p2_k",
        "sigmoid_bias",
        "logit_mean",
        "logit_std",
        "log_sigma_mean",
        "log_sigma_std",
        "mode_scale",
        "tangent_scale",
        "two_times_share",
        "adaptive_power",
        "guidance_scale",
    ),
    "sampler": (
        "name",
        "skip_type",
        "num_inference_steps",
        "eta",
        "clip_denoised",
        "cfg_scale",
        "guidance",
        "cfg_batched",
        "apg_eta",
        "apg_norm_threshold",
        "cfg_channels",
        "cfg_rescale",
        "cfg_interval",
        "snr",
        "num_corrector_steps",
        "s_churn",
        "s_min",
        "s_max",
        "s_noise",
    ),
    "parameterization": (),
    "variance": (),
    "sigma_data": (),
    "scale_input": (),
    "score_scaling": (),
    "self_conditioning": (),
}


def choose(field: str, name: Any, options: Mapping[str, Any]) -> Any:
    """Returns options[name].

    Raises:
      ValueError: if there is no such option; the message names the field and lists them.

    >>> choose("optimizer", "adam", {"adam": 1})
    1
    """
    if not isinstance(name, str) or name not in options:
        raise ValueError(f"config.{field} must be one of {', '.join(sorted(options))}; got {name!r}")
    return options[name]


def fraction(field: str, value: float) -> float:
    """Returns the value of a field that must lie in [0, 1].

    >>> fraction("loss.label_dropout", 0.1)
    0.1
    """
    if not 0 <= value <= 1:
        raise ValueError(f"config.{field} must lie in [0, 1]; got {value}")
    return float(value)


def check_sections(config: ConfigDict, wanted: Mapping[str, tuple[str, ...]] = WANTED) -> None:
    """Raises ValueError, naming what is missing, unless the config has the sections and fields that are read."""
    missing = [section for section in wanted if section not in config]
    missing += [
        f"{section}.{field}" for section in wanted if section in config for field in wanted[section]
        if field not in config[section]
    ]  # fmt: skip
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}: configs/default.py names every field")
