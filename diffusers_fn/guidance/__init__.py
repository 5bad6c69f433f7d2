"""Guidance: transforms denoiser -> denoiser that steer samples towards a condition.

`classifier_free` (with the rules `rescaled` and `projected`), `classifier_free_pp`, `autoguidance`, `composed` and
`perpendicular_negative` combine evaluations of networks; `classifier` and `classifier_mean_shift` follow the gradient
of a classifier, `dps` and `pigdm` that of a measurement. Scales are numbers, traced or not, one an example, or
functions of the level: `scale_on_plan`, `interval`, `shift_scale`. docs/guidance.md tells which one to take.
"""

from diffusers_fn.denoisers import ignore_cond
from diffusers_fn.guidance.autoguidance import autoguidance
from diffusers_fn.guidance.classifier import class_log_prob, classifier, classifier_mean_shift
from diffusers_fn.guidance.classifier_free import classifier_free, classifier_free_pp
from diffusers_fn.guidance.conditions import composed, perpendicular_negative
from diffusers_fn.guidance.momentum import projected_with_momentum
from diffusers_fn.guidance.posterior import average_pool, dps, pigdm
from diffusers_fn.guidance.rules import Rule, apply_guidance, linear, projected, rescaled
from diffusers_fn.guidance.scales import (
    Scale,
    cosine_guidance_schedule,
    interval,
    linear_guidance_schedule,
    scale_on_plan,
)
from diffusers_fn.guidance.tables import shift_scale

__all__ = [
    "Rule",
    "Scale",
    "apply_guidance",
    "autoguidance",
    "average_pool",
    "class_log_prob",
    "classifier",
    "classifier_free",
    "classifier_free_pp",
    "classifier_mean_shift",
    "composed",
    "cosine_guidance_schedule",
    "dps",
    "ignore_cond",
    "interval",
    "linear",
    "linear_guidance_schedule",
    "perpendicular_negative",
    "pigdm",
    "projected",
    "projected_with_momentum",
    "rescaled",
    "scale_on_plan",
    "shift_scale",
]
