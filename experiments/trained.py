"""A trained model: loading it with all the networks that its samples need, and drawing many samples."""

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
from experiments import compilation, latent, runs


class Networks(NamedTuple):
    """Parameters of all networks that make a sample: arguments of a compiled program, not constants in it.

    Attributes:
      own: of the diffusion model.
      first_stage: what `latent.make_extras` returned, for a model of latents; else None.
      classifier: of the classifier that guides; else None.
    """

    own: Any
    first_stage: Any = None
    classifier: Any = None


def load_trained(config: ConfigDict, workdir: Path) -> tuple[dfn.Diffusion, Networks, int]:
    """Returns (diffusion, networks, step): the model of a work directory with its averaged parameters.

    What `diffusion` takes for parameters are the networks. Its samples are decoded where it is a model of latents, and
    guided by config.sampler.classifier_workdir if that is set.

    Raises:
      ValueError: if the directory holds no run, or one of another config, or model and classifier do not fit.
    """
    runs.open_workdir(workdir, config, create=False)
    if config.task != "diffusion":
        raise ValueError(f"config.task is {config.task!r}: only runs of the task 'diffusion' have samples")
    autoencoder = classifier = guide = None
    if config.latent.enabled:
        autoencoder = dfn.build_autoencoder(latent.first_stage(config, workdir))
        model, like = dfn.build(latent.in_latents(config, autoencoder)), latent.extras_like(autoencoder)
    else:
        model, like = dfn.build(config), dfn.build_objective(config).extras
    step, state = runs.load_state(config, workdir, runs.state_like(config, model.init, like))
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
    """Returns the model as functions of `Networks`: its own parameters and those of the other networks.

    Args:
      config: of the model.
      model: as functions of its own parameters; of latents where there is an autoencoder.
      networks: whose other parameters `init` keeps.
      autoencoder: that decodes samples, if any.
      classifier: that guides them by config.sampler.classifier_scale, if any.
    """

    def whole(networks: Networks) -> dfn.Diffusion:
        return model if autoencoder is None else latent.decoded(config, model, autoencoder, networks.first_stage)

    def sample(networks: Networks, *args: Any, **options: Any) -> Any:
        if classifier is not None:
            log_prob = classifier.log_prob(networks.classifier)
            options["transform"] = dfn.guidance.classifier(log_prob, config.sampler.classifier_scale)
        return whole(networks).sample(networks.own, *args, **options)

    return dfn.Diffusion(
        init=lambda key: networks._replace(own=model.init(key)),
        apply=lambda networks, *args, **options: model.apply(networks.own, *args, **options),
        loss=lambda networks, *args: whole(networks).loss(networks.own, *args),
        sample=sample,
    )


def load_classifier(config: ConfigDict) -> tuple[dfn.NoisyClassifier, Any]:
    """Returns the classifier of config.sampler.classifier_workdir and its averaged parameters.

    Raises:
      ValueError: if there is no classifier, or it is of other data, classes or noise than the model.
    """
    folder = Path(config.sampler.classifier_workdir)
    where = f"config.sampler.classifier_workdir = {str(folder)!r}"
    if not (folder / "config.json").exists():
        raise ValueError(f"{where} holds no run: train configs/classifier.py there, or set it to ''")
    held = ConfigDict(json.loads((folder / "config.json").read_text()))
    if held.get("task") != "classifier":
        raise ValueError(f"{where} holds a run of task {held.get('task')!r}, no classifier")
    if config.latent.enabled or tuple(held.data.shape) != tuple(config.data.shape):
        raise ValueError(f"{where} is for data of shape {tuple(held.data.shape)}, the model's data are others")
    if held.backbone.num_classes != config.data.num_classes:
        raise ValueError(
            f"{where} knows {held.backbone.num_classes} classes, the data {config.data.num_classes} "
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
    _, state = runs.load_state(held, folder, runs.state_like(held, net.init))
    return net, jax.device_put(state.ema)


def draw_samples(
    diffusion: dfn.Diffusion, params: Any, key: jax.Array, labels: np.ndarray | None, num_samples: int, batch_size: int
) -> np.ndarray:
    """Returns samples [num_samples, *shape], drawn in batches under one compiled program with a progress bar.

    Each sample has a key of its own: the same seed gives the same samples for every batch size, unless the generator is
    rbg or unsafe_rbg.

    Args:
      diffusion: the model.
      params: its parameters.
      key: of the seed.
      labels: [num_samples], or None for unconditional samples.
      num_samples: how many.
      batch_size: how many at once.
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
    """Returns what `draw` makes of a key a sample, in batches under one compiled program with a progress bar.

    Args:
      draw: (params, keys [b], labels [b] or None) -> a tree of arrays [b, ...].
      params: its parameters.
      key: that the samples' own come from.
      labels: [num_samples], or None.
      num_samples: how many.
      batch_size: how many at once; it does not change them, unless the generator is rbg or unsafe_rbg.
      what: the progress bar's word.
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
    """Returns how often the network is evaluated for one sample; guidance of classes evaluates it twice a time.

    Nothing is computed: the rows of the sampler are counted. The gradients of a classifier are not.
    """
    num_classes = config.backbone.num_classes
    cond = np.zeros(1, np.int32) if runs.sampled_classes(config) else None
    key = jax.random.key(0)
    trace = jax.eval_shape(
        lambda key: diffusion.sample(diffusion.init(key), key, 1, cond=cond, emit=lambda step: step.x).trace, key
    )
    rows = jax.tree.leaves(trace)[0].shape[0]
    a_row = 1 + config.sampler.num_corrector_steps if config.sampler.name == "predictor_corrector" else 1
    guided = num_classes and config.sampler.cfg_scale != 1
    return rows * a_row * (2 if guided else 1)
