"""A trained model: loading it with all networks that its samples need, and drawing samples in batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from diffusers_fn.from_config import derived
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.conditions import make_conditions
from diffusers_fn.from_config.guiding import is_guided
from experiments import compilation, latent, over_devices, own, processes, runs, states
from experiments.parts import Parts
from experiments.tasks import TASKS
from experiments.workdir import read_config


def define_params_flag() -> None:
    """Defines --params, of the binaries that load a model."""
    flags.DEFINE_string(
        "params",
        "ema",
        "Which parameters: ema (averaged), raw (of the last step), or ema:STD, such as ema:0.05, an average of that "
        "relative length (of config.training.ema_stds or ema_snapshot_every).",
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["params"])  # --help lists it


def define_allow_changes_flag() -> None:
    """Defines --allow_changes, of the binaries that compare with held-out data."""
    flags.DEFINE_bool(
        "allow_changes",
        False,
        "Accept other data than those of the training; their held-out part may have been trained on.",
    )
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["allow_changes"])


class Networks(NamedTuple):
    """What a sample is computed from: arguments of the compiled program, not constants in it.

    Attributes:
      own: the parameters of the diffusion model.
      first_stage: the value of `latent.make_extras`, for a model in latents; else None.
      classifier: the parameters of the guiding classifier; else None.
      guidance_scale: config.sampler.cfg_scale of a model that is guided without a classifier; else None.
      classifier_scale: config.sampler.classifier_scale; None without a classifier.
    """

    own: Any
    first_stage: Any = None
    classifier: Any = None
    guidance_scale: Any = None
    classifier_scale: Any = None


def load_trained(config: ConfigDict, workdir: Path, params: str = "ema") -> tuple[dfn.Diffusion, Networks, int]:
    """Returns (diffusion, networks, step): the model of a work directory and its parameters. Reads no data.

    The functions of `diffusion` take `networks` as their parameters. Samples in latents are decoded, and are guided by
    the classifier of config.sampler.classifier_workdir if that is set.

    Args:
      config: as trained; the sampler's settings may differ.
      workdir: of the run.
      params: which parameters of the diffusion model, see `states.choose_params`; a first stage and a classifier have
        their averaged ones.

    Raises:
      ValueError: if the directory holds no run, or one of another config, or has no such parameters, or model and
        classifier do not fit.
    """
    runs.open_workdir(workdir, config, create=False)
    if not choose("task", config.task, TASKS).has_samples:
        sampled = ", ".join(repr(name) for name, entry in TASKS.items() if entry.has_samples)
        raise ValueError(f"config.task is {config.task!r}: only runs of the task {sampled} have samples")
    autoencoder = classifier = guide = None
    tables = own.tables(config)
    if config.latent.enabled:
        autoencoder = dfn.build_autoencoder(latent.first_stage(config, workdir))
        model, like = dfn.build(latent.in_latents(config, autoencoder), tables), latent.extras_like(autoencoder)
    else:
        model, like = dfn.build(config, tables), dfn.build_objective(config, tables).extras
    step, state = states.load_state(config, workdir, states.state_like(config, model.init, like))
    chosen = over_devices.place_params(config, states.choose_params(config, workdir, state, params))
    mesh = over_devices.mesh_of(chosen)
    if config.sampler.classifier_workdir:
        classifier, guide = load_classifier(config, mesh)
    guided = derived.is_conditional(config) and is_guided(config.sampler, tables.guidances)
    networks = Networks(
        chosen,
        dfn.training.replicate(state.extras, mesh) if config.latent.enabled else None,
        guide,
        np.float32(config.sampler.cfg_scale) if guided else None,
        None if classifier is None else np.float32(config.sampler.classifier_scale),
    )
    return of_networks(config, model, networks, autoencoder, classifier), networks, step


def of_networks(
    config: ConfigDict,
    model: dfn.Diffusion,
    networks: Networks,
    autoencoder: dfn.Autoencoder | None = None,
    classifier: dfn.NoisyClassifier | None = None,
) -> dfn.Diffusion:
    """Returns the model as functions of `Networks`: of its own parameters and those of the other networks.

    Args:
      config: of the model.
      model: as functions of its own parameters; in latents if there is an autoencoder.
      networks: `init` keeps all of it but the model's own parameters.
      autoencoder: decodes the samples; None for none.
      classifier: guides them with scale config.sampler.classifier_scale; None for none.
    """

    def whole(networks: Networks) -> dfn.Diffusion:
        return model if autoencoder is None else latent.decoded(config, model, autoencoder, networks.first_stage)

    def sample(params: Networks, *args: Any, **options: Any) -> Any:
        if autoencoder is not None and options.get("shape") is not None:
            options["shape"] = latent.shape_of(options["shape"], tuple(config.data.shape), autoencoder.latent_shape)
        if params.guidance_scale is not None and options.get("cond") is not None:
            options.setdefault("guidance_scale", params.guidance_scale)
        if classifier is not None:
            log_prob = classifier.log_prob(params.classifier)
            scale = config.sampler.classifier_scale if params.classifier_scale is None else params.classifier_scale
            options["transform"] = dfn.guidance.classifier(log_prob, scale)
        return whole(params).sample(params.own, *args, **options)

    def of_own(name: str) -> Callable[..., Any]:
        return lambda params, *args, **options: getattr(whole(params), name)(params.own, *args, **options)

    def init(key: jax.Array) -> Networks:
        return networks._replace(own=model.init(key))

    functions: dict[str, Any] = {name: of_own(name) for name in model._fields}
    functions |= {"init": init, "sample": sample}
    return dfn.Diffusion(**functions)


def classifier_config(config: ConfigDict) -> ConfigDict:
    """Returns the config of the classifier of config.sampler.classifier_workdir.

    Raises:
      ValueError: if there is no classifier.
    """
    folder = Path(config.sampler.classifier_workdir)
    where = f"config.sampler.classifier_workdir = {str(folder)!r}"
    if not (folder / "config.json").exists():
        raise ValueError(f"{where} holds no run: train configs/classifier.py there, or set it to ''")
    held = read_config(folder)
    if held.get("task") != "classifier":
        raise ValueError(f"{where} holds a run of task {held.get('task')!r}, not a classifier")
    return held


def sampled_classes(config: ConfigDict) -> int:
    """Returns the number of classes of samples: the network's, or those of the classifier that guides it."""
    own_classes = derived.num_classes(config)
    if own_classes or not config.sampler.classifier_workdir:
        return own_classes
    return derived.num_classes(classifier_config(config))


