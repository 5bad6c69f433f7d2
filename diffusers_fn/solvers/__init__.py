"""Solvers: each returns a `Solver`, a table of numbers for `sample`. See `base` for how to read one."""

from diffusers_fn.solvers.adams import deis, ipndm, lms
from diffusers_fn.solvers.adaptive import AdaptiveStep, adaptive
from diffusers_fn.solvers.base import (
    History,
    Row,
    Solver,
    Step,
    check_num_levels,
    check_plan,
    linear_solver,
    neighbours,
)
from diffusers_fn.solvers.consistency import lcm, tcd
from diffusers_fn.solvers.ddim import ancestral, ddim
from diffusers_fn.solvers.forms import Form, data_prediction, noise_prediction
from diffusers_fn.solvers.langevin import Corrector, annealed_langevin, langevin, predictor_corrector
from diffusers_fn.solvers.multistep import dpmpp_1, dpmpp_1_sde, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from diffusers_fn.solvers.padding import pad
from diffusers_fn.solvers.pndm import plms, pndm
from diffusers_fn.solvers.runge_kutta import euler, euler_ancestral, heun
from diffusers_fn.solvers.sa_solver import sa_solver
from diffusers_fn.solvers.sde import euler_maruyama, heun_sde, reverse_diffusion
from diffusers_fn.solvers.unipc import unipc

__all__ = [
    "AdaptiveStep",
    "Corrector",
    "Form",
    "History",
    "Row",
    "Solver",
    "Step",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "check_num_levels",
    "check_plan",
    "data_prediction",
    "ddim",
    "deis",
    "dpmpp_1",
    "dpmpp_1_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "heun",
    "heun_sde",
    "ipndm",
    "langevin",
    "lcm",
    "linear_solver",
    "lms",
    "neighbours",
    "noise_prediction",
    "pad",
    "plms",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
    "sa_solver",
    "tcd",
    "unipc",
]
