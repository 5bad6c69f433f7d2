"""SA-Solver: Adams methods on the reverse SDE, with a corrector that costs no network evaluation.

Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023,
https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, is_zero, namespace
from diffusers_fn._types import Array, ArrayLike
from diffusers_fn.levels import Level
from diffusers_fn.solvers.adams import adams
from diffusers_fn.solvers.base import Solver
from diffusers_fn.solvers.exponential import ExponentialForm, data_prediction, exponential_step
from diffusers_fn.solvers.multistep_tables import multistep_solver, predictor_corrector_table, step_orders
from diffusers_fn.solvers.plans import check_alpha, check_plan, neighbours

__all__ = ["sa_solver"]


def sa_solver(
    levels: Level,
    tau: ArrayLike = 1.0,
    predictor_order: int = 2,
    corrector_order: int = 2,
    form: ExponentialForm = data_prediction,
    *,
    simplified: bool = True,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the stochastic Adams solver (Xue et al. 2023, https://arxiv.org/abs/2309.05019, algorithm 1).

    On dx = f x dt + (1 + tau^2) / 2 g^2 / sigma eps_hat dt + tau g dw (their eq. 6), with kappa = 1 + tau^2,

        predictor   x' = e^(-tau^2 h) sigma' / sigma x + alpha' kappa sum_k m_k int L_k(u) e^(kappa (u - lambda')) du
                         + sigma' sqrt(1 - e^(-2 tau^2 h)) z                                            (eq. 14)
        corrector   the same integrals, with the prediction m' at x' as one more node, and the same z    (eq. 17)

    One network evaluation per step: the corrector changes the state before the next step starts (see `unipc`). tau = 0
    is the ODE, tau = 1 the reverse SDE; tau^2 is the eta of `dpmpp_2m_sde`. With tau = 0, simplified=False and
    corrector_order = predictor_order + 1 it is UniPC with the exact weights of each order, without a noise column.

    Args:
      levels: Level[N], any process whose first alpha is positive.
      tau: a number >= 0, or a function of the levels [N - 1] at which steps start, to numbers >= 0.
      predictor_order: 1 to 4, the number of predictions that the predictor uses; fewer in the first steps.
      corrector_order: 1 to 4, the number that the corrector uses, m' among them; 0 for no corrector.
      form: data_prediction, or noise_prediction, where the noise is sigma' tau sqrt(e^(2h) - 1).
      simplified: whether formulas of order two in data prediction use only the leading power of h in the weight of
        their difference, kappa h^2 / 2 and kappa h / 2, as the authors' code does.
      lower_order_final, euler_at_final: as `unipc`; the corrector's order is at most one more than the predictor's.

    Raises:
      ValueError: if levels are not a plan (see `check_plan`), alpha = 0, an order is
        out of range, or tau (not traced) is negative.

    >>> from diffusers_fn import grids
    >>> plan = grids.karras(4)
    >>> sa_solver(plan, 0.5).rows.noise.round(3)
    array([7.847e+00, 4.150e-01, 2.000e-03, 0.000e+00])
    >>> sa_solver(plan, lambda level: (level.sigma < 50.0) * 1.0).rows.noise.round(3)
    array([0.   , 0.469, 0.002, 0.   ])
    """
    check_plan(levels)
    if predictor_order not in (1, 2, 3, 4) or corrector_order not in (0, 1, 2, 3, 4):
        raise ValueError(
            "predictor_order must be 1 to 4 and corrector_order 0 (no corrector) to 4; "
            f"got {predictor_order} and {corrector_order}"
        )
    check_alpha(levels)
    start, end = neighbours(levels)
    step = exponential_step(start, end, form, _squared(tau(start) if callable(tau) else tau))
    h = step.h
    used = step_orders(h.shape[0], predictor_order, lower_order_final, euler_at_final)
    xp = namespace(levels, step)
    simplified = simplified and form is data_prediction
    leading = 0.5 * step.kappa * step.rate * h  # the weight of the difference of the predictions at both ends
    predictor = adams(levels, used, predictor_order, form, step)
    if simplified and predictor_order > 1:
        weight = leading * h / xp.concatenate([h[:1], h[:-1]])
        predictor = _where_two(used, [step.w0 + weight, -weight], predictor)
    if corrector_order == 0:
        return multistep_solver(levels, form, predictor, step)

    left = h.shape[0] - np.arange(h.shape[0])
    cap = left + (1 if euler_at_final else 2) if lower_order_final else corrector_order
    used = np.minimum(np.minimum(np.arange(h.shape[0]) + 2, corrector_order), cap)
    corrector = adams(levels, used, corrector_order, form, step, implicit=True)
    if simplified and corrector_order > 1:
        corrector = _where_two(used, [leading, step.w0 - leading], corrector)
    return predictor_corrector_table(levels, form, predictor, corrector, step)


def _squared(tau: Any) -> Any:
    """tau^2, which is eta; a Python 0 stays one."""
    known = concrete(tau)
    if known is not None and not np.all(known >= 0):
        raise ValueError(f"tau must not be negative; got {tau}")
    return 0 if is_zero(tau) else tau**2


def _where_two(used: np.ndarray, new: list[Array], columns: list[Array]) -> list[Array]:
    """The columns, replaced by `new` where two predictions are used."""
    xp = namespace(new, columns)
    two = used.reshape(-1, *(1,) * (new[0].ndim - 1)) == 2
    return [xp.where(two, a, b) for a, b in zip(new, columns)] + columns[2:]
