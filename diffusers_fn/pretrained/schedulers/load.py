"""From a scheduler_config.json to the plans of its loop."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization
from diffusers_fn.pretrained.schedulers import consistency, ddim, ddpm, dpm, edm, flow, multistep, pndm, sigma_space
from diffusers_fn.pretrained.schedulers.kinds import Grid, Kind, Options
from diffusers_fn.pretrained.schedulers.names import REFUSED, check_choices, read_options
from diffusers_fn.solvers.base import Solver, Step, start_level

__all__ = ["KINDS", "Plan", "Scheduler", "load_scheduler", "read_config"]

KINDS: Mapping[str, Kind] = {
    **ddim.KINDS,
    **ddpm.KINDS,
    **pndm.KINDS,
    **sigma_space.KINDS,
    **dpm.KINDS,
    **edm.KINDS,
    **multistep.KINDS,
    **flow.KINDS,
    **consistency.KINDS,
}

# Arguments of every plan.
_CUTS = {"strength": None, "denoising_start": None, "denoising_end": None}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["solver", "timesteps", "init_scale", "start"],
    meta_fields=["final_denoise", "partial"],
)
@dataclasses.dataclass(frozen=True)
class Plan:
    """The tables of a loop, to run with `sample(key, denoise, plan.solver, x, final_denoise=plan.final_denoise)`.

    A pytree that passes through jit: plans whose tables have one shape share a compilation.

    Attributes:
      solver: the table of the loop, float64 on the host; it clips or thresholds x0_hat where the config does.
      final_denoise: the argument of `sample`.
      timesteps: [R] the labels of the network's evaluations, in order.
      init_scale: the standard deviation of the first state if it is pure noise, init_noise_sigma there.
      start: Level[] of the first state; an image is noised to it by `add_noise(x0, noise, plan.start)`.
      partial: whether the first steps are left out, by a strength below 1 or by denoising_start: the first state is not
        pure noise.
    """

    solver: Solver
    final_denoise: bool
    timesteps: np.ndarray
    init_scale: float
    start: Level
    partial: bool = False


class Scheduler(NamedTuple):
    """A noise schedule and its loop, as a scheduler_config.json describes them.

    Attributes:
      name: the class name in the config.
      parameterization: what the network returns, for `make_denoiser`; on levels of `plan`.
      plan: (num_steps, **overrides) -> Plan, see `load_scheduler`.
      options: every option of the class, the reference's defaults filled in.
    """

    name: str
    parameterization: Parameterization
    plan: Callable[..., Plan]
    options: Options


def load_scheduler(source: str | os.PathLike[str] | Mapping[str, Any]) -> Scheduler:
    """Returns the scheduler of a scheduler_config.json: the reference's own loop as tables for `sample`.

    `plan(num_steps, **overrides)` makes the loop. Overrides are options of the config, and arguments that the reference
    takes elsewhere:

      * strength: in (0, 1], the share of the steps that an image-to-image pipeline runs, the last ones;
      * denoising_start, denoising_end: in (0, 1), the share of the timesteps before which, or after which, a pipeline
        of two models leaves the loop to the other one;
      * timesteps, sigmas, mu, image_seq_len: another grid, in classes that take one; num_steps may then be None;
      * eta, s_churn, s_tmin, s_tmax, s_noise, use_clipped_model_output, order, original_inference_steps,
        grid_strength (`strength` of set_timesteps), max_timesteps, intermediate_timesteps: arguments of its steps.

    Everything is computed on the host in float64. Plans whose tables have one shape share a compilation.

    Args:
      source: a folder with the file, in it or in its folder scheduler/; the file; or its content.

    Raises:
      ValueError: for a class or an option that is not known or not available, named in one line; from `plan` too.
      FileNotFoundError: if there is no such file.

    >>> scheduler = load_scheduler({"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False})
    >>> plan = scheduler.plan(4)
    >>> plan.timesteps, plan.init_scale, scheduler.parameterization.name
    (array([751., 501., 251.,   1.]), 1.0, 'epsilon')
    """
    config = read_config(source)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        reason = f": {REFUSED[name]}" if isinstance(name, str) and name in REFUSED else ""
        raise ValueError(f"_class_name must be one of {', '.join(sorted(KINDS))}; got {name!r}{reason}")
    kind = KINDS[name]
    known = {option for other in KINDS.values() for option in other.options}
    options = read_options(name, kind, config, known)
    parameterization = kind.parameterization(options)

    def plan(num_steps: int | None = None, **overrides: Any) -> Plan:
        """Returns the plan of a loop of num_steps steps, see `load_scheduler`."""
        return _plan(name, kind, options, parameterization, num_steps, overrides)

    return Scheduler(name, parameterization, plan, options)


def _plan(
    name: str,
    kind: Kind,
    options: Options,
    parameterization: Parameterization,
    num_steps: int | None,
    overrides: Mapping[str, Any],
) -> Plan:
    arguments = {**kind.run, **_CUTS}
    unknown = [key for key in overrides if key not in arguments and key not in kind.options]
    if unknown:
        takes = ", ".join(sorted({*arguments, *kind.options}))
        raise ValueError(f"a plan of {name} has no argument {unknown[0]!r}; it takes num_steps, {takes}")
    options = {**options, **{key: value for key, value in overrides.items() if key in kind.options}}
    check_choices(name, kind, options)
    if kind.parameterization(options).name != parameterization.name:
        raise ValueError("these overrides change what the network's output means: give them to load_scheduler")
    run = {**arguments, **{key: value for key, value in overrides.items() if key in arguments}}
    num_steps = _num_steps(num_steps, run)
    run["num_steps"] = num_steps
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite log SNR at alpha = 0 and sigma = 0
        grid = kind.grid(options, num_steps, run)
        first = _first(kind, options, grid, num_steps, run)
        solver, final_denoise = kind.solver(options, grid, first, run)
    solver, final_denoise = _cut_end(solver, final_denoise, options, run["denoising_end"])
    if (transform := kind.transform(options, run)) is not None:
        solver = dataclasses.replace(solver, step=_TransformedStep(solver.step, transform))
    timesteps = _labels(solver, final_denoise)
    return Plan(solver, final_denoise, timesteps, kind.init_scale(options, grid), start_level(solver)[0], first > 0)


def _num_steps(num_steps: int | None, run: Options) -> int:
    """The number of steps, counted from a given grid if there is one."""
    given = run.get("timesteps") if run.get("timesteps") is not None else run.get("sigmas")
    if given is None or num_steps is not None:
        if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
            raise ValueError(f"num_steps must be an integer of at least 1; got {num_steps}")
        if given is not None and abs(len(given) - num_steps) > 1:
            raise ValueError(f"num_steps must be the length of the given grid, {len(given)}, or None; got {num_steps}")
    return len(given) if given is not None else int(num_steps)  # type: ignore[arg-type]


def _first(kind: Kind, options: Options, grid: Grid, num_steps: int, run: Options) -> int:
    """The index of the step at which the loop begins."""
    strength, start = run["strength"], run["denoising_start"]
    if start is not None:
        if strength is not None:
            raise ValueError("denoising_start and strength exclude each other: pass one of them")
        cutoff = _cutoff("denoising_start", start, options)
        evaluations = _labels(*kind.solver(options, grid, 0, run))
        after = int(np.sum(evaluations < cutoff))
        if after == 0:
            raise ValueError(f"denoising_start {start} leaves no step of this plan: use a smaller one or more steps")
        return (evaluations.size - after) // kind.order
    if strength is None:
        return 0
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1]; got {strength}")
    run_steps = min(int(num_steps * strength), num_steps)
    if run_steps < 1:
        raise ValueError(
            f"strength {strength} leaves no step of {num_steps}: use at least {1 / num_steps:g}, or more steps"
        )
    return num_steps - run_steps


def _cut_end(solver: Solver, final_denoise: bool, options: Options, end: float | None) -> tuple[Solver, bool]:
    """The solver of the evaluations whose timestep is above the cut of denoising_end."""
    if end is None:
        return solver, final_denoise
    labels = _labels(solver, final_denoise)
    kept = int(np.sum(labels >= _cutoff("denoising_end", end, options)))
    if kept == 0:
        raise ValueError(f"denoising_end {end} leaves no step of this plan: use a larger one or more steps")
    if kept == labels.size:
        return solver, final_denoise
    rows = jax.tree.map(lambda a: a[: kept + 1], solver.rows)  # the last row is not run
    return dataclasses.replace(solver, rows=rows), False


def _labels(solver: Solver, final_denoise: bool) -> np.ndarray:
    """The labels of the evaluations that `sample` runs."""
    labels: np.ndarray = solver.rows.level.t
    return labels if final_denoise else labels[:-1]


def _cutoff(name: str, share: float, options: Options) -> int:
    if not 0 < share < 1:
        raise ValueError(f"{name} must lie in (0, 1); got {share}")
    total = options["num_train_timesteps"]
    return round(total - share * total)


@dataclasses.dataclass(frozen=True)
class _TransformedStep:
    """The step with a transform of its denoiser; equal for equal parts, so that solvers share one compilation."""

    step: Callable[..., tuple[Any, Step]]
    transform: Transform

    def __call__(self, key: Any, denoise: Denoiser, state: Any, row: Any) -> tuple[Any, Step]:
        return self.step(key, self.transform(denoise), state, row)


def read_config(source: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    path = pathlib.Path(source)
    candidates = [path] if path.suffix == ".json" else []
    candidates += [path / "scheduler_config.json", path / "scheduler" / "scheduler_config.json"]
    for candidate in candidates:
        if candidate.is_file():
            config = json.loads(candidate.read_text())
            if not isinstance(config, dict):
                raise ValueError(f"{candidate} must hold a JSON object; got {type(config).__name__}")
            return config
    raise FileNotFoundError(f"no scheduler_config.json in {path}, nor in its folder scheduler")
