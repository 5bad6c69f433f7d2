"""Few-step models: losses that teach a network to cross the whole flow in one, two or four evaluations."""

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
