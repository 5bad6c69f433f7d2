"""From config.sampler to a solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusers_fn import few_step, solvers, variances
from diffusers_fn._arrays import check_eta
from diffusers_fn.from_config import self_conditioning
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import Noise
from diffusers_fn.levels import Array, Level, log_snr
from diffusers_fn.processes import Process
from diffusers_fn.solvers import Solver


class Plan(NamedTuple):
    """What a solver is made from.

    Attributes:
      levels: Level[N].
      process: what they lie on; None on a table that ends at pure noise.
      eta: the share of noise of DDIM.
      variance: of a reverse step.
      settings: config.sampler, for what a solver has of its own.
    """

    levels: Level
    process: Process | None
    eta: Any
    variance: variances.Variance
    settings: ConfigDict

    @property
    def times(self) -> Array:
        """The times of the levels, [N]."""
        if self.process is None:
            raise ValueError(
                f"config.sampler.name is {self.settings.name!r}, which needs the times of its levels: set "
                "noise_schedule.zero_terminal_snr to False"
            )
        return self.process.time(log_snr(self.levels))


def _plain(make: Callable[[Level], Solver]) -> Callable[[Plan], Solver]:
    return lambda plan: make(plan.levels)


def _inner(make: Callable[..., Solver]) -> Callable[[Plan], Solver]:
    return lambda plan: make(plan.levels, process=plan.process)


def _in_time(make: Callable[..., Solver]) -> Callable[[Plan], Solver]:
    return lambda plan: make(plan.process, plan.times)


def _edm_stochastic(plan: Plan) -> Solver:
    settings = plan.settings
    return solvers.heun_churn(
        plan.levels, settings.s_churn, settings.s_min, settings.s_max, settings.s_noise, process=plan.process
    )


def _predictor_corrector(plan: Plan) -> Solver:
    corrector = solvers.langevin(plan.levels, plan.settings.snr, num_steps=plan.settings.num_corrector_steps)
    return solvers.predictor_corrector(solvers.reverse_diffusion(plan.levels), corrector)


SOLVERS: Mapping[str, Callable[[Plan], Solver]] = {
    "ddim": lambda plan: solvers.ddim(plan.levels, plan.eta),
    "ancestral": lambda plan: solvers.ancestral(plan.levels, plan.variance),
    "euler": _plain(solvers.euler),
    "heun": _plain(solvers.heun),
    "midpoint": _inner(solvers.midpoint),
    "rk4": _inner(solvers.rk4),
    "dpm2": _inner(solvers.dpm2),
    "dpm_solver": _inner(solvers.dpm_solver),
    "dpmpp_2s": _inner(solvers.dpmpp_2s),
    "dpmpp_3s": _inner(solvers.dpmpp_3s),
    "dpmpp_1": _plain(solvers.dpmpp_1),
    "dpmpp_2m": _plain(solvers.dpmpp_2m),
    "dpmpp_3m": _plain(solvers.dpmpp_3m),
    "deis": _plain(solvers.deis),
    "lms": _plain(solvers.lms),
    "ipndm": _plain(solvers.ipndm),
    "plms": _plain(solvers.plms),
    "pndm": _inner(solvers.pndm),
    "unipc": _plain(solvers.unipc),
    "euler_ancestral": _plain(solvers.euler_ancestral),
    "dpm2_ancestral": _inner(solvers.dpm2_ancestral),
    "dpmpp_2s_ancestral": _inner(solvers.dpmpp_2s_ancestral),
    "dpmpp_sde": _inner(solvers.dpmpp_sde),
    "dpmpp_2m_sde": _plain(solvers.dpmpp_2m_sde),
    "dpmpp_3m_sde": _plain(solvers.dpmpp_3m_sde),
    "sa_solver": _plain(solvers.sa_solver),
    "edm_stochastic": _edm_stochastic,  # s_churn, s_min, s_max, s_noise
    "euler_maruyama": _in_time(solvers.euler_maruyama),
    "heun_sde": _in_time(solvers.heun_sde),
    "reverse_diffusion": _plain(solvers.reverse_diffusion),
    "predictor_corrector": _predictor_corrector,  # snr, num_corrector_steps
    "lcm": _plain(solvers.lcm),
    "jump": _plain(few_step.jump),  # objective mean_flow
}


def make_plan(config: ConfigDict, noise: Noise, variance: variances.Variance) -> Callable[..., Solver]:
    """Returns (num_steps=None, eta=None) -> solver; what is None takes the value of config.sampler.

    Raises:
      ValueError: if a name is unknown, or the solver cannot be made for the config's own number of steps.

    >>> from configs.default import default_config
    >>> from diffusers_fn.from_config.noise import make_noise
    >>> config = default_config()
    >>> make_plan(config, make_noise(config), variances.fixed_small)(4).rows.x0.shape
    (4,)
    """
    settings = config.sampler
    check_eta(settings.eta)
    make_solver = choose("sampler.name", settings.name, SOLVERS)
    if settings.eta and settings.name != "ddim":
        raise ValueError(f"config.sampler.eta is {settings.eta}, but {settings.name!r} has none: set it to 0")

    def plan(num_steps: int | None = None, eta: Any = None) -> Solver:
        levels = noise.grid(settings.skip_type, settings.num_inference_steps if num_steps is None else num_steps)
        solver = make_solver(Plan(levels, noise.process, settings.eta if eta is None else eta, variance, settings))
        return self_conditioning.carrying(config, solver) if config.self_conditioning else solver

    plan()  # fail now
    return plan
