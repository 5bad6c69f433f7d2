"""The training state of a run: its optimizer, its training step, new states, those of checkpoints, and averages."""

from __future__ import annotations

import contextlib
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
from experiments import processes, runs
from experiments.checkpoints import Checkpoints
from experiments.files import write_atomically

__all__ = [
    "choose_params",
    "learning_rate",
    "load_state",
    "make_averaging",
    "make_ema_schedule",
    "make_mesh",
    "make_optimizer",
    "make_train_steps",
    "new_state",
    "save_snapshot",
    "state_like",
    "state_shardings",
]

_WARMUPS: dict[str, Callable[[float], averages.WeightSchedule]] = {
    "none": averages.exponential,
    "ratio": averages.ratio_warmed_up,
    "power": averages.warmed_up,
}

_LARGEST_ERROR = 0.1  # of the weights of a reconstructed average, relative
_LENGTHS = np.round(np.arange(0.01, 0.2851, 0.005), 3)  # that a message tries


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


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """Returns the mesh of all devices of all processes that config.mesh describes.

    Raises:
      ValueError: if it does not fit the devices, or config.training.batch_size is not divisible by data * fsdp.
    """
    settings = config.mesh
    try:
        mesh = dfn.training.make_mesh(settings.data, settings.fsdp, settings.tensor)
    except ValueError as error:
        raise ValueError(f"config.mesh: {error}") from error
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.training.batch_size % parts:
        raise ValueError(
            f"config.training.batch_size must be a multiple of mesh.data * mesh.fsdp = {parts}, the devices that share "
            f"a batch; got {config.training.batch_size}"
        )
    return mesh


def state_shardings(config: ConfigDict, mesh: jax.sharding.Mesh, like: Any) -> Any:
    """Returns the shardings of a training state, or of parameters alone.

    They follow `training.RULES` of the backbone; a network of the config's own is split by the shapes of its arrays.

    Args:
      config: of the run.
      mesh: of `make_mesh`.
      like: the state or its shapes, of `state_like`.
    """
    return dfn.training.shardings(like, mesh, dfn.training.RULES.get(config.backbone.name, ()))


