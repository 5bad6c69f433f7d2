"""From config.sampler to a solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusers_fn import few_step, solvers, variances
from diffusers_fn._arrays import check_eta
from diffusers_fn._types import ArrayLike
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import Noise
from diffusers_fn.from_config.self_conditioning import carry_estimates
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.processes import Process
from diffusers_fn.solvers import Solver

__all__ = ["SOLVERS", "SolverEntry", "SolverInputs", "by_times", "levels_only", "make_plan", "with_process"]


class SolverInputs(NamedTuple):
    """What a solver is made from.

    Attributes:
      levels: Level[N], the grid.
      process: the process on which the levels lie; None on a table that ends at pure noise.
      eta: of DDIM.
      variance: of a reverse step.
    """

    levels: Level
    process: Process | None
    eta: Any
    variance: variances.Variance


class SolverEntry(NamedTuple):
    """A solver that config.sampler.name names.

    Attributes:
      make: (config.sampler, inputs) -> Solver.
      takes_eta: whether it reads eta.
      two_times: whether it needs a network that takes two times, which an objective with two_times trains.
      evaluations_per_row: config.sampler -> network evaluations per row of its table.
      order: the order of convergence of a deterministic solver, or None. With an order or exact_moments, the solver
        joins experiments/compare_solvers.py and tests/solvers/test_all_solvers.py.
      exact_moments: whether the moments of a stochastic solver's samples converge to those of the exact marginals.
      min_levels: the smallest number of levels that it accepts.
      gaussian_order: the order of convergence on Gaussian data, if the leading error term vanishes there.
    """

    make: Callable[[ConfigDict, SolverInputs], Solver]
    takes_eta: bool = False
    two_times: bool = False
    evaluations_per_row: Callable[[ConfigDict], int] = lambda settings: 1
    order: float | None = None
    exact_moments: bool = False
    min_levels: int = 1
    gaussian_order: float | None = None


def levels_only(make: Callable[[Level], Solver], **laws: Any) -> SolverEntry:
    """Returns the entry of a solver that is made from levels alone; laws: `order` and the attributes after it.

    >>> entry = levels_only(solvers.euler)
    """
    return SolverEntry(lambda settings, inputs: make(inputs.levels), **laws)


def with_process(make: Callable[..., Solver], **laws: Any) -> SolverEntry:
    """Returns the entry of a solver whose inner stages are levels of the process: make(levels, process=...).

    >>> entry = with_process(solvers.rk4)
    """
    return SolverEntry(lambda settings, inputs: make(inputs.levels, process=inputs.process), **laws)


def by_times(make: Callable[..., Solver]) -> SolverEntry:
    """Returns the entry of a solver that is made from a process and times: make(process, t).

    >>> entry = by_times(solvers.euler_maruyama)
    """

    def from_times(settings: ConfigDict, inputs: SolverInputs) -> Solver:
        if inputs.process is None:
            raise ValueError(
                f"config.sampler.name is {settings.name!r}, which needs the times of its levels: set "
                "noise_schedule.zero_terminal_snr to False"
            )
        return make(inputs.process, inputs.process.time(log_snr(inputs.levels)))

    return SolverEntry(from_times)


def _heun_churn(settings: ConfigDict, inputs: SolverInputs) -> Solver:
    return solvers.heun_churn(
        inputs.levels, settings.s_churn, settings.s_min, settings.s_max, settings.s_noise, process=inputs.process
    )


def _predictor_corrector(settings: ConfigDict, inputs: SolverInputs) -> Solver:
    corrector = solvers.langevin(inputs.levels, settings.snr, num_steps=settings.num_corrector_steps)
    return solvers.predictor_corrector(solvers.reverse_diffusion(inputs.levels), corrector)


SOLVERS: Mapping[str, SolverEntry] = {
    "ddim": SolverEntry(lambda settings, inputs: solvers.ddim(inputs.levels, inputs.eta), takes_eta=True, order=1),
    "ancestral": SolverEntry(
        lambda settings, inputs: solvers.ancestral(inputs.levels, inputs.variance), exact_moments=True
    ),
    "euler": levels_only(solvers.euler, order=1),
    "heun": levels_only(solvers.heun, order=2),
    "midpoint": with_process(solvers.midpoint, order=2, gaussian_order=3),
    "rk4": with_process(solvers.rk4, order=4),
    "dpm2": with_process(solvers.dpm2, order=2),
    "dpm_solver": with_process(solvers.dpm_solver),
    "dpmpp_2s": with_process(solvers.dpmpp_2s, order=2),
    "dpmpp_3s": with_process(solvers.dpmpp_3s, order=3),
    "dpmpp_1": levels_only(solvers.dpmpp_1, order=1),
    "dpmpp_2m": levels_only(solvers.dpmpp_2m, order=2),
    "dpmpp_3m": levels_only(solvers.dpmpp_3m, order=2),
    "deis": levels_only(solvers.deis),
    "lms": levels_only(solvers.lms),
    "ipndm": levels_only(solvers.ipndm, order=2),
    "plms": levels_only(solvers.plms, order=2),
    "pndm": with_process(solvers.pndm, order=2),
    "unipc": levels_only(solvers.unipc),
    "euler_ancestral": levels_only(solvers.euler_ancestral, exact_moments=True),
    "dpm2_ancestral": with_process(solvers.dpm2_ancestral, exact_moments=True),
    "dpmpp_2s_ancestral": with_process(solvers.dpmpp_2s_ancestral, exact_moments=True),
    "dpmpp_sde": with_process(solvers.dpmpp_sde, exact_moments=True),
    "dpmpp_2m_sde": levels_only(solvers.dpmpp_2m_sde, exact_moments=True),
    "dpmpp_3m_sde": levels_only(solvers.dpmpp_3m_sde, exact_moments=True),
    "sa_solver": levels_only(solvers.sa_solver, exact_moments=True),
    "heun_churn": SolverEntry(_heun_churn, min_levels=2),
    "euler_maruyama": by_times(solvers.euler_maruyama),
    "heun_sde": by_times(solvers.heun_sde),
    "reverse_diffusion": levels_only(solvers.reverse_diffusion, exact_moments=True),
    "predictor_corrector": SolverEntry(
        _predictor_corrector, evaluations_per_row=lambda settings: 1 + settings.num_corrector_steps
    ),
    "lcm": levels_only(solvers.lcm),
    "jump": SolverEntry(lambda settings, inputs: few_step.jump(inputs.levels), two_times=True),
}


def make_plan(
    settings: ConfigDict,
    noise: Noise,
    variance: variances.Variance,
    *,
    self_conditioned: bool = False,
    table: Mapping[str, SolverEntry] = SOLVERS,
) -> Callable[..., Solver]:
    """Returns (num_steps=None, eta=None) -> solver; None takes the value of config.sampler.

    Args:
      settings: config.sampler.
      noise: the noise levels.
      variance: of a reverse step.
      self_conditioned: whether the solver passes each estimate of x0 on to the next network evaluation.
      table: the solvers that config.sampler.name may name.

    Raises:
      ValueError: if a name is unknown, or the solver cannot be made for the config's own number of steps.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> from diffusers_fn.from_config.noise import make_noise
    >>> config = default_config()
    >>> make_plan(config.sampler, make_noise(config.noise_schedule), variances.fixed_small)(4).rows.x0.shape
    (4,)
    """
    check_eta(settings.eta)
    entry: SolverEntry = choose("sampler.name", settings.name, table)
    if settings.eta and not entry.takes_eta:
        raise ValueError(f"config.sampler.eta is {settings.eta}, but {settings.name!r} has none: set it to 0")

    def plan(num_steps: int | None = None, eta: ArrayLike | None = None) -> Solver:
        levels = noise.grid(settings.skip_type, settings.num_inference_steps if num_steps is None else num_steps)
        inputs = SolverInputs(levels, noise.process, settings.eta if eta is None else eta, variance)
        solver = entry.make(settings, inputs)
        return carry_estimates(solver, settings.name) if self_conditioned else solver

    plan()  # raises here what it would raise when sampling
    return plan
