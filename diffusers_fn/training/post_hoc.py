"""Post-hoc EMA: averages of any length, reconstructed after a run from stored averages of two lengths.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), 2024,
https://arxiv.org/abs/2312.02696, section 3.2 and appendix C. Computed on the host in NumPy float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import namespace
from diffusers_fn._types import ArrayLike

__all__ = ["combine", "post_hoc_error", "post_hoc_weights", "power_function_gamma", "power_function_std"]


def power_function_std(gamma: ArrayLike) -> np.ndarray:
    """Returns sigma_rel = sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2), the relative standard deviation (eq. 123).

    sigma_rel is the standard deviation of time under weights t^gamma, divided by the length of the run.

    >>> power_function_std([16.97, 6.94]).round(4)
    array([0.05, 0.1 ])
    """
    gamma = np.asarray(gamma, np.float64)
    return np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def power_function_gamma(std: ArrayLike) -> np.ndarray:
    """Returns the exponent gamma >= 0 of the power-function average with relative standard deviation std (eq. 126).

    It is the largest root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2 = 0.

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
    """Returns float64 weights [N] of stored averages, whose weighted sum approximates an average of another length.

    With p_i(t) the weight of time t in average i, the weights w minimise the integral of
    (sum_i w_i p_i - p_target)^2 and are then scaled to sum to 1. Karras et al. 2024,
    https://arxiv.org/abs/2312.02696, algorithm 3 and eq. 151. `combine` applies them.

    Args:
      snapshot_steps: [N], the `count` at which each average was stored.
      snapshot_stds: [N], the std of each average.
      target_step: the step at which the new average ends; for accuracy the step of the last snapshot that is used.
      target_std: the std of the new average; for accuracy at least the smallest stored std.

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
        raise ValueError("a snapshot is given twice: each pair of step and std must occur once")
    gammas, target_gamma = power_function_gamma(stds), power_function_gamma(target_std)
    stored = _inner_product(steps[:, None], gammas[:, None], steps[None, :], gammas[None, :])
    wanted = _inner_product(steps, gammas, np.float64(target_step), target_gamma)
    weights, *_ = np.linalg.lstsq(stored, wanted, rcond=None)
    return weights / np.sum(weights)


def post_hoc_error(
    snapshot_steps: Sequence[int] | np.ndarray,
    snapshot_stds: Sequence[float] | np.ndarray,
    target_step: float,
    target_std: float,
) -> float:
    """Returns the relative error of `post_hoc_weights`: 0 for a stored average, near 1 for one out of reach.

    It is |sum_i w_i p_i - p_target| / |p_target|, with |p|^2 the integral of p(t)^2 over the run.

    Args and Raises: as for `post_hoc_weights`.

    >>> round(post_hoc_error([1000, 1000], [0.05, 0.1], 1000, 0.07), 3)
    0.056
    >>> round(post_hoc_error([1000, 1000], [0.05, 0.1], 1000, 0.01), 3)
    0.982
    """
    weights = post_hoc_weights(snapshot_steps, snapshot_stds, target_step, target_std)
    steps, gammas = np.asarray(snapshot_steps, np.float64), power_function_gamma(np.asarray(snapshot_stds, np.float64))
    target = (np.float64(target_step), power_function_gamma(target_std))
    stored = _inner_product(steps[:, None], gammas[:, None], steps[None, :], gammas[None, :])
    squared = weights @ stored @ weights - 2 * weights @ _inner_product(steps, gammas, *target)
    length = _inner_product(*target, *target)
    return float(np.sqrt(max(squared + length, 0.0) / length))


def combine(snapshots: Sequence[Any], weights: Any) -> Any:
    """Returns the tree sum_i weights[i] snapshots[i], in the types of the leaves.

    NumPy leaves are summed in float64 on the host, since weights of both signs cancel digits.

    Args:
      snapshots: N trees of one structure.
      weights: [N].

    Raises:
      ValueError: unless weights has shape [N] with N >= 1.

    >>> combine([{"w": np.ones(2)}, {"w": np.zeros(2)}], [0.25, 0.75])
    {'w': array([0.25, 0.25])}
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(snapshots),) or not snapshots:
        raise ValueError(f"there must be one weight per snapshot; got {weights.shape} for {len(snapshots)} snapshots")

    def total(*leaves: Any) -> Any:
        xp = namespace(leaves)
        wide = np.float64 if xp is np else jnp.promote_types(leaves[0].dtype, jnp.float32)
        terms = [xp.asarray(weight, wide) * xp.asarray(leaf, wide) for weight, leaf in zip(weights, leaves)]
        return sum(terms[1:], terms[0]).astype(leaves[0].dtype)

    return jax.tree.map(total, *snapshots)


def _inner_product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> np.ndarray:
    """The integral of p_a p_b over time (eq. 151), with p_i(t) = (gamma_i + 1) t^gamma_i / t_i^(gamma_i + 1) up to t_i.

    With ends e <= l and gamma_l the exponent of the later one, it is proportional to (e / l)^gamma_l / l.
    """
    power = np.where(t_a < t_b, (t_a / t_b) ** gamma_b, (t_b / t_a) ** gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * power / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
