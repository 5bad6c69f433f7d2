"""The tables of the names in a config, for `build`: extend them to use functions and networks of your own by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from diffusers_fn.from_config.guiding import GUIDANCES, GuidanceEntry, GuidanceInputs
from diffusers_fn.from_config.network import BACKBONES, BackboneEntry
from diffusers_fn.from_config.objective_types import ObjectiveEntry, ObjectiveInputs
from diffusers_fn.from_config.objectives import OBJECTIVES
from diffusers_fn.from_config.samplers import SOLVERS, SolverEntry, SolverInputs, by_times, levels_only, with_process

__all__ = [
    "BACKBONES",
    "GUIDANCES",
    "OBJECTIVES",
    "SOLVERS",
    "BackboneEntry",
    "GuidanceEntry",
    "GuidanceInputs",
    "ObjectiveEntry",
    "ObjectiveInputs",
    "SolverEntry",
    "SolverInputs",
    "Tables",
    "by_times",
    "levels_only",
    "with_process",
]


class Tables(NamedTuple):
    """The functions and networks that names in a config choose, for `build`, `build_objective` and `build_denoiser`.

    Attributes:
      backbones: config.backbone.name -> network.
      objectives: config.loss.objective -> training loss.
      guidances: config.sampler.guidance -> guidance by class labels.
      solvers: config.sampler.name -> solver.

    >>> import diffusers_fn as dfn
    >>> mine = {"half_ddim": levels_only(lambda levels: dfn.solvers.ddim(levels, 0.5))}
    >>> config = dfn.customise(dfn.default_config(), sampler={"name": "half_ddim"})
    >>> model = dfn.build(config, Tables(solvers={**SOLVERS, **mine}))
    """

    backbones: Mapping[str, BackboneEntry] = BACKBONES
    objectives: Mapping[str, ObjectiveEntry] = OBJECTIVES
    guidances: Mapping[str, GuidanceEntry] = GUIDANCES
    solvers: Mapping[str, SolverEntry] = SOLVERS
