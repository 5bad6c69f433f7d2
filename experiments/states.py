"""The training state of a run: its optimizer, its training step, new states and those of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import diffusers_fn as dfn
from experiments import runs
from experiments.checkpoints import Checkpoints

__all__ = ["choose_params", "load_state", "make_optimizer", "make_train_steps", "new_state", "state_like"]


def make_optimizer(config: ConfigDict) -> Any:
    """Returns the optimizer that config.training describes."""
    training = config.training
    return dfn.training.make_optimizer(
        training.optimizer,
        learning_rate=training.learning_rate,
        lr_schedule=training.lr_schedule,
        warmup_steps=training.warmup_steps,
        num_steps=training.num_steps,
        weight_decay=training.weight_decay,
        grad_clip=training.grad_clip,
        accumulation=training.accumulation,
    )


def make_train_steps(
    config: ConfigDict, loss: Callable[..., Any], update_extras: Callable[..., Any] | None, mesh: jax.sharding.Mesh
) -> Any:
    """Returns train_steps(state, key, batches) -> (state, metrics), jitted: training.steps_per_call steps in one call.

    The state is donated and replicated over the mesh; batches and metrics have the steps as their first axis.

    Args:
      config: of the run.
      loss, update_extras: of its task.
      mesh: of the devices.
    """
    step = dfn.training.make_train_step(
        loss,
        make_optimizer(config),
        ema_decay=config.training.ema_decay,
        update_extras=update_extras,
    )

    def train_steps(state: Any, key: jax.Array, batches: Any) -> Any:
        return jax.lax.scan(lambda state, batch: step(state, key, batch), state, batches)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(train_steps, donate_argnums=0, out_shardings=everywhere)


def new_state(config: ConfigDict, init: Callable[[jax.Array], Any], key: jax.Array, extras: Any) -> Any:
    """Returns the state before the first step.

    Args:
      config: of the run.
      init: (key) -> params.
      key: for the parameters.
      extras: of the state.
    """
    optimizer = make_optimizer(config)
    return jax.jit(lambda key, extras: dfn.training.make_train_state(init(key), optimizer, extras))(key, extras)


def state_like(config: ConfigDict, init: Callable[[jax.Array], Any], extras_like: Any = None) -> Any:
    """Returns the shapes of a run's training state, for restoring a checkpoint.

    Args:
      config: of the run.
      init: (key) -> params.
      extras_like: shapes of the state's extras.
    """
    optimizer = make_optimizer(config)
    return jax.eval_shape(
        lambda key, extras: dfn.training.make_train_state(init(key), optimizer, extras), jax.random.key(0), extras_like
    )


def load_state(config: ConfigDict, workdir: Path, like: Any) -> tuple[int, Any]:
    """Returns (step, state) of the newest readable checkpoint of a work directory.

    Args:
      config: as trained, except for fields that do not affect the trained parameters.
      workdir: of the run.
      like: the state's shapes, of `state_like`.

    Raises:
      ValueError: if the directory holds no run, or a run of another config, or no checkpoint.
    """
    runs.open_workdir(workdir, config, create=False)
    checkpoints = Checkpoints(workdir, read_only=True)
    restored = checkpoints.restore(like)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{workdir} holds no checkpoint yet: continue the training")
    return restored.step, restored.state


def choose_params(config: ConfigDict, workdir: Path, state: Any, which: str) -> Any:
    """Returns the averaged parameters of a training state for "ema", or those of its last step for "raw".

    Raises:
      ValueError: if `which` is something else.
    """
    if which not in ("ema", "raw"):
        raise ValueError(f"--params must be ema or raw; got {which!r}")
    return state.ema if which == "ema" else state.params
