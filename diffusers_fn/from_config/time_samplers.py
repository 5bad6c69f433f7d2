"""From config.loss.time_sampler to the noise levels of a training batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffusers_fn import losses
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import Noise
from diffusers_fn.levels import Level

__all__ = ["TIME_SAMPLERS", "LevelSampler", "TimeSamplerEntry", "make_level_sampler", "make_time_sampler"]

LevelSampler = Callable[[jax.Array, int], Level]  # (key, B) -> Level[B]


class TimeSamplerEntry(NamedTuple):
    """A distribution of training noise levels; one of the three attributes is set.

    Attributes:
      times: config.loss -> (key, B) -> times [B] in [0, 1).
      levels: (config.loss, noise) -> (key, B) -> Level[B], where it does not draw times.
      by_loss: whether timesteps are drawn in proportion to their losses, see `objectives.make_objective`.
    """

    times: Callable[[ConfigDict], losses.TimeSampler] | None = None
    levels: Callable[[ConfigDict, Noise], LevelSampler] | None = None
    by_loss: bool = False


def _log_normal(settings: ConfigDict, noise: Noise) -> LevelSampler:
    if noise.at is None:
        raise ValueError(
            "config.loss.time_sampler is 'log_normal', but log sigma is infinite at pure noise, where "
            "noise_schedule.zero_terminal_snr ends: set that to False"
        )
    return losses.log_normal_level(noise.at, settings.log_sigma_mean, settings.log_sigma_std)


TIME_SAMPLERS: Mapping[str, TimeSamplerEntry] = {
    "uniform": TimeSamplerEntry(lambda settings: losses.uniform_time),
    "stratified": TimeSamplerEntry(lambda settings: losses.stratified_time),
    "antithetic": TimeSamplerEntry(lambda settings: losses.antithetic_time),
    "logit_normal": TimeSamplerEntry(
        lambda settings: losses.logit_normal_time(settings.logit_mean, settings.logit_std)
    ),
    "mode": TimeSamplerEntry(lambda settings: losses.mode_time(settings.mode_scale)),
    "log_normal": TimeSamplerEntry(levels=_log_normal),
    "loss_second_moment": TimeSamplerEntry(by_loss=True),
}


def make_time_sampler(settings: ConfigDict) -> losses.TimeSampler:
    """Returns (key, B) -> times [B] in [0, 1), as config.loss.time_sampler names them.

    Raises:
      ValueError: if its name or numbers are not allowed, or it does not draw times.

    >>> make_time_sampler(ConfigDict({"time_sampler": "uniform"}))(jax.random.key(0), 3).shape
    (3,)
    """
    options = {name: entry.times for name, entry in TIME_SAMPLERS.items() if entry.times is not None}
    sampler: losses.TimeSampler = choose("loss.time_sampler", settings.time_sampler, options)(settings)
    return sampler


def make_level_sampler(settings: ConfigDict, noise: Noise) -> LevelSampler:
    """Returns (key, B) -> Level[B], the noise levels of a training batch, as config.loss.time_sampler names them.

    Raises:
      ValueError: if its name or numbers are not allowed.

    >>> from diffusers_fn.from_config.defaults import default_config
    >>> from diffusers_fn.from_config.noise import make_noise
    >>> config = default_config()
    >>> make_level_sampler(config.loss, make_noise(config.noise_schedule))(jax.random.key(0), 3).t.shape
    (3,)
    """
    entry = choose("loss.time_sampler", settings.time_sampler, TIME_SAMPLERS)
    if entry.levels is not None:
        sampler: LevelSampler = entry.levels(settings, noise)
        return sampler
    if entry.by_loss:  # the objective replaces these
        return lambda key, batch_size: noise.level(losses.uniform_time(key, batch_size))
    sample_time = make_time_sampler(settings)
    if not noise.has_times:
        raise ValueError(
            f"config.loss.time_sampler is {settings.time_sampler!r}, but the process {noise.name!r} has no times "
            "between 0 and 1: set it to 'log_normal'"
        )
    return lambda key, batch_size: noise.level(sample_time(key, batch_size))
