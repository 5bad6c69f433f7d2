"""Runge-Kutta methods as tableaus of numbers."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EULER", "HEUN", "MIDPOINT", "RK4", "THREE_EIGHTHS", "Tableau", "check_tableau", "two_stage"]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method of S stages (Butcher's tableau).

    Attributes:
      nodes: S numbers in [0, 1], the positions of the stages in the step; the first is 0.
      stages: S tuples, the i-th of i weights: x_i = x + sum_k stages[i][k] d_k, d_k the slope at x_k times the step.
      weights: S numbers, x' = x + sum_k weights[k] d_k.

    >>> Tableau(nodes=(0.0, 1.0), stages=((), (1.0,)), weights=(0.5, 0.5)) == HEUN
    True
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))
MIDPOINT = Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))
RK4 = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
THREE_EIGHTHS = Tableau(
    (0.0, 1 / 3, 2 / 3, 1.0), ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
)


def two_stage(fraction: float) -> Tableau:
    """Returns the tableau of order two with its second stage at a fraction of the step.

    1/2 is the midpoint method, 2/3 Ralston's, 1 Heun's.

    The family of Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 3, where the fraction is alpha.

    Raises:
      ValueError: if the fraction is not in (0, 1].

    >>> two_stage(0.5) == MIDPOINT
    True
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the second stage must lie at a fraction in (0, 1] of the step; got {fraction}")
    return Tableau((0.0, fraction), ((), (fraction,)), (1 - 0.5 / fraction, 0.5 / fraction))


def check_tableau(tableau: Tableau) -> None:
    """Raises ValueError unless a tableau is explicit and its nodes lie in [0, 1].

    >>> check_tableau(HEUN)
    """
    num = len(tableau.nodes)
    explicit = [len(stage) for stage in tableau.stages] == list(range(num)) and len(tableau.weights) == num
    if not explicit or tableau.nodes[0] != 0 or not all(0 <= node <= 1 for node in tableau.nodes):
        raise ValueError(
            "a tableau needs S nodes in [0, 1], the first 0, stages of 0, 1, ..., S - 1 weights and S weights; "
            f"got {tableau}"
        )
