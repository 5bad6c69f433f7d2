"""Training losses: errors, weights of the levels, and random times.

Losses return one number per example, [B]; the caller takes the mean. Weights are functions of the level, written once
as the weight of |x0 - x0_hat|^2 and converted to the network's output.
"""

from diffusers_fn.losses.errors import Error, denoising_loss, huber, l1, mse
from diffusers_fn.losses.offset import offset_noise
from diffusers_fn.losses.second_moment import (
    LossSecondMoment,
    draw_times,
    loss_second_moment,
    time_probabilities,
    update_loss_second_moment,
)
from diffusers_fn.losses.times import (
    TimeSampler,
    antithetic_time,
    log_normal_level,
    logit_normal_time,
    mode_time,
    stratified_time,
    uniform_time,
)
from diffusers_fn.losses.weights import (
    Weight,
    edm,
    likelihood,
    min_snr,
    output_weight,
    p2,
    sigmoid,
    snr,
    truncated_snr,
    uniform,
)

__all__ = [
    "Error",
    "LossSecondMoment",
    "TimeSampler",
    "Weight",
    "antithetic_time",
    "denoising_loss",
    "draw_times",
    "edm",
    "huber",
    "l1",
    "likelihood",
    "log_normal_level",
    "logit_normal_time",
    "loss_second_moment",
    "min_snr",
    "mode_time",
    "mse",
    "offset_noise",
    "output_weight",
    "p2",
    "sigmoid",
    "snr",
    "stratified_time",
    "time_probabilities",
    "truncated_snr",
    "uniform",
    "uniform_time",
    "update_loss_second_moment",
]


def __dir__() -> list[str]:
    return __all__
