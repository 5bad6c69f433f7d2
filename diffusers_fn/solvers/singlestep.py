"""DPM-Solver(++) in single steps: up to three network evaluations per step, which later steps do not use.

Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", 2022,
https://arxiv.org/abs/2206.00927, and "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095.

A step of order p evaluates m = m_0 at its start and m_1 ... m_{p-1} at p - 1 levels inside, at shares r_k of its length
h in lambda = log(alpha / sigma). With the weights w0, w1, w2 of `ExponentialStep`,

    order 1   x' = x_coef x + w0 m
    order 2   x' = x_coef x + w0 m + c (m_1 - m) / r_1,      c = w0 / 2, or w1 with `taylor`
    order 3   x' = x_coef x + w0 m + w1 (m_2 - m) / r_2,     or w1 D_1 + w2 D_2 with `taylor`

where D_1, D_2 are the derivatives of the parabola through m, m_1, m_2. The first level inside is reached by order 1,
the second one by order 2 with c = w1.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from diffusers_fn._arrays import check_eta, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level, log_snr
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import (
    ExponentialForm,
    data_prediction,
    exponential_step,
    noise_prediction,
)
from diffusers_fn.solvers.plans import check_alpha, check_plan
from diffusers_fn.solvers.stages import Stage, solver_from_stages

__all__ = [
    "check_orders",
    "fast_orders",
    "first_order",
    "formulas",
    "runs",
    "second_order",
    "singlestep",
    "third_order",
]


def first_order(start: Level, end: Level, form: ExponentialForm, eta: ArrayLike = 0.0) -> list[Stage]:
    """Returns the stage of steps of order 1 between levels [M], see this module's docstring."""
    step = exponential_step(start, end, form, eta)
    return [Stage(start, *form.keeps, step.x, [step.w0], step.noise)]


def second_order(
    start: Level, inside: Level, end: Level, form: ExponentialForm, eta: ArrayLike = 0.0, *, taylor: bool = False
) -> list[Stage]:
    """Returns the stages of steps of order 2 between levels [M], see this module's docstring."""
    step = exponential_step(start, end, form, eta)
    c = (step.w1 if taylor else 0.5 * step.w0) / _share(start, inside, end)
    return [
        *first_order(start, inside, form, eta),
        Stage(inside, *form.keeps, step.x, [step.w0 - c, c], step.noise),
    ]


def third_order(
    start: Level,
    inside_1: Level,
    inside_2: Level,
    end: Level,
    form: ExponentialForm,
    eta: ArrayLike = 0.0,
    *,
    taylor: bool = False,
    nested: bool = False,
) -> list[Stage]:
    """Returns the stages of steps of order 3 between levels [M], see this module's docstring and `singlestep`."""
    step = exponential_step(start, end, form, eta)
    r1, r2 = _share(start, inside_1, end), _share(start, inside_2, end)
    if taylor:  # w1 D_1 + w2 D_2 by the differences m_1 - m and m_2 - m
        c1 = (r2 * step.w1 - 2.0 * step.w2) / (r1 * (r2 - r1))
        c2 = (2.0 * step.w2 - r1 * step.w1) / (r2 * (r2 - r1))
    else:
        c1, c2 = namespace(step).zeros_like(step.w1), step.w1 / r2
    return [
        *second_order(start, inside_1, inside_2, form, eta, taylor=taylor or not nested),
        Stage(inside_2, *form.keeps, step.x, [step.w0 - c1 - c2, c1, c2], step.noise),
    ]


def singlestep(
    levels: Level,
    orders: Sequence[int],
    form: ExponentialForm = data_prediction,
    *,
    eta: ArrayLike = 0.0,
    taylor: bool = False,
    nested: bool = False,
) -> Solver:
    """Returns single-step DPM-Solver(++) with an evaluation at every level of a plan, orders[i] of them in step i.

    The formulas are those of this module. A step of order p leads p levels ahead in the plan; the levels between
    are those inside it, wherever they lie. Without `taylor`, order 3 needs r_2 near 2/3. With eta > 0 each stage
    solves the reverse SDE, from the step's start with fresh noise.

    Args:
      levels: Level[N]; the first may have alpha = 0 if the form is data_prediction and orders[0] is 1.
      orders: of each step, 1, 2 or 3; their sum is N - 1. `fast_orders` makes the authors' list.
      form: data_prediction ("++") or noise_prediction.
      eta: [] in [0, 1], as `dpmpp_2m_sde`.
      taylor: the authors' solver_type "taylor", "heun" in other libraries ("dpmsolver" and "midpoint" without it).
      nested: whether the second level inside is reached with c = w0 / 2, as in code that runs order 1, 2 and 3 in turn;
        the same with `taylor`.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`) or orders do not fit it, eta (not traced) is outside
        [0, 1], or alpha = 0 elsewhere.

    >>> from diffusers_fn import grids
    >>> singlestep(grids.karras(6), [3, 2]).rows.m.shape
    (6, 3)
    """
    check_plan(levels)
    check_eta(eta)
    check_orders(orders, sum(orders), levels.sigma.shape[0] - 1, "their sum")
    if form is noise_prediction or max(orders[:1], default=1) > 1:
        check_alpha(levels)
    stages_of, segments, first = formulas(taylor, nested), [], 0
    for _, num, order in runs(orders):
        points = [levels[first + i : first + i + num * order : order] for i in range(order + 1)]
        segments.append(stages_of[order](*points, form, eta))
        first += num * order
    return solver_from_stages(segments, levels[-1:])


def fast_orders(num_evaluations: int, order: int = 3) -> list[int]:
    """Returns the orders of the steps of DPM-Solver-fast, whose sum is the number of evaluations.

    Steps of the given order, then one of the remaining evaluations; of order 3, where nothing remains, the last step is
    split in 2 and 1 (Lu et al. 2022, https://arxiv.org/abs/2206.00927, section 3.4 and appendix).

    Raises:
      ValueError: if order is not 1, 2 or 3 or num_evaluations < 1.

    >>> fast_orders(9), fast_orders(10), fast_orders(11)
    ([3, 3, 2, 1], [3, 3, 3, 1], [3, 3, 3, 2])
    """
    if order not in (1, 2, 3) or num_evaluations < 1:
        raise ValueError(f"order must be 1, 2 or 3 and num_evaluations positive; got {order} and {num_evaluations}")
    whole, rest = divmod(num_evaluations, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + [rest] * (rest > 0)


def formulas(taylor: bool, nested: bool = False) -> dict[int, Callable[..., list[Stage]]]:
    """The function of `Stage`s for each order."""
    return {
        1: first_order,
        2: functools.partial(second_order, taylor=taylor),
        3: functools.partial(third_order, taylor=taylor, nested=nested),
    }


def runs(orders: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(index of the first step, number of steps, order) of each run of steps of equal order."""
    first = 0
    for order, run in itertools.groupby(orders):
        num = len(list(run))
        yield first, num, order
        first += num


def _share(start: Level, inside: Level, end: Level) -> Array:
    """r, the fraction of the way from start to end in log SNR at which a level lies."""
    return (log_snr(inside) - log_snr(start)) / (log_snr(end) - log_snr(start))


def check_orders(orders: Sequence[int], given: int, expected: int, quantity: str) -> None:
    if not all(order in (1, 2, 3) for order in orders) or given != expected:
        raise ValueError(f"orders must be 1, 2 or 3 each, and {quantity} {expected} on this plan; got {list(orders)}")
