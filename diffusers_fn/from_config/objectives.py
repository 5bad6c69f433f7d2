"""From config.loss and config.parameterization to a training loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusers_fn import _random, losses, parameterizations, variances
from diffusers_fn.denoisers import network_output
from diffusers_fn.from_config import few_step, learned_variance, self_conditioning
from diffusers_fn.from_config.batches import check_images, check_labels, draw_noise
from diffusers_fn.from_config.choices import choose, fraction
from diffusers_fn.from_config.noise import Noise
from diffusers_fn.levels import Level, add_noise
from diffusers_fn.parameterizations import Parameterization, split_variance

Metrics = dict[str, jax.Array]
Loss = Callable[..., tuple[jax.Array, Metrics]]

PARAMETERIZATIONS: Mapping[str, Callable[[ConfigDict], Parameterization]] = {
    "epsilon": lambda config: parameterizations.epsilon,
    "x0": lambda config: parameterizations.x0,
    "v": lambda config: parameterizations.v,
    "score": lambda config: parameterizations.scaled_score(config.score_scaling),
    "velocity": lambda config: parameterizations.velocity,
    "edm": lambda config: parameterizations.edm(config.sigma_data),
}

VARIANCES = {
    "fixed_small": variances.fixed_small,
    "fixed_large": variances.fixed_large,
    "learned": variances.learned,
    "learned_range": variances.learned_range,
}

LOSS_TYPES = {"mse": losses.mse, "l1": losses.l1, "huber": losses.huber}

WEIGHTS: Mapping[str, Callable[[ConfigDict, Noise], losses.Weight | None]] = {
    "simple": lambda config, noise: None,
    "uniform": lambda config, noise: losses.uniform,
    "snr": lambda config, noise: losses.snr,  # on the score: sigma^2, the weight of score matching
    "min_snr": lambda config, noise: losses.min_snr(config.loss.min_snr_gamma),
    "truncated_snr": lambda config, noise: losses.truncated_snr,
    "p2": lambda config, noise: losses.p2(config.loss.p2_gamma, config.loss.p2_k),
    "edm": lambda config, noise: losses.edm(config.sigma_data),
    "sigmoid": lambda config, noise: losses.sigmoid(config.loss.sigmoid_bias),
    "likelihood": lambda config, noise: _likelihood_weight(noise),
}

TIME_SAMPLERS: Mapping[str, Callable[[ConfigDict], losses.TimeSampler]] = {
    "uniform": lambda config: losses.uniform_time,
    "stratified": lambda config: losses.stratified_time,
    "antithetic": lambda config: losses.antithetic_time,
    "logit_normal": lambda config: losses.logit_normal_time(config.loss.logit_mean, config.loss.logit_std),
    "mode": lambda config: losses.mode_time(config.loss.mode_scale),
}


class Parts(NamedTuple):
    """What an objective is made from.

    Attributes:
      config: the whole config.
      shape: of one example.
      apply: (params, x, t, cond, *, key, train) -> network output.
      noise: the levels.
      parameterization: what the network's output means.
      variance: of a reverse step.
      draw_level: (key, B) -> Level[B], the levels of a training batch.
      read: (key, batch) -> (x0, cond): the examples, and their labels, some of them dropped.
    """

    config: ConfigDict
    shape: tuple[int, ...]
    apply: Callable[..., jax.Array]
    noise: Noise
    parameterization: Parameterization
    variance: variances.Variance
    draw_level: Callable[[jax.Array, int], Level]
    read: Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, Any]]


def make_parameterization(config: ConfigDict) -> Parameterization:
    """Returns the parameterization that config.parameterization names.

    With config.scale_input the network sees x over the standard deviation that it has for data of sigma_data.

    Raises:
      ValueError: if there is none of that name.

    >>> make_parameterization(ConfigDict({"parameterization": "v", "scale_input": False})).name
    'v'
    """
    made = choose("parameterization", config.parameterization, PARAMETERIZATIONS)(config)
    if config.scale_input and made.input_scale is None:
        made = made._replace(input_scale=parameterizations.unit_input(config.sigma_data))
    return made


def make_draw_level(config: ConfigDict, noise: Noise) -> Callable[[jax.Array, int], Level]:
    """Returns (key, B) -> Level[B], the levels of a training batch: config.loss.time_sampler.

    Raises:
      ValueError: if its name or numbers are not allowed.

    >>> from configs.default import default_config
    >>> from diffusers_fn.from_config.noise import make_noise
    >>> draw = make_draw_level(default_config(), make_noise(default_config()))
    >>> draw(jax.random.key(0), 3).t.shape
    (3,)
    """
    section = config.loss
    if section.time_sampler == "log_normal":
        if noise.at is None:
            raise ValueError(
                "config.loss.time_sampler is 'log_normal', but log sigma is infinite at pure noise, where "
                "noise_schedule.zero_terminal_snr ends: set that to False"
            )
        return losses.log_normal_level(noise.at, section.log_sigma_mean, section.log_sigma_std)
    if section.time_sampler == "loss_second_moment":
        return lambda key, batch_size: noise.level(losses.uniform_time(key, batch_size))  # see `make_objective`
    options = {"log_normal": None, "loss_second_moment": None, **TIME_SAMPLERS}
    draw_time = choose("loss.time_sampler", section.time_sampler, options)(config)
    if config.noise_schedule.process == "edm":
        raise ValueError(
            f"config.loss.time_sampler is {section.time_sampler!r}, but the process 'edm' has no times between 0 and "
            "1: set it to 'log_normal'"
        )
    return lambda key, batch_size: noise.level(draw_time(key, batch_size))


def make_read(
    config: ConfigDict, shape: tuple[int, ...]
) -> Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, Any]]:
    """Returns (key, batch) -> (x0 [B, *shape], cond): images, and labels of which some are the null label.

    Raises:
      ValueError: if config.loss.label_dropout is no share.

    >>> from configs.default import default_config
    >>> make_read(default_config(), (2,))(jax.random.key(0), {"image": jnp.zeros((4, 2))})[1] is None
    True
    """
    num_classes = int(config.backbone.get("num_classes") or 0)
    label_dropout = fraction("loss.label_dropout", config.loss.label_dropout)

    def read(key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
        x0 = check_images(batch, shape)
        if not num_classes:
            return x0, None
        cond = check_labels(batch.get("label"), num_classes, x0.shape[0], allow_null=False)
        drop = _random.draw(jax.random.uniform, key, cond.shape, jnp.float32) < label_dropout
        return x0, jnp.where(drop, num_classes, cond)

    return read


def denoising(parts: Parts) -> Loss:
    """Returns the loss of a network that tells x0 from x = alpha x0 + sigma eps: error, weight, offset noise.

    batch["noise"], [B, *shape], is the eps of each example where a batch has it (couplings of data and noise).
    """
    config = parts.config
    error = choose("loss.loss_type", config.loss.loss_type, LOSS_TYPES)
    weight = choose("loss.weight", config.loss.weight, WEIGHTS)(config, parts.noise)
    offset = config.loss.offset_noise
    if offset < 0:
        raise ValueError(f"config.loss.offset_noise must not be negative; got {offset}")

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        time_key, noise_key, label_key, dropout_key = _random.split(key, 4)
        x0, cond = parts.read(label_key, batch)
        level = parts.draw_level(time_key, x0.shape[0])
        eps = draw_noise(noise_key, batch, x0)
        if offset:
            eps = losses.offset_noise(_random.fold_in(noise_key, jnp.uint32(1)), eps, offset)
        x = add_noise(x0, eps, level)
        options: dict[str, Any] = {"key": _random.one_key(dropout_key), "train": True}
        estimate_key = _random.fold_in(noise_key, jnp.uint32(2))
        options |= self_conditioning.told(parts, params, estimate_key, x, level, cond, options)
        out = network_output(parts.apply, params, parts.parameterization, x, level, cond, **options)
        out, _ = split_variance(out, x)
        per_example = losses.denoising_loss(
            out, x0, eps, level, parts.parameterization, error=error, weight=weight
        )  # fmt: skip
        unweighted = losses.denoising_loss(out, x0, eps, level, parts.parameterization)
        return per_example, {"mse": unweighted}

    return loss


OBJECTIVES: Mapping[str, Callable[[Parts], Loss]] = {
    "denoising": denoising,
    "hybrid": lambda parts: learned_variance.hybrid(
        parts,
        choose("loss.loss_type", parts.config.loss.loss_type, LOSS_TYPES),
        choose("loss.weight", parts.config.loss.weight, WEIGHTS)(parts.config, parts.noise),
    ),
    "vlb": learned_variance.vlb,
    "consistency": few_step.consistency,
    "mean_flow": lambda parts: few_step.mean_flow(
        parts, choose("loss.time_sampler", parts.config.loss.time_sampler, TIME_SAMPLERS)(parts.config)
    ),
}


class Objective(NamedTuple):
    """A training loss, and what it needs beside the parameters.

    Attributes:
      loss: (params, key, batch) -> (loss [B], metrics [B]), with extras as a fourth argument if there are any.
      extras: at the start of training; None for nothing.
      update_extras: (extras, metrics [B]) -> extras after a step; None where they stay.
    """

    loss: Loss
    extras: Any = None
    update_extras: Callable[[Any, Metrics], Any] | None = None


def make_objective(parts: Parts) -> Objective:
    """Returns the objective that config.loss describes.

    Raises:
      ValueError: if a name or a number is not allowed.
    """
    section = parts.config.loss
    objective = choose("loss.objective", section.objective, OBJECTIVES)
    if section.time_sampler == "loss_second_moment":
        objective(parts)  # refuses now what does not fit
        return _importance_sampled(objective, parts)
    return Objective(objective(parts))


def _importance_sampled(objective: Callable[[Parts], Loss], parts: Parts) -> Objective:
    """The objective with timesteps drawn in proportion to their losses (Nichol & Dhariwal 2021, section 3.3)."""
    schedule = parts.noise.schedule
    if schedule is None:
        raise ValueError(
            "config.loss.time_sampler is 'loss_second_moment', which needs a table of timesteps: set "
            f"noise_schedule.process to 'table'; got {parts.config.noise_schedule.process!r}"
        )
    num_timesteps = schedule.betas.shape[0]

    def loss(
        params: Any, key: jax.Array, batch: Mapping[str, jax.Array], record: losses.LossSecondMoment
    ) -> tuple[jax.Array, Metrics]:
        time_key, key = _random.split(key, 2)
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        t, weight = losses.draw_times(time_key, record, batch_size)
        at_t = parts._replace(draw_level=lambda key, batch_size: parts.noise.level((t + 0.5) / num_timesteps))
        per_example, metrics = objective(at_t)(params, key, batch)
        return weight * per_example, metrics | {"timestep": t, "unweighted": per_example}

    def update(record: losses.LossSecondMoment, metrics: Metrics) -> losses.LossSecondMoment:
        return losses.update_loss_second_moment(record, metrics["timestep"], metrics["unweighted"])

    return Objective(loss, losses.loss_second_moment(num_timesteps), update)


def _likelihood_weight(noise: Noise) -> losses.Weight:
    if noise.process is None:
        raise ValueError(
            "config.loss.weight is 'likelihood', which is infinite at pure noise, where "
            "noise_schedule.zero_terminal_snr ends: set that to False, or choose another weight"
        )
    return losses.likelihood(noise.process)
