"""Oracles: exact denoisers, flows and densities for data of known distribution, and checks of solvers against them.

- `gaussian`, `mixture` and `finite` return exact denoisers.
- `gaussian_flow` and `mixture_flow` solve the probability flow exactly; `mixture_log_prob` is the log density of noised
  data.
- `check_solver(my_solver, order=2)` tests a solver of your own; `measure_order` and `marginal_moments` return its order
  of convergence and the exact moments of its samples.

NumPy inputs give NumPy float64 results, computed on the host.
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


def __dir__() -> list[str]:
    return __all__
