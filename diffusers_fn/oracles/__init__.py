"""Exact answers for data of known distribution, and checks of solvers against them: public, so test your own.

`gaussian`, `mixture` and `finite` are exact denoisers. `gaussian_flow`, `mixture_flow` and `mixture_log_prob` are exact
answers of the probability flow and of the noised marginals. `measure_order`, `marginal_moments` and `check_solver` put
a solver to the test; `check_solver(my_solver, order=2)` in a test of your own is all that it takes to join.
"""

from diffusers_fn.oracles.conformance import check_solver, marginal_moments, measure_order
from diffusers_fn.oracles.denoisers import finite, gaussian, mixture
from diffusers_fn.oracles.flows import draw_mixture, gaussian_flow, mixture_flow, mixture_log_prob

__all__ = [
    "check_solver",
    "draw_mixture",
    "finite",
    "gaussian",
    "gaussian_flow",
    "marginal_moments",
    "measure_order",
    "mixture",
    "mixture_flow",
    "mixture_log_prob",
]
