"""Averages of the parameters over the steps of a run: how much each step counts, and several averages at once.

An average a moves towards the parameters p after every update n = 1, 2, ...,

    a <- a + w_n (p - a),

and a `Weighing` says w_n = 1 - decay. Given as one minus the decay, since for long averages the decay is a rounded 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import namespace

Weighing = Callable[[Any], Any]  # n [], the updates so far with this one, from 1 -> w_n []


# How much a step counts.


def exponential(decay: float) -> Weighing:
    """Returns w_n = 1 - decay, the plain moving average; it starts as the first parameters that it was given.

    Raises:
      ValueError: unless decay lies in [0, 1).

    >>> round(exponential(0.75)(jnp.array(1)), 4)
    0.25
    """
    _check_decay("decay", decay)
    return lambda n: 1.0 - decay


def warmed_up(
    decay: float, *, inv_gamma: float = 1.0, power: float = 2 / 3, min_decay: float = 0.0, start: int = 0
) -> Weighing:
    """Returns w_n of the decay 1 - (1 + s / inv_gamma)^-power with s = n - 1 - start, kept in [min_decay, decay].

    The average grows as long as (power 1: the mean of) what there is to average. Katherine Crowson's warm-up, in
    k-diffusion (`EMAWarmup`, https://github.com/crowsonkb/k-diffusion) and diffusers (`EMAModel(use_ema_warmup=True)`,
    whose update_after_step is `start`). Powers of 2/3 and 3/4 reach 0.999 after 31,600 and 10,000 updates.

    Args:
      decay: the highest, in [0, 1).
      inv_gamma: positive, how many updates the warm-up lasts longer.
      power: positive.
      min_decay: the lowest, after s = 0.
      start: updates that the average is the parameters themselves.

    Raises:
      ValueError: if a number is out of range.

    >>> warmed_up(0.9999, power=1.0)(jnp.arange(1, 5)).round(4).tolist()[:2]  # the plain mean
    [1.0, 0.5]
    """
    _check_decay("decay", decay)
    _check_decay("min_decay", min_decay)
    if not (inv_gamma > 0 and power > 0 and start >= 0 and min_decay <= decay):
        raise ValueError(
            "inv_gamma and power must be positive, start not negative and min_decay at most decay; got "
            f"{inv_gamma}, {power}, {start} and {min_decay}"
        )

    def weigh(n: Any) -> Any:
        s = jnp.maximum(n - 1 - start, 0)
        w = (1.0 + s / inv_gamma) ** -power
        return jnp.where(s == 0, 1.0, jnp.clip(w, 1.0 - decay, 1.0 - min_decay))

    return weigh


def ratio_warmed_up(decay: float, *, min_decay: float = 0.0, start: int = 0) -> Weighing:
    """Returns w_n of the decay (1 + s) / (10 + s) with s = n - 1 - start, kept in [min_decay, decay]; 0 at s = 0.

    The warm-up of TensorFlow's `ExponentialMovingAverage` and the default of diffusers' `EMAModel`.

    Args: as for `warmed_up`.

    Raises:
      ValueError: if a number is out of range.

    >>> ratio_warmed_up(0.9999)(jnp.array([1, 9])).tolist()
    [1.0, 0.5]
    """
    _check_decay("decay", decay)
    _check_decay("min_decay", min_decay)
    if start < 0 or min_decay > decay:
        raise ValueError(f"start must not be negative and min_decay at most decay; got {start} and {min_decay}")

    def weigh(n: Any) -> Any:
        s = jnp.maximum(n - 1 - start, 0)
        return jnp.where(s == 0, 1.0, jnp.clip(9.0 / (10.0 + s), 1.0 - decay, 1.0 - min_decay))

    return weigh


def half_life(updates: float, *, ramp: float | None = 0.05) -> Weighing:
    """Returns w_n of the decay 2^(-1 / h), where h is `updates`, but no more than ramp * n.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, appendix F.3, and their code, which counts images: `updates`
    is their half-life over the batch size.

    Args:
      updates: after how many the weight of an update has halved.
      ramp: share of the run so far; None for no warm-up.

    Raises:
      ValueError: if a number is not positive.

    >>> round(float(half_life(10.0, ramp=None)(jnp.array(1))), 4)
    0.067
    """
    if not updates > 0 or (ramp is not None and not ramp > 0):
        raise ValueError(f"updates and ramp must be positive; got {updates} and {ramp}")
    return lambda n: -jnp.expm1(-np.log(2.0) / jnp.minimum(updates, jnp.inf if ramp is None else ramp * n))


def power_function(std: float) -> Weighing:
    """Returns w_n = 1 - (1 - 1/n)^(gamma + 1), whose average weighs time t of the run in proportion to t^gamma.

    Its length grows with the run: std is the standard deviation of t under these weights over the run's length, and
    gamma = `power_function_gamma(std)`. Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
    Models" (EDM2), 2024, https://arxiv.org/abs/2312.02696, eq. 127. Stored a few times in a run at two lengths,
    averages of every length can be made afterwards: see `post_hoc_weights`.

    Args:
      std: sigma_rel, in (0, 0.288]; the paper tracks 0.05 and 0.10.

    Raises:
      ValueError: if std is out of range.

    >>> power_function(0.1)(jnp.array([1, 1000])).round(6)
    Array([1.     , 0.00791], dtype=float32)
    """
    exponent = float(power_function_gamma(std)) + 1.0
    return lambda n: -jnp.expm1(exponent * jnp.log1p(-1.0 / n))


# Averages as a state.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Averages:
    """Several averages of the parameters.

    Attributes:
      count: [] int32, updates so far.
      trees: one tree like the parameters for each weighing, at least float32.
    """

    count: jax.Array
    trees: tuple[Any, ...]


class Averaging(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: (params) -> Averages, all of which are the parameters.
      update: (averages, params) -> Averages after one more update of the parameters.
    """

    init: Callable[[Any], Averages]
    update: Callable[[Averages, Any], Averages]