def make_train_steps(
    config: ConfigDict,
    loss: Callable[..., Any],
    update_extras: Callable[..., Any] | None,
    mesh: jax.sharding.Mesh,
    like: Any,
) -> Any:
    """Returns train_steps(state, key, batches) -> (state, metrics), jitted: training.steps_per_call steps in one call.

    The state is donated and keeps its shardings; batches and metrics have the steps as their first axis.

    Args:
      config: of the run.
      loss, update_extras: of its task.
      mesh: of the devices.
      like: shapes and shardings of the state, of `state_like`.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, like)

    def split_loss(params: Any, *args: Any) -> Any:
        params = jax.lax.with_sharding_constraint(params, where.params)  # and so are their gradients
        with dfn.backbones.batches_split(mesh):
            return loss(params, *args)

    step = dfn.training.make_train_step(
        split_loss,
        make_optimizer(config),
        ema_decay=make_ema_schedule(config),
        update_extras=update_extras,
        averaging=make_averaging(config),
        skip_nonfinite="gradients",
    )

    def train_steps(state: Any, key: jax.Array, batches: Any) -> Any:
        return jax.lax.scan(lambda state, batch: step(state, key, batch), state, batches)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(train_steps, donate_argnums=0, out_shardings=(where, everywhere))


def new_state(
    config: ConfigDict,
    init: Callable[[jax.Array], Any],
    key: jax.Array,
    extras: Any,
    mesh: jax.sharding.Mesh | None = None,
) -> Any:
    """Returns the state before the first step.

    Args:
      config: of the run.
      init: (key) -> params.
      key: for the parameters.
      extras: of the state.
      mesh: on which each device computes its own part of the state; None for the default device.
    """
    make = _make_state(config, init)
    if mesh is None:
        return jax.jit(make)(key, extras)
    where = state_shardings(config, mesh, jax.eval_shape(make, key, extras))
    placed = dfn.training.replicate(key, mesh), dfn.training.place(extras, where.extras)
    return jax.jit(make, out_shardings=where)(*placed)


def state_like(
    config: ConfigDict,
    init: Callable[[jax.Array], Any],
    extras_like: Any = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Any:
    """Returns the shapes of a run's training state, for restoring a checkpoint.

    Args:
      config: of the run.
      init: (key) -> params.
      extras_like: shapes of the state's extras.
      mesh: on which the state lies, for shapes with shardings; None for shapes alone.
    """
    like = jax.eval_shape(_make_state(config, init), jax.random.key(0), extras_like)
    if mesh is None:
        return like
    where = state_shardings(config, mesh, like)
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), like, where)


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
    return _reconstructed(workdir, state, stds, std)


def save_snapshot(workdir: Path, step: int, state: Any) -> None:
    """Writes the further averages of a state into WORKDIR/averages/STEP.npz."""
    leaves = _numbered(processes.gather(state.averages))
    if not processes.is_main():
        return
    write_atomically(workdir / "averages" / f"{step:08d}.npz", lambda file: np.savez(file, **leaves))


def _reconstructed(workdir: Path, state: Any, stds: tuple[float, ...], std: float) -> Any:
    """The average of the relative length std, combined from those stored by the run."""
    now, has = int(state.averages.count), ", ".join(f"ema:{each:g}" for each in stds)
    with contextlib.ExitStack() as files:
        stored = {**_snapshots(workdir, state, files), now: _numbered(state.averages)}  # count -> arrays by number
        if now < 1 or len(stored) == 1:
            raise ValueError(
                f"--params=ema:{std:g}: the run has the averages {has}; others are reconstructed from averages stored "
                "during training: train with config.training.ema_snapshot_every"
            )
        given = np.repeat(list(stored), len(stds)), np.tile(stds, len(stored)), now
        error = averages.post_hoc_error(*given, std)
        if error > _LARGEST_ERROR:
            reach = [each for each in (*stds, *_LENGTHS) if averages.post_hoc_error(*given, each) <= _LARGEST_ERROR]
            raise ValueError(
                f"--params=ema:{std:g} cannot be reconstructed, its weights would be {error:.0%} off: the run has the "
                f"averages {has}, and those of {len(stored) - 1} earlier steps. The nearest within reach is "
                f"ema:{min(reach, key=lambda each: abs(each - std)):g}"
            )
        weights = averages.post_hoc_weights(*given, std)
        like, structure = jax.tree.flatten(state.params)
        leaves = [  # array by array, since each snapshot is as large as the model
            averages.combine(
                [arrays[str(1 + len(like) * tree + i)] for arrays in stored.values() for tree in range(len(stds))],
                weights,
            )
            for i in range(len(like))
        ]
    return jax.tree.unflatten(structure, leaves)


def _numbered(held: Any) -> dict[str, Any]:
    """Averages as arrays by number: 0 is the count, then come the leaves of each tree."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(held))}


def _snapshots(workdir: Path, state: Any, files: contextlib.ExitStack) -> dict[int, Any]:
    """The averages stored before the state, by count: open files, whose arrays are read when they are used."""
    found: dict[int, Any] = {}
    wanted = [str(i) for i in range(len(jax.tree.leaves(state.averages)))]
    for path in sorted((workdir / "averages").glob("[0-9]*.npz")):
        if int(path.stem) >= int(state.step):
            continue
        try:
            arrays = files.enter_context(np.load(path, allow_pickle=False))
            count = int(arrays["0"])
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}): remove the file") from error
        if set(arrays.files) != set(wanted):
            raise ValueError(f"{path} holds {len(arrays.files)} arrays and not {len(wanted)}: remove the file")
        if 0 < count < int(state.averages.count):
            found[count] = arrays  # counts are equal after skipped steps
    return found


def _make_state(config: ConfigDict, init: Callable[[jax.Array], Any]) -> Callable[[jax.Array, Any], Any]:
    optimizer: optax.GradientTransformation = make_optimizer(config)
    averaging = make_averaging(config)
    return lambda key, extras: dfn.training.make_train_state(init(key), optimizer, extras, averaging)


def _rate_settings(config: ConfigDict) -> dict[str, Any]:
    names = ("learning_rate", "lr_schedule", "warmup_steps", "num_steps", "accumulation")
    return {name: config.training[name] for name in names}
