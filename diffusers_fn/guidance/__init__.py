"""Guidance: transforms denoiser -> denoiser that steer samples towards a condition.

- Combinations of network evaluations: `classifier_free` (with the rules `linear`, `rescaled`, `projected`),
  `classifier_free_pp`, `autoguidance`, `composed`, `perpendicular_negative`, `projected_with_momentum`.
- The gradient of a classifier (`classifier`, `classifier_mean_shift`) or of a measurement (`dps`, `pigdm`).
- Guidance scales: a number, traced or not; an array [B], one scale per example; or a function of the level, such as
  `scale_on_plan`, `interval`, `shift_scale`.
- Parts for a guidance of your own. Write a `Rule` first: `classifier_free(scale, null_cond, rule=rule)` and
  `autoguidance(worse, scale, rule=rule)` evaluate the networks for it. A rule computes with
  `parameterizations.target`, `shift_output` and `inner_product`, a transform with `predict_both`, `predict_each`,
  `scale_at` and `shift_by_gradient`.

docs/guidance.md compares them.
"""

from diffusers_fn.denoisers import ignore_cond
from diffusers_fn.guidance.autoguidance import autoguidance
from diffusers_fn.guidance.classifier import class_log_prob, classifier, classifier_mean_shift
from diffusers_fn.guidance.classifier_free import classifier_free, classifier_free_pp
from diffusers_fn.guidance.conditions import composed, perpendicular_negative
from diffusers_fn.guidance.momentum import projected_with_momentum
from diffusers_fn.guidance.posterior import average_pool, dps, pigdm
from diffusers_fn.guidance.predictions import (
    inner_product,
    predict_both,
    predict_each,
    shift_by_gradient,
    shift_output,
)
from diffusers_fn.guidance.rules import Rule, apply_guidance, linear, projected, rescaled
from diffusers_fn.guidance.scales import (
    Scale,
    cosine_guidance_schedule,
    interval,
    linear_guidance_schedule,
    scale_at,
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
    "inner_product",
    "interval",
    "linear",
    "linear_guidance_schedule",
    "perpendicular_negative",
    "pigdm",
    "predict_both",
    "predict_each",
    "projected",
    "projected_with_momentum",
    "rescaled",
    "scale_at",
    "scale_on_plan",
    "shift_by_gradient",
    "shift_output",
    "shift_scale",
]


def __dir__() -> list[str]:
    return __all__
