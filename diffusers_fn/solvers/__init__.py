"""Solvers: each returns a `Solver`, a table of numbers for `sample`. See `base` for how to read one."""

from diffusers_fn.solvers.base import History, Row, Solver, Step, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.ddim import ancestral, ddim

__all__ = [
    "History",
    "Row",
    "Solver",
    "Step",
    "ancestral",
    "check_plan",
    "ddim",
    "linear_solver",
    "neighbours",
]
