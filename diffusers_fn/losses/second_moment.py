"""Importance sampling of timesteps in proportion to their recent losses.

Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672,
section 3.3.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from diffusers_fn import _random
from diffusers_fn._arrays import entries, whole, with_auto_axes

__all__ = ["LossSecondMoment", "draw_times", "loss_second_moment", "time_probabilities", "update_loss_second_moment"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
    """The recent losses of every timestep.

    Attributes:
      history: [T, H] the last H losses of each timestep, the oldest first.
      count: [T] the number of losses recorded for each timestep, at most H.
    """

    history: jax.Array
    count: jax.Array


def loss_second_moment(num_timesteps: int, history: int = 10) -> LossSecondMoment:
    """Returns the empty record for importance sampling of t, for `draw_times` and `update_loss_second_moment`.

    p_t is proportional to sqrt(E[L_t^2]), and L_t is divided by p_t (Nichol & Dhariwal 2021,
    https://arxiv.org/abs/2102.09672, section 3.3). Until every timestep has `history` losses, t is uniform.

    Raises:
      ValueError: unless num_timesteps and history are at least 1.

    >>> record = update_loss_second_moment(loss_second_moment(2, history=1), jnp.arange(2), jnp.array([1.0, 3.0]))
    >>> time_probabilities(record, uniform_prob=0.0)
    Array([0.25, 0.75], dtype=float32)
    """
    if num_timesteps < 1 or history < 1:
        raise ValueError(f"num_timesteps and history must be at least 1; got {num_timesteps} and {history}")
    return LossSecondMoment(jnp.zeros((num_timesteps, history)), jnp.zeros((num_timesteps,), jnp.int32))


def time_probabilities(record: LossSecondMoment, uniform_prob: float = 1e-3) -> jax.Array:
    """Returns the probabilities p [T] of the timesteps; a share `uniform_prob` of them is uniform.

    Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672, section 3.3.

    >>> time_probabilities(loss_second_moment(4))
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    num_timesteps, size = record.history.shape
    root = jnp.sqrt(jnp.mean(record.history**2, axis=1))
    total = jnp.sum(root)
    p = (1 - uniform_prob) * root / jnp.where(total > 0, total, 1.0) + uniform_prob / num_timesteps
    warm = jnp.all(record.count == size) & (total > 0)
    return jnp.where(warm, p, 1.0 / num_timesteps)


def draw_times(
    key: jax.Array, record: LossSecondMoment, batch_size: int, uniform_prob: float = 1e-3
) -> tuple[jax.Array, jax.Array]:
    """Returns (t [B] integers, weight [B]): t drawn with `time_probabilities`, and the loss weight 1 / (T p_t).

    Args:
      key: one key, or [B] keys.
      record: the recent losses.
      batch_size: B.
      uniform_prob: as for `time_probabilities`.

    >>> t, weight = draw_times(jax.random.key(0), loss_second_moment(4), batch_size=3)
    >>> t.shape, weight
    ((3,), Array([1., 1., 1.], dtype=float32))
    """
    p = time_probabilities(record, uniform_prob)

    def draw(key: jax.Array, p: jax.Array) -> jax.Array:
        return _random.draw(lambda k, shape, _: jax.random.choice(k, p.shape[0], shape, p=p), key, (batch_size,), None)

    t = with_auto_axes(draw, key, p) if _random.is_batched(key) else draw(key, p)
    return t, 1.0 / (p.shape[0] * entries(p, t))


def update_loss_second_moment(record: LossSecondMoment, t: jax.Array, losses: jax.Array) -> LossSecondMoment:
    """Returns the record with the unweighted losses [B] at timesteps t [B] added in order.

    >>> record = update_loss_second_moment(loss_second_moment(2, history=2), jnp.array([0, 0]), jnp.array([3.0, 4.0]))
    >>> record.history[0], record.count
    (Array([3., 4.], dtype=float32), Array([2, 0], dtype=int32))
    """
    size = record.history.shape[1]

    def enter(record: LossSecondMoment, item: tuple[jax.Array, jax.Array]) -> tuple[LossSecondMoment, None]:
        t, loss = item
        row, count = record.history[t], record.count[t]
        full = jnp.concatenate([row[1:], loss[None].astype(row.dtype)])
        row = jnp.where(count == size, full, row.at[jnp.minimum(count, size - 1)].set(loss))
        count = jnp.minimum(count + 1, size)
        return LossSecondMoment(record.history.at[t].set(row), record.count.at[t].set(count)), None

    return jax.lax.scan(enter, record, (whole(t), whole(losses)))[0]
