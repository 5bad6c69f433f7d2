"""What a config says about the network's output (prediction_type), and about x0_hat (clipping, thresholds)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffusers_fn._arrays import namespace
from diffusers_fn._types import Array
from diffusers_fn.denoisers import Transform, clip_x0, dynamic_threshold, map_x0
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization, edm, epsilon, unit_input, v, velocity, x0
from diffusers_fn.pretrained.schedulers.kinds import Options

__all__ = [
    "PREDICTIONS",
    "circle",
    "clipping",
    "consistent",
    "denoised",
    "preconditioned",
    "scaled_input",
    "thresholding",
]

PREDICTIONS = ("epsilon", "sample", "v_prediction")
_STANDARD = {"epsilon": epsilon, "sample": x0, "v_prediction": v, "flow_prediction": velocity}


def denoised(
    name: str,
    coefficients: Callable[[Level], tuple[Any, Any]],
    input_scale: Callable[[Level], Array] | None = None,
) -> Parameterization:
    """Returns the parameterization with x0_hat = c_skip x + c_out out, where (c_skip, c_out) = coefficients(level).

    Solved for out with x = alpha x0 + sigma eps: p = (1 - alpha c_skip) / c_out and q = -sigma c_skip / c_out.
    """

    def line(level: Level) -> tuple[Any, Any]:
        c_skip, c_out = coefficients(level)
        return (1.0 - level.alpha * c_skip) / c_out, -level.sigma * c_skip / c_out

    return Parameterization(name, line, input_scale)


def circle(options: Options) -> Parameterization:
    """Returns the parameterization of classes on alpha^2 + sigma^2 = 1, or with use_flow_sigmas on alpha = 1 - sigma.

    The reference reads a v or a velocity by the formula of its own path wherever it is used. On the other path that is
    another line, the one returned here.
    """
    prediction, flow = options["prediction_type"], bool(options.get("use_flow_sigmas"))
    if prediction == "v_prediction" and flow:
        if options.get("algorithm_type") in (
            "dpmsolver",
            "sde-dpmsolver",
            "noise_prediction",
        ):  # eps = alpha v + sigma x
            return Parameterization("v on a flow", lambda level: (-level.sigma, (1.0 - level.sigma**2) / level.alpha))
        return denoised("v on a flow", lambda level: (level.alpha, -level.sigma))
    if prediction == "flow_prediction" and not flow:
        return denoised("velocity in sigma / alpha", lambda level: (1.0, -level.sigma / level.alpha))
    return _STANDARD[prediction]


def scaled_input(options: Options) -> Parameterization:
    """Returns the parameterization of classes with alpha = 1 whose networks know alpha^2 + sigma^2 = 1."""
    scale = unit_input(1.0)
    if options["prediction_type"] == "v_prediction":
        return denoised("v", lambda level: (scale(level) ** 2, -level.sigma * scale(level)), scale)
    return _STANDARD[options["prediction_type"]]._replace(input_scale=scale)


def preconditioned(options: Options) -> Parameterization:
    """Returns EDM's parameterization; its "v_prediction" is the same output with the opposite sign."""
    head = edm(options["sigma_data"])
    if options["prediction_type"] == "epsilon":
        return head

    def line(level: Level) -> tuple[Any, Any]:
        p, q = head.line(level)
        return -p, -q

    return head._replace(name=f"minus {head.name}", line=line)


def clipping(options: Options, run: Options, *, keep_eps: bool = False) -> Transform | None:
    """Returns the transform of thresholding, clip_sample or clip_denoised; None if none of them is set."""
    if options.get("thresholding"):
        return _threshold(options["dynamic_thresholding_ratio"], options["sample_max_value"], keep_eps)
    return _clip(options["clip_sample_range"], keep_eps) if options.get("clip_sample") else None


def thresholding(options: Options, run: Options) -> Transform | None:
    """Returns the transform of thresholding, or None."""
    return clipping({**options, "clip_sample": False}, run)


# Cached, so that the plans of equal options share one compilation.


@functools.cache
def _clip(bound: float, keep_eps: bool) -> Transform:
    return clip_x0(bound, keep_eps=keep_eps)


@functools.cache
def _threshold(ratio: float, max_value: float, keep_eps: bool) -> Transform:
    if max_value < 1:  # the reference clamps s to [1, max_value], which is then max_value
        return map_x0(lambda x0: jnp.clip(x0, -max_value, max_value) / max_value, keep_eps=keep_eps)
    return dynamic_threshold(ratio, max_value, keep_eps=keep_eps)


def consistent(level: Level, sigma_min: float, sigma_data: float) -> tuple[Array, Array]:
    """Returns (c_skip, c_out) of a consistency model: x0_hat = x at sigma_min.

    Song et al. 2023, https://arxiv.org/abs/2303.01469, appendix C.
    """
    xp = namespace(level)
    gap = xp.maximum(level.sigma - sigma_min, 1e-9)
    root = xp.sqrt(level.sigma**2 + sigma_data**2)
    return sigma_data**2 / (gap**2 + sigma_data**2), gap * sigma_data / root
