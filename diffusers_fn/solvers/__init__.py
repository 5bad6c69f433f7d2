"""Solvers: each returns a `Solver`, a table of numbers for `sample`. See `base` for how to read one."""

from diffusers_fn.solvers.adams import deis, ipndm, lms
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
from diffusers_fn.solvers.ddim import ancestral, ddim
from diffusers_fn.solvers.forms import Form, data_prediction, noise_prediction
from diffusers_fn.solvers.multistep import dpmpp_1, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from diffusers_fn.solvers.runge_kutta import euler, euler_ancestral, heun
from diffusers_fn.solvers.unipc import unipc

__all__ = [
    "Form",
    "History",
    "Row",
    "Solver",
    "Step",
    "ancestral",
    "check_num_levels",
    "check_plan",
    "data_prediction",
    "ddim",
    "deis",
    "dpmpp_1",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "euler",
    "euler_ancestral",
    "heun",
    "ipndm",
    "linear_solver",
    "lms",
    "neighbours",
    "noise_prediction",
    "unipc",
]
