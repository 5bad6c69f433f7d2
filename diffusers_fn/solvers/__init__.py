"""Solvers: each function returns a `Solver`, a table of numbers for `sample`. How to read one: `solvers.base`."""

from diffusers_fn.solvers.adams import deis, ipndm, lms
from diffusers_fn.solvers.adaptive import AdaptiveStep, adaptive
from diffusers_fn.solvers.base import (
    History,
    LinearRow,
    Solver,
    Step,
    linear_solver,
    start_level,
)
from diffusers_fn.solvers.churn import dpm2_churn, euler_churn, heun_churn
from diffusers_fn.solvers.consistency import lcm, tcd
from diffusers_fn.solvers.ddim import ancestral, ddim
from diffusers_fn.solvers.dpm_solver import dpm2, dpm_solver, dpmpp_2s, dpmpp_3s
from diffusers_fn.solvers.exponential import (
    ExponentialForm,
    ExponentialStep,
    data_prediction,
    exponential_step,
    noise_prediction,
)
from diffusers_fn.solvers.langevin import Corrector, annealed_langevin, langevin, predictor_corrector
from diffusers_fn.solvers.memory import with_memory
from diffusers_fn.solvers.multistep import dpmpp_1, dpmpp_1_sde, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from diffusers_fn.solvers.padding import pad
from diffusers_fn.solvers.plans import check_num_levels, check_plan, neighbours
from diffusers_fn.solvers.pndm import plms, pndm
from diffusers_fn.solvers.restarts import with_restarts
from diffusers_fn.solvers.runge_kutta import (
    euler,
    euler_ancestral,
    heun,
    midpoint,
    rk4,
    runge_kutta,
    runge_kutta_in_time,
)
from diffusers_fn.solvers.sa_solver import sa_solver
from diffusers_fn.solvers.sde import DiffusionCoefficient, euler_maruyama, heun_sde, reverse_diffusion
from diffusers_fn.solvers.selection import select
from diffusers_fn.solvers.singlestep import fast_orders, singlestep
from diffusers_fn.solvers.singlestep_sde import dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde
from diffusers_fn.solvers.stages import Stage, solver_from_stages
from diffusers_fn.solvers.tableaus import EULER, HEUN, MIDPOINT, RK4, THREE_EIGHTHS, Tableau, two_stage
from diffusers_fn.solvers.unipc import unipc

__all__ = [
    "EULER",
    "HEUN",
    "MIDPOINT",
    "RK4",
    "THREE_EIGHTHS",
    "AdaptiveStep",
    "Corrector",
    "DiffusionCoefficient",
    "ExponentialForm",
    "ExponentialStep",
    "History",
    "LinearRow",
    "Solver",
    "Stage",
    "Step",
    "Tableau",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "check_num_levels",
    "check_plan",
    "data_prediction",
    "ddim",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm2_churn",
    "dpm_solver",
    "dpmpp_1",
    "dpmpp_1_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "euler_churn",
    "euler_maruyama",
    "exponential_step",
    "fast_orders",
    "heun",
    "heun_churn",
    "heun_sde",
    "ipndm",
    "langevin",
    "lcm",
    "linear_solver",
    "lms",
    "midpoint",
    "neighbours",
    "noise_prediction",
    "pad",
    "plms",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
    "rk4",
    "runge_kutta",
    "runge_kutta_in_time",
    "sa_solver",
    "select",
    "singlestep",
    "solver_from_stages",
    "start_level",
    "tcd",
    "two_stage",
    "unipc",
    "with_memory",
    "with_restarts",
]


def __dir__() -> list[str]:
    return __all__
