"""From config.loss to the error of a prediction and the weight of its noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from diffusers_fn import losses
from diffusers_fn.from_config.choices import choose
from diffusers_fn.from_config.noise import Noise

__all__ = ["LOSS_TYPES", "WEIGHTS", "make_error", "make_weight"]

LOSS_TYPES: Mapping[str, losses.Error] = {"mse": losses.mse, "l1": losses.l1, "huber": losses.huber}

# (config.loss, noise, sigma_data) -> weight; None for the plain error.
WEIGHTS: Mapping[str, Callable[[ConfigDict, Noise, float], losses.Weight | None]] = {
    "simple": lambda settings, noise, sigma_data: None,
    "uniform": lambda settings, noise, sigma_data: losses.uniform,
    "snr": lambda settings, noise, sigma_data: losses.snr,  # of the score: sigma^2, the weight of score matching
    "min_snr": lambda settings, noise, sigma_data: losses.min_snr(settings.min_snr_gamma),
    "truncated_snr": lambda settings, noise, sigma_data: losses.truncated_snr,
    "p2": lambda settings, noise, sigma_data: losses.p2(settings.p2_gamma, settings.p2_k),
    "edm": lambda settings, noise, sigma_data: losses.edm(sigma_data),
    "sigmoid": lambda settings, noise, sigma_data: losses.sigmoid(settings.sigmoid_bias),
    "likelihood": lambda settings, noise, sigma_data: _likelihood(noise),
}


def make_error(settings: ConfigDict) -> losses.Error:
    """Returns the error that config.loss.loss_type names.

    Raises:
      ValueError: if no error has that name.

    >>> make_error(ConfigDict({"loss_type": "l1"})) is losses.l1
    True
    """
    error: losses.Error = choose("loss.loss_type", settings.loss_type, LOSS_TYPES)
    return error


def make_weight(settings: ConfigDict, noise: Noise, sigma_data: float) -> losses.Weight | None:
    """Returns the weight that config.loss.weight names; None for the plain error.

    Raises:
      ValueError: if no weight has that name, or it is infinite at one of the levels.
    """
    weight: losses.Weight | None = choose("loss.weight", settings.weight, WEIGHTS)(settings, noise, sigma_data)
    return weight


def _likelihood(noise: Noise) -> losses.Weight:
    if noise.process is None:
        raise ValueError(
            "config.loss.weight is 'likelihood', which is infinite at pure noise, where "
            "noise_schedule.zero_terminal_snr ends: set that to False, or choose another weight"
        )
    return losses.likelihood(noise.process)