def averaging(*weighings: Weighing) -> Averaging:
    """Returns the pair (init, update) that keeps one average a weighing.

    >>> keep = averaging(exponential(0.5), power_function(0.1))
    >>> averages = keep.update(keep.init({"w": jnp.zeros(1)}), {"w": jnp.ones(1)})
    >>> [tree["w"] for tree in averages.trees]
    [Array([0.5], dtype=float32), Array([1.], dtype=float32)]
    """

    def init(params: Any) -> Averages:
        return Averages(jnp.zeros((), jnp.int32), tuple(start(params) for _ in weighings))

    def update(averages: Averages, params: Any) -> Averages:
        count = averages.count + 1
        trees = (move(tree, params, weigh(count)) for tree, weigh in zip(averages.trees, weighings, strict=True))
        return Averages(count, tuple(trees))

    return Averaging(init, update)


def start(params: Any) -> Any:
    """Returns the average before the first update: a copy of the parameters, at least float32.

    A copy, for a donated state must not hold one buffer twice; and float32, for an average in bfloat16 rounds its own
    increments away.

    >>> start({"w": jnp.ones(1, jnp.bfloat16)})
    {'w': Array([1.], dtype=float32)}
    """
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32), copy=True), params)


def move(average: Any, params: Any, weight: Any) -> Any:
    """Returns average + weight (params - average), leaf by leaf, in the average's precision.

    >>> move({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, 0.25)
    {'w': Array([0.25], dtype=float32)}
    """
    return jax.tree.map(lambda a, p: a + jnp.asarray(weight, a.dtype) * (p.astype(a.dtype) - a), average, params)


# Averages of any length after the run (Karras et al. 2024, section 3.2 and appendix C). On the host, in float64.


def power_function_std(gamma: Any) -> np.ndarray:
    """Returns sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) of a power-function average (eq. 123).

    >>> power_function_std([16.97, 6.94]).round(4)
    array([0.05, 0.1 ])
    """
    gamma = np.asarray(gamma, np.float64)
    return np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_function_gamma(std: Any) -> np.ndarray:
    """Returns the exponent gamma >= 0 of the power-function average whose relative standard deviation is std.

    The largest root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2 = 0 (eq. 126).

    Raises:
      ValueError: unless std lies in (0, 1 / sqrt(12)]; the upper end is the plain mean of the run.

    >>> power_function_gamma([0.05, 0.1]).round(2)
    array([16.97,  6.94])
    """
    std = np.asarray(std, np.float64)
    if not np.all((std > 0) & (std <= 0.5 / np.sqrt(3.0))):
        raise ValueError(f"std must lie in (0, {0.5 / np.sqrt(3.0):.4f}], the plain mean of the run; got {std}")
    roots = [np.roots([1.0, 7.0, 16.0 - s**-2, 12.0 - s**-2]).real.max() for s in std.ravel()]
    return np.maximum(np.reshape(roots, std.shape), 0.0)


