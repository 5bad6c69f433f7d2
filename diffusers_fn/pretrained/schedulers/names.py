"""The options of a config: which are known, which values they take, and which classes are not available."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from diffusers_fn.pretrained.schedulers.kinds import GRIDS, Kind, Options

__all__ = ["REFUSED", "check_choices", "read_options"]

_TOKENS = "it samples tokens or classes, not Gaussian noise"
_VIDEO = "its steps depend on the stages of one video pipeline"
REFUSED: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "ConsistencyDecoderScheduler": "its network is a decoder; see CMStochasticIterativeScheduler",
    "DDPMWuerstchenScheduler": "its times are shares of a continuous schedule; see processes.cosine",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "its network gets two times; use few_step.mean_flow's samplers",
    "HeliosDMDScheduler": _VIDEO,
    "HeliosScheduler": _VIDEO,
    "KarrasVeScheduler": "it is deprecated; use solvers.heun_churn(grids.karras(n))",
    "MiniMaxH3Scheduler": _VIDEO,
    "PiflowScheduler": "its network returns a policy for many steps, which no table of coefficients holds",
    "RFD4ProteinaScheduler": "it samples protein structures",
    "RePaintScheduler": "it needs the image and its mask; use inpaint with solvers.with_restarts",
    "ScoreSdeVeScheduler": "its corrector's step depends on norms of x; use solvers.predictor_corrector with langevin",
    "ScoreSdeVpScheduler": "it is deprecated; use solvers.euler_maruyama(processes.vp(), t)",
    "VQDiffusionScheduler": _TOKENS,
}

# Fields of older configs that no class reads any more.
_OBSOLETE = frozenset({"tensor_format", "timestep_values", "timesteps", "num_inference_steps", "set_alpha_to_zero",
                       "predict_epsilon", "time_shift_mu"})  # fmt: skip


def read_options(name: str, kind: Kind, config: Mapping[str, Any], known: Set[str]) -> Options:
    """Returns every option of a class, the reference's defaults filled in.

    A config may have options of other classes, as the reference's from_config passes them on; they change nothing.

    Args:
      name: the class.
      kind: its kind.
      config: the content of scheduler_config.json.
      known: the options of all classes.

    Raises:
      ValueError: for options that no class has, and for values that a class does not take.
    """
    unset = set(config.get("_use_default_values", ()))
    given = {key: value for key, value in config.items() if not key.startswith("_") and key not in unset}
    unknown = [key for key, value in given.items() if key not in known | _OBSOLETE and value not in (None, False)]
    if unknown:
        raise ValueError(
            f"{name} has no option {unknown[0]!r} ({given[unknown[0]]!r} in this config); it has "
            f"{', '.join(sorted(kind.options))}"
        )
    options = {**kind.options, **{key: value for key, value in given.items() if key in kind.options}}
    check_choices(name, kind, options)
    return options


def check_choices(name: str, kind: Kind, options: Options) -> None:
    """Raises ValueError for a value that a class does not take, by the name of its option."""
    for option, choices in kind.choices.items():
        if option in options and options[option] not in choices:
            raise ValueError(
                f"{option} must be one of {', '.join(map(repr, choices))} for {name}; got {options[option]!r}"
            )
    if len(grids := [option for option in GRIDS if options.get(option)]) > 1:
        raise ValueError(f"only one of {', '.join(GRIDS)} can be set; got {' and '.join(grids)}")
    kind.check(options)
