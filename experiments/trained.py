"""A trained model: loading it with all networks that its samples need, and drawing samples in batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.guiding import is_guided
from diffusers_fn.from_config.samplers import SOLVERS
from experiments import compilation, latent, runs, states
from experiments.tasks import TASKS


class Networks(NamedTuple):
    """Parameters of all networks that a sample needs; arguments of the compiled program, not constants in it.

    Attributes:
      own: those of the diffusion model.
      first_stage: the value of `latent.make_extras`, for a model in latents; else None.
      classifier: those of the guiding classifier; else None.
    """

    own: Any
    first_stage: Any = None
    classifier: Any = None


def load_trained(config: ConfigDict, workdir: Path) -> tuple[dfn.Diffusion, Networks, int]:
    """Returns (diffusion, networks, step): the model of a work directory and its averaged (EMA) parameters.

    The functions of `diffusion` take `networks` as their parameters. Samples in latents are decoded, and are guided by
    the classifier of config.sampler.classifier_workdir if that is set.

    Raises:
      ValueError: if the directory holds no run, or one of another config, or model and classifier do not fit.
    """
    runs.open_workdir(workdir, config, create=False)
    if not choose("task", config.task, TASKS).has_samples:
        sampled = ", ".join(repr(name) for name, entry in TASKS.items() if entry.has_samples)
        raise ValueError(f"config.task is {config.task!r}: only runs of the task {sampled} have samples")
    autoencoder = classifier = guide = None
    if config.latent.enabled:
        autoencoder = dfn.build_autoencoder(latent.first_stage(config, workdir))
        model, like = dfn.build(latent.in_latents(config, autoencoder)), latent.extras_like(autoencoder)
    else:
        model, like = dfn.build(config), dfn.build_objective(config).extras
    step, state = states.load_state(config, workdir, states.state_like(config, model.init, like))
    state = jax.device_put(state)
    if config.sampler.classifier_workdir:
        classifier, guide = load_classifier(config)
    networks = Networks(state.ema, state.extras if config.latent.enabled else None, guide)
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
      networks: `init` keeps the parameters of its other networks.
      autoencoder: decodes the samples; None for none.
      classifier: guides them with scale config.sampler.classifier_scale; None for none.
    """

    def whole(networks: Networks) -> dfn.Diffusion:
        return model if autoencoder is None else latent.decoded(config, model, autoencoder, networks.first_stage)

    def sample(params: Networks, *args: Any, **options: Any) -> Any:
        if classifier is not None:
            log_prob = classifier.log_prob(params.classifier)
            options["transform"] = dfn.guidance.classifier(log_prob, config.sampler.classifier_scale)
        return whole(params).sample(params.own, *args, **options)

    return dfn.Diffusion(
        init=lambda key: networks._replace(own=model.init(key)),
        apply=lambda params, *args, **options: model.apply(params.own, *args, **options),
        loss=lambda params, *args: whole(params).loss(params.own, *args),
        sample=sample,
    )


def load_classifier(config: ConfigDict) -> tuple[dfn.NoisyClassifier, Any]:
    """Returns the classifier of config.sampler.classifier_workdir and its averaged parameters.

    Raises:
      ValueError: if there is no classifier, or its data, classes or noise levels are not those of the model.
    """
    folder = Path(config.sampler.classifier_workdir)
    where = f"config.sampler.classifier_workdir = {str(folder)!r}"
    if not (folder / "config.json").exists():
        raise ValueError(f"{where} holds no run: train configs/classifier.py there, or set it to ''")
    held = ConfigDict(json.loads((folder / "config.json").read_text()))
    if held.get("task") != "classifier":
        raise ValueError(f"{where} holds a run of task {held.get('task')!r}, not a classifier")
    if config.latent.enabled or tuple(held.data.shape) != tuple(config.data.shape):
        raise ValueError(f"{where} is for data of shape {tuple(held.data.shape)}, not that of the model's data")
    if held.backbone.num_classes != config.data.num_classes:
        raise ValueError(
            f"{where} has {held.backbone.num_classes} classes, the data have {config.data.num_classes} "
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
    return net, jax.device_put(state.ema)


def draw_samples(
    diffusion: dfn.Diffusion, params: Any, key: jax.Array, labels: np.ndarray | None, num_samples: int, batch_size: int
) -> np.ndarray:
    """Returns samples [num_samples, *shape], drawn in batches by one compiled program, with a progress bar.

    Each sample has its own key: the same seed gives the same samples for every batch size, unless the generator is
    rbg or unsafe_rbg.

    Args:
      diffusion: the model.
      params: its parameters.
      key: of the seed.
      labels: [num_samples], or None for unconditional samples.
      num_samples: number of samples.
      batch_size: number of samples drawn at once.
    """
    key = jax.random.fold_in(key, 1)  # 0 is for training, 2 for pairs

    def draw(params: Any, keys: jax.Array, cond: Any) -> jax.Array:
        return diffusion.sample(params, keys, keys.shape[0], cond=cond).x0

    return draw_in_batches(draw, params, key, labels, num_samples, batch_size, "sampling")


def draw_in_batches(
    draw: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    key: jax.Array,
    labels: np.ndarray | None,
    num_samples: int,
    batch_size: int,
    what: str,
) -> Any:
    """Returns the results of `draw` with one key per sample, in batches by one compiled program, with a progress bar.

    Args:
      draw: (params, keys [b], labels [b] or None) -> a tree of arrays [b, ...].
      params: its parameters.
      key: split into the samples' keys.
      labels: [num_samples], or None.
      num_samples: number of samples.
      batch_size: number drawn at once; samples do not depend on it, unless the generator is rbg or unsafe_rbg.
      what: label of the progress bar.
    """
    if batch_size < 1 or num_samples < 1:
        raise ValueError(f"the number of samples and batch_size must be at least 1; got {num_samples}, {batch_size}")
    batch_size = min(batch_size, num_samples)
    padded = -(-num_samples // batch_size) * batch_size
    keys = jax.random.split(key, padded)
    conds = None if labels is None else np.resize(labels, padded)
    batches = [
        (keys[start : start + batch_size], None if conds is None else conds[start : start + batch_size])
        for start in range(0, padded, batch_size)
    ]
    run, parts = compilation.compile_now("the sampler", jax.jit(draw), params, *batches[0]), []
    for batch in tqdm(batches, desc=what, unit="batch", disable=len(batches) == 1):
        parts.append(jax.tree.map(np.asarray, run(params, *batch)))
    return jax.tree.map(lambda *each: np.concatenate(each)[:num_samples], *parts)


def network_evaluations(config: ConfigDict, diffusion: dfn.Diffusion) -> int:
    """Returns the number of network evaluations per sample; classifier-free guidance doubles it.

    Nothing is computed: the rows of the solver's table are counted, the gradients of a classifier are not.
    """
    cond = np.zeros(1, np.int32) if runs.sampled_classes(config) else None
    key = jax.random.key(0)
    trace = jax.eval_shape(
        lambda key: diffusion.sample(diffusion.init(key), key, 1, cond=cond, emit=lambda step: step.x).trace, key
    )
    rows = jax.tree.leaves(trace)[0].shape[0]
    per_row = SOLVERS[config.sampler.name].evaluations_per_row(config.sampler)
    guided = config.backbone.num_classes and is_guided(config.sampler)
    return rows * per_row * (2 if guided else 1)