def post_hoc_weights(
    snapshot_steps: Sequence[int] | np.ndarray,
    snapshot_stds: Sequence[float] | np.ndarray,
    target_step: float,
    target_std: float,
) -> np.ndarray:
    """Returns weights [N] of stored averages whose sum is nearest to the power-function average of another length.

    With p_i the weight that average i gives to each time of the run, the weights w minimise the integral of
    (sum_i w_i p_i - p_target)^2, scaled to sum to 1. Karras et al. 2024, https://arxiv.org/abs/2312.02696, algorithm 3
    and eq. 151. `combine` applies them.

    Args:
      snapshot_steps: [N], the `count` at which each average was stored.
      snapshot_stds: [N], its std.
      target_step: the step that the new average ends at; best one of the snapshots', and the last of those used.
      target_std: the new std; best not below the least of the stored ones.

    Raises:
      ValueError: if numbers are out of range, or a snapshot is given twice.

    >>> post_hoc_weights([500, 500, 1000, 1000], [0.05, 0.1, 0.05, 0.1], 1000, 0.1).round(6) + 0.0
    array([0., 0., 0., 1.])
    """
    steps, stds = np.asarray(snapshot_steps, np.float64), np.asarray(snapshot_stds, np.float64)
    if steps.ndim != 1 or steps.shape != stds.shape or not steps.size:
        raise ValueError(f"snapshot_steps and snapshot_stds must be [N] with N >= 1; got {steps.shape}, {stds.shape}")
    if not (np.all(steps >= 1) and target_step >= 1):
        raise ValueError(f"steps must be at least 1; got {steps} and {target_step}")
    if len(set(zip(steps, stds, strict=True))) < steps.size:
        raise ValueError("a snapshot is given twice: each pair of step and std must be there once")
    gammas, target_gamma = power_function_gamma(stds), power_function_gamma(target_std)
    stored = _inner_product(steps[:, None], gammas[:, None], steps[None, :], gammas[None, :])
    wanted = _inner_product(steps, gammas, np.float64(target_step), target_gamma)
    weights, *_ = np.linalg.lstsq(stored, wanted, rcond=None)
    return weights / np.sum(weights)


def combine(snapshots: Sequence[Any], weights: Any) -> Any:
    """Returns sum_i weights[i] snapshots[i], leaf by leaf, in the leaves' type.

    NumPy leaves are summed in float64 on the host: the weights may cancel.

    Args:
      snapshots: N trees.
      weights: [N].

    Raises:
      ValueError: if there are not as many of one as of the other.

    >>> combine([{"w": np.ones(2)}, {"w": np.zeros(2)}], [0.25, 0.75])
    {'w': array([0.25, 0.25])}
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(snapshots),) or not snapshots:
        raise ValueError(f"there must be one weight a snapshot; got {weights.shape} for {len(snapshots)} snapshots")

    def total(*leaves: Any) -> Any:
        xp = namespace(leaves)
        wide = np.float64 if xp is np else jnp.promote_types(leaves[0].dtype, jnp.float32)
        terms = [xp.asarray(weight, wide) * xp.asarray(leaf, wide) for weight, leaf in zip(weights, leaves)]
        return sum(terms[1:], terms[0]).astype(leaves[0].dtype)

    return jax.tree.map(total, *snapshots)


def _inner_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of p_a p_b over time, with p_i(t) = (gamma_i + 1) t^gamma_i / t_i^(gamma_i + 1) up to t_i (eq. 151).

    Up to the earlier end e, of exponent gamma, against the later l, of exponent gamma': the power (e / l)^gamma' / l.
    """
    power = np.where(t_a < t_b, (t_a / t_b) ** gamma_b, (t_b / t_a) ** gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * power / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value}")
