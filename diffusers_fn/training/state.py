"""The training state and the training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from diffusers_fn import _random
from diffusers_fn.training import averages

__all__ = ["Loss", "Metrics", "TrainState", "make_train_state", "make_train_step"]

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything needed to resume a training run.

    Attributes:
      step: [] int32, the number of batches so far.
      params: the network's parameters.
      ema: their exponential moving average, the parameters used for sampling; initially equal to params.
      opt_state: the optimizer's state.
      extras: further inputs of the loss, a pytree (losses per timestep, a frozen teacher or autoencoder), or None.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    extras: Any = None


def make_train_state(
    params: Any, optimizer: optax.GradientTransformation | optax.MultiSteps, extras: Any = None
) -> TrainState:
    """Returns the state before the first step; the EMA starts at the parameters.

    Args:
      params: the network's parameters.
      optimizer: from optax.
      extras: as in `TrainState`.

    >>> state = make_train_state({"w": jnp.ones(2)}, optax.adam(1e-3))
    >>> state.ema["w"]
    Array([1., 1.], dtype=float32)
    """
    return TrainState(jnp.zeros((), jnp.int32), params, averages.start(params), optimizer.init(params), extras)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    ema_decay: float = 0.999,
    reduce: Callable[[Any], Any] = lambda tree: tree,
    update_extras: Callable[[Any, Metrics], Any] | None = None,
) -> Callable[[TrainState, jax.Array, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, key, batch) -> (state, metrics), to be compiled by the caller; metrics are scalars.

    `key` is the key of the run, the same for every step: the step folds the state's counter into it, so that a
    resumed run draws the same noise as an uninterrupted one. It is one key, or [B] keys, one per example. Inside pmap
    or shard_map pass each device the keys of its own examples; with one replicated key all devices draw the same noise.

    Args:
      loss: (params, key, batch) -> (loss [B], metrics [B]), as `Diffusion.loss`; called as (params, key, batch,
        extras) if the state has extras.
      optimizer: from optax. With optax.MultiSteps the EMA is updated only when the parameters are.
      ema_decay: in [0, 1).
      reduce: the mean over devices, applied to gradients and metrics: the identity under jit (sharded or not),
        `lambda tree: jax.lax.pmean(tree, "batch")` inside pmap or shard_map over "batch".
      update_extras: (extras, metrics [B]) -> extras, called after each step; None leaves them unchanged.

    Raises:
      ValueError: if ema_decay is outside [0, 1).

    >>> loss = lambda params, key, batch: (params["w"] * batch["x"], {})
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_train_step(loss, optimizer, ema_decay=0.5)
    >>> state, metrics = step(make_train_state({"w": jnp.array(1.0)}, optimizer), jax.random.key(0), {"x": jnp.ones(4)})
    >>> round(float(state.params["w"]), 4), round(float(state.ema["w"]), 4), int(state.step)
    (0.9, 0.95, 1)
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1); got {ema_decay}")

    def mean_loss(
        params: Any, key: jax.Array, batch: Mapping[str, jax.Array], extras: Any
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        per_example, metrics = loss(params, key, batch, *(() if extras is None else (extras,)))
        chex.assert_rank(per_example, 1)
        return jnp.mean(per_example), (per_example, metrics)

    def train_step(
        state: TrainState, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        step_key = _random.fold_in(key, state.step)
        gradients, (per_example, each) = jax.grad(mean_loss, has_aux=True)(state.params, step_key, batch, state.extras)
        metrics = {"loss": jnp.mean(per_example), **jax.tree.map(jnp.mean, each)}
        gradients, metrics = reduce((gradients, metrics))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = jnp.asarray(ema_decay, jnp.float32)
        if isinstance(optimizer, optax.MultiSteps):
            keep = jnp.where(optimizer.has_updated(opt_state), keep, 1.0)
        ema = jax.tree.map(lambda a, p: (keep * a + (1 - keep) * p).astype(a.dtype), state.ema, params)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        extras = state.extras if update_extras is None else update_extras(state.extras, each)
        return TrainState(state.step + 1, params, ema, opt_state, extras), metrics

    return train_step
