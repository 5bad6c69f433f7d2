"""Denoisers, the interface between networks and samplers, and transforms of denoisers.

A denoiser predicts the clean data and the noise in x. A transform takes a denoiser and returns another one; guidance,
clipping and thresholding are transforms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import check_callable, check_positive, concrete, expand, namespace, split_like, whole
from diffusers_fn.levels import Level, check_level
from diffusers_fn.parameterizations import Parameterization, Prediction, check_parameterization, to_prediction

__all__ = [
    "Denoiser",
    "Transform",
    "bind",
    "chain",
    "check_pure_noise",
    "clip_x0",
    "dynamic_threshold",
    "ignore_cond",
    "make_denoiser",
    "map_x0",
    "network_output",
    "score",
]


def __dir__() -> list[str]:
    return __all__


class Denoiser(Protocol):
    """A function that predicts the clean data and the noise in x."""

    def __call__(self, x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        """Returns the prediction (x0, eps) for x.

        Args:
          x: [B, ...] noisy data.
          level: S = [] or [B].
          cond: conditioning, a pytree of arrays [B, ...], or None.
        """
        ...


Transform = Callable[[Denoiser], Denoiser]


def score(prediction: Prediction, level: Level) -> jax.Array:
    """Returns the score of the noised data, the gradient of log q(x): -eps / sigma, shape [B, ...].

    Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 7; with the expected noise eps it is that of the marginal
    distribution (Tweedie's formula).

    Args:
      prediction: of a denoiser at the level.
      level: S = [] or [B], with sigma > 0.

    Raises:
      ValueError: if sigma is 0 and not traced.

    >>> from diffusers_fn.oracles import gaussian
    >>> level = Level(0.6, 0.8, 0.0)
    >>> score(gaussian(0.0, 1.0)(jnp.ones((1, 2)), level), level)  # of N(0, 1) at x = 1
    Array([[-1., -1.]], dtype=float32)
    """
    sigma = concrete(level.sigma)
    if sigma is not None and not np.all(sigma > 0):
        raise ValueError(f"the score exists for sigma > 0; got a level with sigma = {np.min(sigma):g}")
    return -prediction.eps / expand(level.sigma, prediction.eps)


def make_denoiser(
    apply: Callable[..., Any],
    params: Any,
    parameterization: Parameterization,
    **apply_options: Any,
) -> Denoiser:
    """Returns the denoiser made of a network, its parameters and its parameterization.

    The network gets arrays, never a level: it is called as
    `apply(params, input_scale * x, level.t, cond, **apply_options)`, where input_scale is 1 except for edm.

    Args:
      apply: (params, x, t, cond) -> output [B, ..., C] or, with learned variance, [B, ..., 2C].
      params: the network's parameters.
      parameterization: what the output means.
      **apply_options: passed to `apply`, for instance train=False.

    Raises:
      ValueError: if apply cannot be called as above, or parameterization is not a Parameterization; when called, if
        the leaves of cond do not have x's batch axis, and as `to_prediction`.

    >>> from diffusers_fn.parameterizations import epsilon
    >>> denoise = make_denoiser(lambda params, x, t, cond: params * x, 0.5, epsilon)
    >>> denoise(jnp.ones((1, 2)), Level(0.8, 0.6, 10.0)).eps
    Array([[0.5, 0.5]], dtype=float32)
    """

    check_parameterization(parameterization)
    _check_apply(apply, apply_options)

    def denoise(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        out = network_output(apply, params, parameterization, x, level, cond, **apply_options)
        return to_prediction(parameterization, out, x, level)

    return denoise


def network_output(
    apply: Callable[..., Any],
    params: Any,
    parameterization: Parameterization,
    x: jax.Array,
    level: Level,
    cond: Any = None,
    **apply_options: Any,
) -> jax.Array:
    """Returns the network's output for x, with the input scaling of the parameterization; for losses.

    Args: as for `make_denoiser` and `Denoiser`.

    >>> from diffusers_fn.parameterizations import edm
    >>> network_output(lambda params, x, t, cond: x, None, edm(0.6), jnp.ones((1, 2)), Level(1.0, 0.8, 0.0))
    Array([[1., 1.]], dtype=float32)
    """
    check_parameterization(parameterization)
    check_level(level, x)
    _check_cond(cond, x)
    params, (level, cond) = whole(params, x), split_like((level, cond), x)
    if parameterization.input_scale is not None:
        scale = expand(parameterization.input_scale(level), x)
        x = scale * x.astype(scale.dtype)
    try:
        return apply(params, x, level.t, cond, **apply_options)
    except TypeError as error:
        if "positional argument" in str(error):
            _refuse_apply(str(error), error)
        raise


def bind(denoise: Denoiser, cond: Any) -> Denoiser:
    """Returns the denoiser with its conditioning fixed, for `sample`.

    Raises:
      ValueError: if denoise is not a function; when the returned denoiser is called with a conditioning.

    >>> from diffusers_fn.oracles import gaussian
    >>> bound = bind(gaussian(0.0, 1.0), cond=jnp.array([3]))
    >>> bound(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.8, 0.8]], dtype=float32)
    """
    check_callable("denoise", denoise, "make_denoiser(apply, params, epsilon)")
    fixed = cond

    def bound(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        if cond is not None:
            raise ValueError("cond is bound already: pass another cond to the denoiser before bind")
        return denoise(x, level, fixed)

    return bound


def ignore_cond(denoise: Denoiser) -> Denoiser:
    """Returns the denoiser that accepts any conditioning and evaluates `denoise` without it.

    For guidance that uses the conditioning of another model: `guidance.classifier(log_prob)(ignore_cond(denoise))`
    guides an unconditional model by a classifier's labels.

    >>> from diffusers_fn.oracles import gaussian
    >>> ignore_cond(gaussian(0.0, 1.0))(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0), cond=jnp.array([3])).x0
    Array([[0.8, 0.8]], dtype=float32)
    """

    def unconditional(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
        return denoise(x, level)

    return unconditional


def chain(*transforms: Transform) -> Transform:
    """Returns the transform that applies `transforms` in order: chain(f, g)(denoise) = g(f(denoise)).

    Put guidance first and clipping last, so that the guided prediction is clipped.

    >>> from diffusers_fn.oracles import gaussian
    >>> denoise = chain(clip_x0(0.5), clip_x0(0.25))(gaussian(0.0, 1.0))
    >>> denoise(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.25, 0.25]], dtype=float32)
    """

    for each in transforms:
        check_callable("a transform", each, "clip_x0(1.0)")

    def transform(denoise: Denoiser) -> Denoiser:
        for each in transforms:
            denoise = each(denoise)
        return denoise

    return transform


def map_x0(function: Callable[[jax.Array], jax.Array], *, keep_eps: bool = False) -> Transform:
    """Returns the transform that replaces x0 by function(x0).

    Args:
      function: [B, ...] -> [B, ...].
      keep_eps: False recomputes eps, so that x = alpha x0 + sigma eps still holds; True keeps the network's eps
        (`use_clipped_model_output=False` in other libraries). At sigma = 0, where no eps restores x, it is kept.

    >>> from diffusers_fn.oracles import gaussian
    >>> doubled = map_x0(lambda x0: 2 * x0)(gaussian(0.0, 1.0))(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0))
    >>> doubled.x0, (0.8 * doubled.x0 + 0.6 * doubled.eps).round(5)
    (Array([[1.6, 1.6]], dtype=float32), Array([[1., 1.]], dtype=float32))
    """

    def transform(denoise: Denoiser) -> Denoiser:
        def mapped(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            prediction = denoise(x, level, cond)
            x0 = function(prediction.x0)
            eps = prediction.eps
            if not keep_eps:
                # Only the change of x0 is added to eps: where x0 is unchanged, eps is unchanged bit for bit.
                ratio = expand(_ratio(level), eps)
                eps = eps + ratio * (prediction.x0 - x0).astype(ratio.dtype)
            return Prediction(x0, eps, prediction.var_frac)

        return mapped

    return transform


def clip_x0(bound: float = 1.0, *, keep_eps: bool = False) -> Transform:
    """Returns the transform that clips x0 to [-bound, bound], the range of the data. keep_eps: as for `map_x0`.

    Raises:
      ValueError: unless bound is positive.

    >>> from diffusers_fn.oracles import gaussian
    >>> clip_x0(0.5)(gaussian(0.0, 1.0))(jnp.ones((1, 2)), Level(0.8, 0.6, 0.0)).x0
    Array([[0.5, 0.5]], dtype=float32)
    """
    check_positive("bound", bound)
    return map_x0(lambda x0: jnp.clip(x0, -bound, bound), keep_eps=keep_eps)


def dynamic_threshold(
    percentile: float = 0.995, max_value: float | None = None, *, keep_eps: bool = False
) -> Transform:
    """Returns the transform that clips x0 to [-s, s] and divides it by s, with s per example.

    Saharia et al., "Photorealistic Text-to-Image Diffusion Models" (Imagen), 2022, https://arxiv.org/abs/2205.11487,
    section 2.3.

    Args:
      percentile: in (0, 1]; s is this percentile of |x0| within an example, but at least 1.
      max_value: the largest s; None for no limit.
      keep_eps: as for `map_x0`.

    Raises:
      ValueError: unless percentile lies in (0, 1] and max_value, if given, is at least 1.

    >>> from diffusers_fn.oracles import gaussian
    >>> dynamic_threshold(1.0)(gaussian(0.0, 1.0))(jnp.full((1, 2), 5.0), Level(0.8, 0.6, 0.0)).x0
    Array([[1., 1.]], dtype=float32)
    """
    if not 0 < percentile <= 1:
        raise ValueError(f"percentile must lie in (0, 1], for instance 0.995; got {percentile}")
    if max_value is not None and max_value < 1:
        raise ValueError(f"max_value must be at least 1, the range of the data; got {max_value}")

    def threshold(x0: jax.Array) -> jax.Array:
        s = jnp.quantile(jnp.abs(x0.reshape(x0.shape[0], -1)), percentile, axis=1)
        s = expand(jnp.clip(s, 1.0, max_value), x0)
        return jnp.clip(x0, -s, s) / s

    return map_x0(threshold, keep_eps=keep_eps)


def check_pure_noise(denoise: Denoiser, levels: Level, x: jax.Array) -> None:
    """Raises the denoiser's error for pure noise, or clean data, before a scan traces the levels and hides them.

    Args:
      denoise: traced once, at the first level with alpha = 0, and at the first one with sigma = 0; nothing is computed.
      levels: Level[N] or [N, B].
      x: [B, ...].

    Raises:
      ValueError: from the denoiser, if its parameterization does not determine x0 at alpha = 0, or eps at sigma = 0.

    >>> from diffusers_fn.oracles import gaussian
    >>> check_pure_noise(gaussian(0.0, 1.0), Level(np.zeros(1), np.ones(1), np.ones(1)), jnp.zeros((1, 2)))
    """
    for coefficient in (concrete(levels.alpha), concrete(levels.sigma)):
        if coefficient is not None and np.any(coefficient == 0):
            first = int(np.argmax((coefficient == 0).reshape(coefficient.shape[0], -1).any(axis=1)))
            level = jax.tree.map(np.asarray, levels)[first]
            jax.eval_shape(lambda x, level=level: denoise(x, level), x)


def _ratio(level: Level) -> Any:
    """Returns alpha / sigma, and 0 at sigma = 0."""
    xp = namespace(level)
    clean = xp.asarray(level.sigma) == 0
    return xp.where(clean, 0.0, level.alpha / xp.where(clean, 1.0, level.sigma))


def _check_cond(cond: Any, x: jax.Array) -> None:
    """Raises ValueError if an array in cond has another batch axis than x."""
    for leaf in jax.tree.leaves(cond):
        shape = np.shape(leaf)
        if shape and shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"cond must have the batch of x, [{x.shape[0]}, ...]: x has shape {list(x.shape)} and an array in "
                f"cond {list(shape)}"
            )


def _check_apply(apply: Any, options: Mapping[str, Any]) -> None:
    """Raises ValueError if apply cannot be called as apply(params, x, t, cond, **options), as far as it is known."""
    if callable(getattr(apply, "apply", None)):
        raise ValueError(
            f"apply must be a function (params, x, t, cond) -> output; got {_name(apply)}: pass its .apply"
        )
    if isinstance(apply, Mapping) or not callable(apply):
        raise ValueError(
            f"apply must be a function (params, x, t, cond) -> output; got {_name(apply)}: the order is "
            "make_denoiser(apply, params, parameterization)"
        )
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(None, None, None, None, **options)
    except TypeError as error:
        _refuse_apply(f"{error}; its signature is {signature}", error)


def _refuse_apply(reason: str, error: TypeError) -> NoReturn:
    raise ValueError(
        f"the network is called as apply(params, x, t, cond, **options), cond None without a condition: {reason}. "
        "Wrap a network that takes no cond: lambda params, x, t, cond: apply(params, x, t)"
    ) from error


def _name(value: object) -> str:
    return type(value).__name__
