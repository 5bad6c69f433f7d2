"""What exponential multistep methods share: the order of each step, earlier values, and the tables themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array
from diffusers_fn.levels import Level
from diffusers_fn.solvers.base import Solver, linear_solver
from diffusers_fn.solvers.exponential import ExponentialForm, ExponentialStep
from diffusers_fn.solvers.plans import check_plan

__all__ = [
    "check_order",
    "multistep_solver",
    "predictor_corrector_table",
    "step_index",
    "step_orders",
    "value_before",
]


def multistep_solver(levels: Level, form: ExponentialForm, m: list[Array], step: ExponentialStep) -> Solver:
    """Returns the solver x' = step.x x + sum_k m[k] m_k + step.noise z, with m_1 the newest of the form's predictions.

    Args:
      levels: Level[N].
      form: which prediction is kept.
      m: columns [N - 1, *S].
      step: the exact solution of each step, [N - 1, *S].
    """
    x0, eps = form.keeps
    return linear_solver(levels, x=[step.x], x0=x0, eps=eps, m=m, noise=step.noise)


def predictor_corrector_table(
    levels: Level,
    form: ExponentialForm,
    predictor: list[Array],
    corrector: list[Array],
    step: ExponentialStep,
    corrected: Any = 1.0,
) -> Solver:
    """Returns the solver that predicts the next level's state, and corrects it once the prediction m' there is known.

    The corrected state is the predicted one plus a sum of predictions, with the same noise, so that one row does both:
    row i corrects the step that led to its level, in units of that level's x, and predicts the next state. The state at
    the last level is the predicted one.

    Args:
      levels: Level[N].
      form: which prediction is kept.
      predictor: columns [N - 1, *S], the coefficients of m_1, m_2, ... in the predicted state.
      corrector: columns [N - 1, *S], the coefficients of m', m_1, m_2, ... in the corrected state.
      step: the exact solution of each step, [N - 1, *S].
      corrected: [] or [N - 1, *S], a factor for the correction of each step.
    """
    zero = 0.0 * predictor[0]
    num_columns = max(len(predictor) + 1, len(corrector))
    predictor = predictor + [zero] * (num_columns - len(predictor))
    corrector = corrector + [zero] * (num_columns - len(corrector))
    xp = namespace(levels, predictor, corrector, corrected)
    m = []
    for k in range(num_columns):
        change = corrected * (corrector[k] - (predictor[k - 1] if k else 0.0))
        arrived = xp.concatenate([xp.zeros_like(change[:1]), change[:-1]])  # of the step before
        m.append(predictor[k] + step.x * arrived)
    return multistep_solver(levels, form, m, step)


def step_index(column: Array) -> np.ndarray:
    """Returns 0 ... N - 2, shaped to combine with a column [N - 1, *S].

    >>> step_index(np.zeros((2, 5))).shape
    (2, 1)
    """
    return np.arange(column.shape[0]).reshape(-1, *(1,) * (column.ndim - 1))


def value_before(values: Array, k: int) -> Array:
    """Returns, for each step, the value k levels before its start: [N - 1, *S] from values [N, *S] at the levels.

    Where fewer than k levels precede the start, it is the first value.

    >>> value_before(np.array([5.0, 6.0, 7.0, 8.0]), 1)
    array([5., 5., 6.])
    """
    return values[np.maximum(np.arange(values.shape[0] - 1) - k, 0)]


def step_orders(
    num_steps: int, order: int, lower_order_final: bool = False, euler_at_final: bool = False
) -> np.ndarray:
    """Returns the order of each step, [num_steps]: limited by the number of predictions, and lowered at the end.

    Args:
      num_steps: N - 1.
      order: the highest order.
      lower_order_final: whether the orders count down to one at the final denoise, so that the step into the last level
        has order two.
      euler_at_final: whether the step into the last level has order one; the orders count down to it with
        lower_order_final.

    >>> step_orders(6, 3)
    array([1, 2, 3, 3, 3, 3])
    >>> step_orders(6, 3, lower_order_final=True), step_orders(6, 3, lower_order_final=True, euler_at_final=True)
    (array([1, 2, 3, 3, 3, 2]), array([1, 2, 3, 3, 2, 1]))
    """
    step = np.arange(num_steps)
    used = np.minimum(step + 1, order)
    left = num_steps - step
    if lower_order_final:
        return np.minimum(used, left if euler_at_final else left + 1)
    return np.where(left == 1, 1, used) if euler_at_final else used


def check_order(levels: Level, order: int) -> None:
    """Raises ValueError unless levels are a plan and the order is 1 to 4."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4; got {order}")
    check_plan(levels)
