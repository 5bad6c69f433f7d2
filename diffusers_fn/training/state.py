"""The state of a training run and the step that advances it."""

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

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to go on.

    Attributes:
      step: [] int32, batches seen.
      params: the network's parameters.
      ema: their exponential moving average, what samples are drawn with; starts as the parameters.
      opt_state: the optimizer's state.
      extras: what the loss needs beside the parameters, a pytree, or None for nothing: losses by timestep, a frozen
        teacher or autoencoder.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    extras: Any = None


def make_train_state(
    params: Any, optimizer: optax.GradientTransformation | optax.MultiSteps, extras: Any = None
) -> TrainState:
    """Returns the state before the first step; the EMA starts from the parameters, not from zero.

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
    """Returns step(state, key, batch) -> (state, metrics), to be compiled by the caller.

    `key` is the run's key, the same at every step: the step folds the state's own counter into it, so that a
    resumed run draws what an uninterrupted one does. It is one key, or [B] keys, one an example. Inside a pmap or
    shard_map give each device the keys of its own examples: one replicated key would draw the same noise everywhere.

    Args:
      loss: (params, key, batch) -> (loss [B], metrics of arrays [B]), as `Diffusion.loss`; (params, key, batch,
        extras) where the state has extras.
      optimizer: from optax. With optax.MultiSteps the EMA moves only when the parameters do.
      ema_decay: in [0, 1).
      reduce: mean over the devices, applied to gradients and metrics: the identity under jit (sharded or not),
        `lambda tree: jax.lax.pmean(tree, "batch")` inside a pmap or shard_map over "batch".
      update_extras: (extras, metrics of arrays [B]) -> extras, after each step; None keeps them.

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
