"""The training state of a run: its optimizer, its training step, new states, those of checkpoints, and averages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

import diffusers_fn as dfn
from diffusers_fn.from_config.choices import choose
from diffusers_fn.training import averages
from experiments import runs
from experiments.checkpoints import Checkpoints
from experiments.files import write_atomically

__all__ = [
    "choose_params",
    "learning_rate",
    "load_state",
    "make_averaging",
    "make_ema_schedule",
    "make_optimizer",
    "make_train_steps",
    "new_state",
    "save_snapshot",
    "state_like",
]

_WARMUPS: dict[str, Callable[[float], averages.WeightSchedule]] = {
    "none": averages.exponential,
    "ratio": averages.ratio_warmed_up,
    "power": averages.warmed_up,
}


def make_optimizer(config: ConfigDict) -> Any:
    """Returns the optimizer that config.training describes.

    Raises:
      ValueError: if a setting is out of range.
    """
    training = config.training
    return dfn.training.make_optimizer(
        training.optimizer, weight_decay=training.weight_decay, grad_clip=training.grad_clip, **_rate_settings(config)
    )


def learning_rate(config: ConfigDict, step: int) -> float:
    """Returns the learning rate of a step, counted in batches; skipped steps are not known here."""
    schedule = dfn.training.make_learning_rate(**_rate_settings(config))
    return float(schedule(step // config.training.accumulation))


def make_ema_schedule(config: ConfigDict) -> averages.WeightSchedule:
    """Returns the schedule of the averaged parameters: config.training.ema_decay and ema_warmup.

    Raises:
      ValueError: if the warm-up is unknown or the decay out of range.
    """
    return choose("training.ema_warmup", config.training.ema_warmup, _WARMUPS)(config.training.ema_decay)


def make_averaging(config: ConfigDict) -> averages.Averaging | None:
    """Returns the further averages, of the relative lengths config.training.ema_stds; None for none.

    Raises:
      ValueError: if a length is out of range or given twice, or there are snapshots without averages.
    """
    stds = tuple(config.training.ema_stds)
    if len(set(stds)) < len(stds):
        raise ValueError(f"config.training.ema_stds must differ; got {stds}")
    if config.training.ema_snapshot_every and not stds:
        raise ValueError(
            "config.training.ema_snapshot_every stores the averages of training.ema_stds, and there are none: set "
            "ema_stds=(0.05,0.1), or ema_snapshot_every=0"
        )
    return averages.averaging(*map(averages.power_function, stds)) if stds else None


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
        ema_decay=make_ema_schedule(config),
        update_extras=update_extras,
        averaging=make_averaging(config),
        skip_nonfinite=True,
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
    return jax.jit(_make_state(config, init))(key, extras)


def state_like(config: ConfigDict, init: Callable[[jax.Array], Any], extras_like: Any = None) -> Any:
    """Returns the shapes of a run's training state, for restoring a checkpoint.

    Args:
      config: of the run.
      init: (key) -> params.
      extras_like: shapes of the state's extras.
    """
    return jax.eval_shape(_make_state(config, init), jax.random.key(0), extras_like)


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
    """Returns the parameters of a state that --params names.

    Args:
      config: of the run.
      workdir: of the run, for its stored averages.
      state: of the newest checkpoint.
      which: "ema", the averaged parameters; "raw", the last ones; "ema:STD", the power-function average of relative
        length STD: that of the state if config.training.ema_stds has it, else a combination of the stored averages
        (Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 3.2).

    Raises:
      ValueError: if there is no such average and none can be reconstructed.
    """
    if which in ("ema", "raw"):
        return state.ema if which == "ema" else state.params
    stds = tuple(config.training.ema_stds)
    name, _, text = which.partition(":")
    try:
        std = float(text)
    except ValueError:
        name = ""
    if name != "ema":
        raise ValueError(f"--params must be ema, raw or ema:STD with a number such as ema:0.05; got {which!r}")
    if std in stds:
        return state.averages.trees[stds.index(std)]
    if not stds:
        raise ValueError(
            f"--params={which}: this run has one average alone, 'ema': train with config.training.ema_stds=(0.05,0.1) "
            "and ema_snapshot_every for averages of other lengths"
        )
    count = int(state.averages.count)
    found = [(count, each, tree) for each, tree in zip(stds, state.averages.trees, strict=True)]
    found += [
        (int(snapshot.count), each, tree)
        for snapshot in _snapshots(workdir, state)
        for each, tree in zip(stds, snapshot.trees, strict=True)
    ]
    if count < 1 or len(found) == len(stds):
        raise ValueError(
            f"--params={which}: the run has the averages {', '.join(f'ema:{each:g}' for each in stds)}; others are "
            "reconstructed from averages stored during training: train with config.training.ema_snapshot_every"
        )
    counts, lengths, trees = zip(*found)
    weights = averages.post_hoc_weights(counts, lengths, count, std)
    return averages.combine([jax.tree.map(np.asarray, tree) for tree in trees], weights)


def save_snapshot(workdir: Path, step: int, state: Any) -> None:
    """Writes the further averages of a state into WORKDIR/averages/STEP.npz."""
    leaves: dict[str, Any] = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.averages))}
    write_atomically(workdir / "averages" / f"{step:08d}.npz", lambda file: np.savez(file, **leaves))


def _snapshots(workdir: Path, state: Any) -> list[Any]:
    """The averages stored before the step of the state, oldest first."""
    like: Any = jax.tree.structure(state.averages)
    found = []
    for path in sorted((workdir / "averages").glob("*.npz")):
        if int(path.stem) >= int(state.step):
            continue
        try:
            with np.load(path, allow_pickle=False) as arrays:
                snapshot = jax.tree.unflatten(like, [arrays[str(i)] for i in range(like.num_leaves)])
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}): remove the file") from error
        found.append(snapshot)
    counts = {int(snapshot.count): snapshot for snapshot in found}  # equal after skipped steps
    return [snapshot for count, snapshot in counts.items() if 0 < count < int(state.averages.count)]


def _make_state(config: ConfigDict, init: Callable[[jax.Array], Any]) -> Callable[[jax.Array, Any], Any]:
    optimizer: optax.GradientTransformation = make_optimizer(config)
    averaging = make_averaging(config)
    return lambda key, extras: dfn.training.make_train_state(init(key), optimizer, extras, averaging)


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    names = ("learning_rate", "lr_schedule", "warmup_steps", "num_steps", "accumulation")
    return {name: config.training[name] for name in names}
