"""SA-Solver: Adams methods on the reverse SDE, with a corrector that costs no evaluation.

Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023,
https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusers_fn._arrays import concrete, is_zero, namespace
from diffusers_fn.levels import Array, Level
from diffusers_fn.solvers.adams import adams
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, neighbours
from diffusers_fn.solvers.forms import (
    Form,
    check_alpha,
    data_prediction,
    exact_hop,
    half_steps,
    one_state,
    orders,
    predict_correct,
)


def sa_solver(
    levels: Level,
    tau: Any = 1.0,
    predictor_order: int = 2,
    corrector_order: int = 2,
    form: Form = data_prediction,
    *,
    simplified: bool = True,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solver:
    """Returns the stochastic Adams solver (Xue et al. 2023, https://arxiv.org/abs/2309.05019, algorithm 1).

    On dx = f x dt + (1 + tau^2) / 2 g^2 / sigma eps_hat dt + tau g dw (their eq. 6), over a hop, kappa = 1 + tau^2,

        predictor   x' = e^(-tau^2 h) sigma' / sigma x + alpha' kappa sum_k m_k int L_k(u) e^(kappa (u - lambda')) du
                         + sigma' sqrt(1 - e^(-2 tau^2 h)) z                                            (eq. 14)
        corrector   the same integrals, with the prediction m' at x' as one more node, and the same z    (eq. 17)

    One evaluation a level: the corrector moves the state before the next hop starts (see `unipc`). tau = 0 is the ODE,
    tau = 1 the reverse SDE; tau^2 is the eta of `dpmpp_2m_sde`. With tau = 0, simplified=False and corrector_order =
    predictor_order + 1 it is UniPC with the exact weights of each order, deterministic and without a noise column.

    Args:
      levels: Level[N], any process whose first alpha is positive.
      tau: a number >= 0, or level -> numbers >= 0: it is asked at the start of each hop, Level[N - 1].
      predictor_order: 1 to 4, how many predictions the predictor uses; fewer in the first hops.
      corrector_order: 1 to 4, how many the corrector uses, m' among them; 0 for no corrector.
      form: data_prediction, or noise_prediction, where the noise is sigma' tau sqrt(e^(2h) - 1).
      simplified: whether formulas of order two in data prediction use the leading power of h alone in the weight of
        their difference, kappa h^2 / 2 and kappa h / 2, as the authors' code does.
      lower_order_final, euler_at_final: as `unipc`; the corrector's order is at most one more than the predictor's.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) of more levels than either order, alpha = 0, an order is out
        of range, or a readable tau is negative.

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
    check_num_levels(levels, max(predictor_order + 1, corrector_order, 2))
    check_alpha(levels)
    eta = _squared(tau(neighbours(levels)[0]) if callable(tau) else tau)
    hop, h = exact_hop(levels, form, eta), half_steps(levels)
    used = orders(h.shape[0], predictor_order, lower_order_final, euler_at_final)
    xp = namespace(levels, hop)
    simplified = simplified and form is data_prediction
    leading = 0.5 * hop.kappa * hop.rate * h  # of a prediction's difference over this hop
    predictor = adams(levels, used, predictor_order, form, eta)
    if simplified and predictor_order > 1:
        weight = leading * h / xp.concatenate([h[:1], h[:-1]])
        predictor = _where_two(used, [hop.whole + weight, -weight], predictor)
    if corrector_order == 0:
        return one_state(levels, form, predictor, hop)

    left = h.shape[0] - np.arange(h.shape[0])
    cap = left + (1 if euler_at_final else 2) if lower_order_final else corrector_order
    used = np.minimum(np.minimum(np.arange(h.shape[0]) + 2, corrector_order), cap)
    corrector = adams(levels, used, corrector_order, form, eta, implicit=True)
    if simplified and corrector_order > 1:
        corrector = _where_two(used, [leading, hop.whole - leading], corrector)
    return predict_correct(levels, form, predictor, corrector, hop)


def _squared(tau: Any) -> Any:
    """tau^2, the eta of an exact hop; a Python 0 stays one."""
    known = concrete(tau)
    if known is not None and not np.all(known >= 0):
        raise ValueError(f"tau must not be negative; got {tau}")
    return 0 if is_zero(tau) else tau**2


def _where_two(used: np.ndarray, new: list[Array], columns: list[Array]) -> list[Array]:
    """The columns, where two predictions are used replaced by `new`."""
    xp = namespace(new, columns)
    two = used.reshape(-1, *(1,) * (new[0].ndim - 1)) == 2
    return [xp.where(two, a, b) for a, b in zip(new, columns)] + columns[2:]
