"""Schedulers of published pipelines as tables: a scheduler_config.json becomes the plans of the reference's loop."""

from diffusers_fn.pretrained.schedulers.load import KINDS, Plan, Scheduler, load_scheduler

__all__ = ["KINDS", "Plan", "Scheduler", "load_scheduler"]


def __dir__() -> list[str]:
    return __all__
