"""Few-step models: losses for networks that sample in one to four evaluations.

Consistency models (`consistency_tangent`, `consistency_loss`), mean flows (`mean_flow_target`, `adaptive_mse`,
`draw_two_times`, sampled with `jump`) and progressive distillation (`two_step_target`).
"""

from diffusers_fn.few_step.consistency import consistency_loss, consistency_tangent, root_mean_square
from diffusers_fn.few_step.distillation import two_step_target
from diffusers_fn.few_step.mean_flow import adaptive_mse, draw_two_times, jump, mean_flow_target

__all__ = [
    "adaptive_mse",
    "consistency_loss",
    "consistency_tangent",
    "draw_two_times",
    "jump",
    "mean_flow_target",
    "root_mean_square",
    "two_step_target",
]


def __dir__() -> list[str]:
    return __all__
