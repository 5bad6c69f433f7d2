"""DPM-Solver(++) in single steps: two or three evaluations a hop, which later hops forget.

Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", 2022,
https://arxiv.org/abs/2206.00927, and "DPM-Solver++", 2022, https://arxiv.org/abs/2211.01095.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from diffusers_fn._arrays import check_eta, is_zero, namespace
from diffusers_fn.levels import Level
from diffusers_fn.processes import Process
from diffusers_fn.solvers.base import Solver, check_num_levels, check_plan, linear_solver, neighbours
from diffusers_fn.solvers.exponential_stages import (
    ancestral_end,
    hop_from_start,
    inner_levels,
    ladder,
    one_state_rows,
    places,
    stage_weights,
    states_rows,
)
from diffusers_fn.solvers.forms import Form, check_alpha, data_prediction, noise_prediction
from diffusers_fn.solvers.stages import join_levels


def singlestep(
    levels: Level,
    orders: Sequence[int],
    form: Form = data_prediction,
    *,
    eta: Any = 0.0,
    taylor: bool = False,
    nested: bool = False,
) -> Solver:
    """Returns single-step DPM-Solver(++) on levels that are all evaluated: hops of orders[0], orders[1], ... levels.

    A hop of order p starts at x and m = m_0 with p - 1 levels inside it, at shares r_k of its step h in lambda:

        order 1   x' = x_coef x + W m
        order 2   x' = x_coef x + W m + c (m_1 - m) / r_1,      c = W / 2, or S with `taylor`
        order 3   x' = x_coef x + W m + S (m_2 - m) / r_2,      or S D_1 + C D_2 with `taylor`

    where W, S and C are what constant m, m' and m'' are multiplied by in the exact solution (see `forms.Hop`), and D_1,
    D_2 the derivatives of the parabola through m, m_1, m_2. The level inside is reached by order 1, the second one by
    order 2 with S. Each level lies where it likes, so that a hop of order 3 may use three neighbours of a grid; without
    `taylor` it keeps its order where r_2 is near 2/3.

    With eta > 0 each stage and hop is that of the reverse SDE, from the hop's start with fresh noise.

    Args:
      levels: Level[N], N >= 2; the first may have alpha = 0 if the form is data_prediction and orders[0] is 1.
      orders: of each hop, 1, 2 or 3; their sum is N - 1. `fast_orders` makes the authors' list.
      form: data_prediction ("++") or noise_prediction.
      eta: [] in [0, 1], as `dpmpp_2m_sde`.
      taylor: the authors' solver_type "taylor", "heun" in other libraries ("dpmsolver" and "midpoint" without it).
      nested: whether the second level inside is reached by the rule for hops of order 2, as where one runs order 1, 2
        and 3 in turn; the same with `taylor`.

    Raises:
      ValueError: if levels are no plan (see `check_plan`) or orders do not fit it, a readable eta is outside [0, 1], or
        alpha = 0 elsewhere.

    >>> from diffusers_fn import grids
    >>> singlestep(grids.karras(6), [3, 2]).rows.m.shape
    (6, 3)
    """
    check_plan(levels)
    check_num_levels(levels, 2)
    check_eta(eta)
    _check_orders(orders, sum(orders), levels.sigma.shape[0] - 1, "their sum")
    if form is noise_prediction or orders[0] > 1:
        check_alpha(levels)
    place, size = places(orders)
    at, to = neighbours(levels)
    hop, curve = hop_from_start(at, to, place, form, eta)
    weights = stage_weights(at, to, place, size, hop, curve, taylor=taylor, nested=nested)
    rows = one_state_rows if is_zero(eta) else states_rows
    x0, eps = form.keeps
    return linear_solver(levels, x0=x0, eps=eps, noise=hop.noise, **rows(hop.x, weights, place))


def dpm_solver(
    levels: Level,
    order: int | Sequence[int] = 3,
    form: Form = noise_prediction,
    process: Process | None = None,
    *,
    eta: Any = 0.0,
    s_noise: Any = 1.0,
    taylor: bool = False,
) -> Solver:
    """Returns DPM-Solver-1, -2 or -3 (Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithms 1 and 2).

    Every hop of `levels` takes `order` evaluations, at its start and at 1/2, or at 1/3 and 2/3, of its step in lambda;
    the formulas are those of `singlestep`. "DPM-Solver-fast" is an order for each hop, `fast_orders(num_evaluations)`.

    With eta > 0 a hop goes down to sqrt(sigma'^2 - s^2), but not below the last level, and s of noise is added,
    s = eta sigma' sqrt(1 - SNR / SNR'): Katherine Crowson's dpm_fast (https://github.com/crowsonkb/k-diffusion).

    Args:
      levels: Level[N], N >= 2, any process, alpha > 0 (data_prediction starts a hop of order 1 at alpha = 0, too).
      order: 1, 2 or 3, or one for each of the N - 1 hops.
      form: noise_prediction; data_prediction for DPM-Solver++.
      process: where the levels inside hops lie; None interpolates, see `processes.between`.
      eta: [] in [0, 1].
      s_noise: [], what that noise is multiplied by.
      taylor: as `singlestep`.

    Raises:
      ValueError: as `singlestep`.

    >>> from diffusers_fn import grids
    >>> dpm_solver(grids.karras(3, sigma_min=1.0), 2).rows.level.sigma.round(2)
    array([80.  , 31.67, 12.53,  3.54,  1.  ])
    """
    return with_inner_levels(levels, order, form, process, eta, s_noise, taylor, stop_at_last=True)


def dpm2(levels: Level, process: Process | None = None) -> Solver:
    """Returns DPM2 ("KDPM2"), which is DPM-Solver-2: a midpoint method in sigma / alpha, the middle halfway in log SNR.

        x_1 / alpha_1 = x / alpha + (rho_1 - rho) eps_hat(x),   x' / alpha' = x / alpha + (rho' - rho) eps_hat(x_1)

    with rho = sigma / alpha and rho_1 = sqrt(rho rho'): Katherine Crowson's sampler
    (https://github.com/crowsonkb/k-diffusion). `dpm2_churn` is it with noise.

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpm2(grids.karras(3)).rows.m[:2].round(2)  # -65.8, then the whole hop -77.5 instead of it
    array([[-65.81,   0.  ],
           [-77.48,  65.81]])
    """
    return dpm_solver(levels, 2, noise_prediction, process)


def dpmpp_2s(
    levels: Level, form: Form = data_prediction, process: Process | None = None, *, taylor: bool = False
) -> Solver:
    """Returns DPM-Solver++(2S) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1, r = 1/2).

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpmpp_2s(grids.karras(3)).rows.m.round(3)
    array([[ 0.823,  0.   ],
           [ 0.969, -0.146],
           [ 0.972,  0.   ],
           [ 0.999, -0.027],
           [ 1.   ,  0.   ]])
    """
    return dpm_solver(levels, 2, form, process, taylor=taylor)


def dpmpp_3s(
    levels: Level, form: Form = data_prediction, process: Process | None = None, *, taylor: bool = False
) -> Solver:
    """Returns DPM-Solver-3 in data prediction, "DPM-Solver++(3S)", of order three with three evaluations a hop.

    Args and Raises: as `dpm_solver`.

    >>> from diffusers_fn import grids
    >>> dpmpp_3s(grids.karras(2, sigma_min=10.0)).rows.level.sigma
    array([80., 40., 20., 10.])
    """
    return dpm_solver(levels, 3, form, process, taylor=taylor)


def fast_orders(num_evaluations: int, order: int = 3) -> list[int]:
    """Returns the orders of the hops of DPM-Solver-fast, which take so many evaluations in all.

    As many hops of the given order as fit, and the rest at the end; of order 3, where they fit exactly, the last is
    split in 2 and 1 (Lu et al. 2022, https://arxiv.org/abs/2206.00927, section 3.4 and appendix).

    Raises:
      ValueError: if order is not 1, 2 or 3 or there is no evaluation.

    >>> fast_orders(9), fast_orders(10), fast_orders(11)
    ([3, 3, 2, 1], [3, 3, 3, 1], [3, 3, 3, 2])
    """
    if order not in (1, 2, 3) or num_evaluations < 1:
        raise ValueError(f"order must be 1, 2 or 3 and num_evaluations positive; got {order} and {num_evaluations}")
    whole, rest = divmod(num_evaluations, order)
    if order == 3 and rest == 0:
        return [3] * (whole - 1) + [2, 1]
    return [order] * whole + [rest] * (rest > 0)


def with_inner_levels(
    levels: Level,
    order: int | Sequence[int],
    form: Form,
    process: Process | None,
    eta: Any,
    s_noise: Any,
    taylor: bool = False,
    stop_at_last: bool = False,
) -> Solver:
    """`dpm_solver`, whose hops may end below the last level before noise is added, unless stop_at_last."""
    check_plan(levels)
    check_num_levels(levels, 2)
    check_eta(eta)
    frm, to = neighbours(levels)
    last = jax.tree.map(lambda a: a[-1:], levels)
    num_hops = frm.sigma.shape[0]
    orders = [order] * num_hops if isinstance(order, int | np.integer) else list(order)
    _check_orders(orders, len(orders), num_hops, "their number")
    if form is noise_prediction or orders[0] > 1:
        check_alpha(levels)
    down, noise = to, None
    if not is_zero(eta):
        down, noise = ancestral_end(frm, to, eta, last if stop_at_last else None)
    place, size = places(orders)
    at = inner_levels(frm, down, to, last, orders, process)
    ends = ladder(at, down, orders)
    hop, curve = hop_from_start(at, ends, place, form)
    weights = stage_weights(at, ends, place, size, hop, curve, taylor=taylor)
    if noise is not None:
        hop_of = np.repeat(np.arange(num_hops), orders)
        at_end = (place == size - 1).reshape(-1, *(1,) * (noise.ndim - 1))
        noise = namespace(noise).where(at_end, s_noise * noise[hop_of], 0.0)
    x0, eps = form.keeps
    columns = one_state_rows(hop.x, weights, place)
    return linear_solver(join_levels(at, last), x0=x0, eps=eps, noise=noise, **columns)


def _check_orders(orders: Sequence[int], given: int, wanted: int, what: str) -> None:
    if not all(order in (1, 2, 3) for order in orders) or given != wanted:
        raise ValueError(f"orders must be 1, 2 or 3 each, and {what} {wanted} on this plan; got {list(orders)}")