def load_classifier(config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[dfn.NoisyClassifier, Any]:
    """Returns the classifier of config.sampler.classifier_workdir, and its averaged parameters on a mesh.

    Raises:
      ValueError: if there is no classifier, or its data, classes or noise levels are not those of the model.
    """
    folder, held = Path(config.sampler.classifier_workdir), classifier_config(config)
    where = f"config.sampler.classifier_workdir = {str(folder)!r}"
    if config.latent.enabled or tuple(held.data.shape) != tuple(config.data.shape):
        raise ValueError(f"{where} is for data of shape {tuple(held.data.shape)}, not that of the model's data")
    ranges = [derived.data_range(each) for each in (held, config)]
    if ranges[0] != ranges[1]:
        raise ValueError(
            f"{where} is for data with data.normalize = {ranges[0] is not None}, the model's have "
            f"{ranges[1] is not None}: train a classifier on these data"
        )
    classes, wanted = derived.num_classes(held), derived.num_data_classes(config)
    if wanted and classes != wanted:
        raise ValueError(
            f"{where} has {classes} classes, the data have {wanted} "
            "(config.data.num_classes): train a classifier on these data"
        )
    theirs, ours = held.noise_schedule.to_dict(), config.noise_schedule.to_dict()
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    if differing:
        raise ValueError(
            f"{where} was trained on other noise: noise_schedule.{differing[0]} is {theirs.get(differing[0])!r} there "
            f"and {ours[differing[0]]!r} here; train the classifier with the model's noise_schedule"
        )
    net = dfn.build_classifier(held)
    _, state = states.load_state(held, folder, states.state_like(held, net.init))
    return net, dfn.training.replicate(state.ema, mesh)


def draw_samples(
    diffusion: dfn.Diffusion,
    params: Any,
    key: jax.Array,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    *,
    shape: tuple[int, ...] | None = None,
    parts: Parts | None = None,
) -> np.ndarray | None:
    """Returns samples [num_samples, *shape], drawn in batches by one compiled program, with a progress bar.

    Each batch is split over all devices of all processes, and each process gets all samples. Each sample has its own
    key: the same seed gives the same samples for every batch size and every number of devices, unless the generator is
    rbg or unsafe_rbg.

    Args:
      diffusion: the model.
      params: its parameters.
      key: of the seed.
      labels: class labels [num_samples], or the tokens of texts [num_samples, ...]; None for unconditional samples.
      num_samples: number of samples.
      batch_size: number of samples drawn at once.
      shape: of one sample; None: that of the data.
      parts: keeps each batch on disk, and has those of an interrupted command already. None is returned then.
    """
    key = jax.random.fold_in(key, 1)  # 0 is for training, 2 for pairs
    options: dict[str, Any] = {} if shape is None else {"shape": shape}

    def draw(params: Any, keys: jax.Array, cond: Any) -> jax.Array:
        return diffusion.sample(params, keys, keys.shape[0], cond=cond, **options).x0

    if parts is None:
        return draw_in_batches(draw, params, key, labels, num_samples, batch_size, "sampling")
    for start, batch in each_batch(draw, params, key, labels, num_samples, batch_size, "sampling", parts):
        if processes.is_main():
            parts.save(start, batch)
    return None


def draw_in_batches(
    draw: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    key: jax.Array,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    what: str,
) -> Any:
    """Returns the results of `draw` for all samples as one tree of arrays; the arguments are those of `each_batch`."""
    batches = [batch for _, batch in each_batch(draw, params, key, labels, num_samples, batch_size, what)]
    return jax.tree.map(lambda *each: np.concatenate(each), *batches)


def each_batch(
    draw: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    key: jax.Array,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    what: str,
    done: Container[int] = (),
) -> Iterator[tuple[int, Any]]:
    """Yields (index of the first sample, result of `draw`) by batch, with one key per sample and a progress bar.

    Each batch is split over the devices on which the parameters lie, and filled up to a multiple of their number.

    Args:
      draw: (params, keys [b], labels [b, ...] or None) -> a tree of arrays [b, ...].
      params: its parameters.
      key: split into the samples' keys.
      labels: [num_samples, ...], or None.
      num_samples: number of samples; the last batch has what is left of them.
      batch_size: number drawn at once; samples do not depend on it, unless the generator is rbg or unsafe_rbg.
      what: label of the progress bar.
      done: indices of batches that are left out; with several processes those of process 0.
    """
    if batch_size < 1 or num_samples < 1:
        raise ValueError(f"the number of samples and batch_size must be at least 1; got {num_samples}, {batch_size}")
    batch_size = min(batch_size, num_samples)
    padded = -(-num_samples // batch_size) * batch_size
    keys = jax.random.split(key, padded)
    conds = None if labels is None else labels[np.arange(padded) % len(labels)]
    starts = range(0, padded, batch_size)
    missing = processes.from_main(np.array([start not in done for start in starts]))
    left = [start for start, each in zip(starts, missing, strict=True) if each]
    if not left:
        return
    mesh = over_devices.mesh_of(params)

    def inputs(start: int) -> tuple[jax.Array, jax.Array | None]:
        rows = slice(start, start + batch_size)
        split: tuple[jax.Array, jax.Array | None] = over_devices.split_rows(
            (keys[rows], None if conds is None else conds[rows]), mesh
        )
        return split

    run, begun = (
        compilation.compile_now("the sampler", jax.jit(draw), params, *inputs(left[0])),
        len(starts) - len(left),
    )
    quiet = len(starts) == 1 or not processes.is_main()
    for start in tqdm(left, desc=what, unit="batch", initial=begun, total=len(starts), disable=quiet):
        yield start, over_devices.first_rows(run(params, *inputs(start)), min(batch_size, num_samples - start))


def network_evaluations(config: ConfigDict, diffusion: dfn.Diffusion) -> int:
    """Returns the number of network evaluations per sample; classifier-free guidance doubles it.

    Nothing is computed: the rows of the solver's table are counted, the gradients of a classifier are not.
    """
    conditions = make_conditions(config, sampled_classes(config))
    cond = None if conditions is None else conditions.null[None] * 0
    key = jax.random.key(0)
    trace = jax.eval_shape(
        lambda key: diffusion.sample(diffusion.init(key), key, 1, cond=cond, emit=lambda step: step.x).trace, key
    )
    rows = jax.tree.leaves(trace)[0].shape[0]
    tables = own.tables(config)
    per_row = tables.solvers[config.sampler.name].evaluations_per_row(config.sampler)
    guided = derived.is_conditional(config) and is_guided(config.sampler, tables.guidances)
    return rows * per_row * (2 if guided else 1)
