"""The training state and the training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from diffusers_fn import _random
from diffusers_fn._manual_axes import AxisName, as_tuple, is_checked, vary, varying
from diffusers_fn.training import devices
from diffusers_fn.training.averages import Averages, Averaging, WeightSchedule, exponential, move, start
from diffusers_fn.training.norms import shard_axes, squared_norm, total

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
      averages: further averages of the parameters, or None.
      num_updates: [] int32, the number of parameter updates so far: smaller than `step` if several batches make one
        update, or steps were skipped.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    extras: Any = None
    averages: Averages | None = None
    num_updates: jax.Array | None = None


def make_train_state(
    params: Any,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    extras: Any = None,
    averaging: Averaging | None = None,
) -> TrainState:
    """Returns the state before the first step; the EMA and the other averages start at the parameters.

    Args:
      params: the network's parameters.
      optimizer: from optax.
      extras: as in `TrainState`.
      averaging: of the further averages; None for none.

    >>> state = make_train_state({"w": jnp.ones(2)}, optax.adam(1e-3))
    >>> state.ema["w"]
    Array([1., 1.], dtype=float32)
    """
    zero = jnp.zeros((), jnp.int32)
    further = None if averaging is None else averaging.init(params)
    return TrainState(zero, params, start(params), optimizer.init(params), extras, further, jnp.zeros((), jnp.int32))


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    ema_decay: float | WeightSchedule = 0.999,
    axis_name: AxisName | None = None,
    param_specs: Any = None,
    reduce: Callable[[Any], Any] | None = None,
    update_extras: Callable[[Any, Metrics], Any] | None = None,
    averaging: Averaging | None = None,
    skip_nonfinite: bool | Literal["gradients"] = False,
) -> Callable[[TrainState, jax.Array, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, key, batch) -> (state, metrics), to be compiled by the caller; metrics are scalars.

    `key` is the key of the run, the same for every step: the step folds the state's counter into it, so that a
    resumed run draws the same noise as an uninterrupted one. It is one key, or [B] keys, one per example.

    Under jit, sharded or not, the step is for the whole batch. Inside pmap or shard_map it is for the examples of one
    device: pass axis_name, and each device the keys of its own examples (with one replicated key all devices draw the
    same noise). Parameters, metrics and extras are then those of the whole batch, on every device.

    The metrics are means over the batch of `loss` and of its own metrics, and the global norms `grad_norm`,
    `update_norm` (of the change of the parameters) and `param_norm` (after it).

    Args:
      loss: (params, key, batch) -> (loss [B], metrics [B]), as `Diffusion.loss`; called as (params, key, batch,
        extras) if the state has extras.
      optimizer: from optax. With optax.MultiSteps the averages are updated only when the parameters are. Each call
        passes the norm of the step as the extra argument `global_norm`, which `clip_by_global_norm` uses.
      ema_decay: of the EMA, in [0, 1); or a schedule from `averages`, such as `averages.ratio_warmed_up(0.999)`.
      axis_name: the axis or axes of the surrounding pmap or shard_map that split the batch or the parameters; None
        outside of them, or if each device trains a model of its own.
      param_specs: needed only for parameters that are shards under pmap or shard_map with check_vma=False: their
        PartitionSpecs, as in the in_specs of shard_map. With check_vma=True the shards are known.
      reduce: a function for the mean over devices of (gradients, metrics), instead of that over axis_name; for
        replicated parameters, for instance `lambda tree: jax.lax.pmean(tree, "batch")`.
      update_extras: (extras, metrics [B]) -> extras, called after each step with the metrics of all examples, in the
        order of the devices along axis_name; None leaves them unchanged.
      averaging: of the further averages, as passed to `make_train_state`; None for none.
      skip_nonfinite: whether a step changes nothing but `state.step` if a number is NaN or infinite; the metric
        `skipped` is 1 then, else 0. With True the loss, the gradients and the new parameters, optimizer state and
        averages are looked at, for any optimizer whose state is finite by design. With "gradients" only the loss and
        the sum of the squared gradients are, before the update, which needs neither a second copy of the state nor a
        pass over it. That suffices for Adam and AdamW: they keep a finite state finite if the squared gradients are.

    Raises:
      ValueError: if ema_decay is outside [0, 1), skip_nonfinite is not False, True or "gradients", reduce and
        update_extras are given without axis_name, or param_specs is; when called, if axis_name is no mapped axis.

    >>> loss = lambda params, key, batch: (params["w"] * batch["x"], {})
    >>> optimizer = optax.sgd(0.1)
    >>> step = make_train_step(loss, optimizer, ema_decay=0.5)
    >>> state, metrics = step(make_train_state({"w": jnp.array(1.0)}, optimizer), jax.random.key(0), {"x": jnp.ones(4)})
    >>> round(float(state.params["w"]), 4), round(float(state.ema["w"]), 4), int(state.step)
    (0.9, 0.95, 1)
    """
    if skip_nonfinite not in (False, True, "gradients"):
        raise ValueError(f"skip_nonfinite must be False, True or 'gradients'; got {skip_nonfinite!r}")
    if axis_name is None and reduce is not None and update_extras is not None:
        raise ValueError(
            "update_extras needs the metrics of all examples: pass axis_name, the axis that `reduce` averages over"
        )
    if axis_name is None and param_specs is not None:
        raise ValueError("param_specs needs axis_name, the axes of pmap or shard_map that split the parameters")
    ema_weight = ema_decay if callable(ema_decay) else exponential(ema_decay)
    several = isinstance(optimizer, optax.MultiSteps)
    update = (optimizer if several else optax.with_extra_args_support(optimizer)).update
    names = as_tuple(axis_name)
    specs = PartitionSpec() if param_specs is None else param_specs
    # What still varies after a `reduce` of the caller's is a shard; without either, each device trains its own model.
    split_over = None if axis_name is None and reduce is not None else names

    def gradient(
        params: Any, key: jax.Array, batch: Mapping[str, jax.Array], extras: Any
    ) -> tuple[Any, tuple[jax.Array, Metrics]]:
        """Returns the gradient of this device's loss, and the loss and metrics per example.

        JAX sums the gradient of what does not vary over an axis. So the parameters vary over all axes of the batch, and
        so does the loss, which makes the gradient of a shard the sum over the devices in every case.
        """
        axes = (*names, *sorted(varying((key, batch)).difference(names)))

        def mean_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
            per_example, metrics = loss(params, key, batch, *(() if extras is None else (extras,)))
            chex.assert_rank(per_example, 1)
            return vary(jnp.mean(per_example), axes), (per_example, metrics)

        return jax.grad(mean_loss, has_aux=True)(vary(params, axes))

    def over_devices(params: Any, gradients: Any, metrics: Metrics) -> tuple[Any, Metrics]:
        if reduce is not None:
            return reduce((gradients, metrics))
        if not names:
            return gradients, metrics
        shards = shard_axes(params, names, specs)
        return devices.gradient_mean(gradients, names, shards), devices.mean(metrics, names)

    def of_all_examples(each: Metrics, key: jax.Array, batch: Mapping[str, jax.Array]) -> Metrics:
        split = varying((key, batch)) if names and is_checked(names) else set(names)
        return devices.gathered(each, tuple(name for name in names if name in split))

    def train_step(
        state: TrainState, key: jax.Array, batch: Mapping[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if (averaging is None) != (state.averages is None):
            raise ValueError("make_train_state and make_train_step must be given the same averaging, or both none")
        devices.check_mapped(names)
        step_key = _random.fold_in(key, state.step)
        gradients, (per_example, each) = gradient(state.params, step_key, batch, state.extras)
        metrics = {"loss": jnp.mean(per_example), **jax.tree.map(jnp.mean, each)}
        gradients, metrics = over_devices(state.params, gradients, metrics)
        if update_extras is not None:
            each = of_all_examples(each, key, batch)
        squared = squared_norm(gradients, split_over, specs)
        metrics["grad_norm"] = jnp.sqrt(squared)
        before = dataclasses.replace(state, num_updates=state.step) if state.num_updates is None else state
        if skip_nonfinite == "gradients":
            ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(squared)
            stay = lambda *_: (before, jnp.zeros((), jnp.float32))  # noqa: E731
            after, metrics["update_norm"] = jax.lax.cond(ok, advance, stay, before, gradients, each)
        else:
            after, metrics["update_norm"] = advance(before, gradients, each)
            if skip_nonfinite:
                new = (after.params, after.opt_state, after.ema, after.averages)
                ok = _all_finite((metrics["loss"], squared, new))
                ok = devices.agreed(ok, tuple(varying(ok)) if split_over is None else names)
                after = jax.tree.map(lambda a, b: jnp.where(ok, a, b), after, before)
        metrics["param_norm"] = norm(after.params)
        if skip_nonfinite:
            metrics["skipped"] = 1.0 - ok.astype(jnp.float32)
        return dataclasses.replace(after, step=state.step + 1), metrics

    def advance(state: TrainState, gradients: Any, each: Metrics) -> tuple[TrainState, jax.Array]:
        """Returns the state after an update, with the same `step`, and the norm of the update."""
        assert state.num_updates is not None
        with jax.numpy_dtype_promotion("standard"):  # optax fails under "strict"
            updates, opt_state = update(gradients, state.opt_state, state.params, global_norm=norm)
            params = optax.apply_updates(state.params, updates)
        moved = jnp.array(True)
        if isinstance(optimizer, optax.MultiSteps):
            moved = jnp.asarray(optimizer.has_updated(opt_state))
        num_updates = state.num_updates + moved.astype(state.num_updates.dtype)
        ema = move(state.ema, params, jnp.where(moved, ema_weight(num_updates), 0.0))
        further = None
        if averaging is not None and state.averages is not None:
            new = averaging.update(state.averages, params)
            further = jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, state.averages)
        extras = state.extras if update_extras is None else update_extras(state.extras, each)
        return TrainState(state.step, params, ema, opt_state, extras, further, num_updates), norm(updates)

    def norm(tree: Any) -> jax.Array:
        return jnp.sqrt(squared_norm(tree, split_over, specs))

    return train_step


def _all_finite(tree: Any) -> jax.Array:
    """Returns whether all entries of all floating-point arrays are finite; a sum that overflows counts as infinite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.isfinite(jnp.stack([total(leaf) for leaf in floats])))
