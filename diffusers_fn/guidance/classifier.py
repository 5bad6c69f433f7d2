"""Guidance by the gradient of a classifier of noisy data, or of any other log probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn._arrays import concrete, expand
from diffusers_fn.denoisers import Denoiser, Transform
from diffusers_fn.guidance.predictions import shift_by_gradient
from diffusers_fn.guidance.scales import Scale, scale_at
from diffusers_fn.guidance.tables import one_step_rows, scale_on_rows, shift_per_gradient
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Prediction
from diffusers_fn.solvers.base import Solver

__all__ = ["LogProb", "class_log_prob", "classifier", "classifier_mean_shift", "gradient"]

LogProb = Callable[..., jax.Array]  # (x, level) or (x, level, cond) -> log probabilities [B] in nats, or their sum []


def classifier(log_prob: LogProb, scale: Scale = 1.0) -> Transform:
    """Returns the transform of classifier guidance in its epsilon form, which suits every solver.

        eps' = eps - scale * sigma * grad_x log p(y | x, level),    x0' = (x - sigma eps') / alpha

    Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233, eq. 14
    and algorithm 2, for any level. At scale 1 with the exact classifier the result is the exact conditional denoiser.
    The gradient of each example is its own, so the strength does not depend on the batch size. x0 is not clipped: apply
    `clip_x0` before, as the paper's code does, or after.

    To guide a model that has no class labels, pass `ignore_cond(denoise)`: only the classifier receives cond then.

    Args:
      log_prob: log p(y | x) in nats, [B] or its sum over the batch. It is called as log_prob(x, level) if the guided
        denoiser is called without cond, else as log_prob(x, level, cond). See `class_log_prob` for a network's logits.
      scale: [] or [B], may be traced, or a function of the level; 0 changes no bit. The Python number 0 skips the
        gradient.

    Raises:
      ValueError: when called, if a level (not traced) is pure noise (alpha = 0), where x0 does not follow from eps.

    >>> from diffusers_fn.oracles import gaussian
    >>> positive = lambda x, level: jax.nn.log_sigmoid(2 * x[:, 0])
    >>> denoise = classifier(positive)(gaussian(0.0, 1.0))
    >>> print(denoise(jnp.zeros((1, 2)), Level(0.5, 0.5, 0.0)).x0)  # sigma^2 / alpha along the gradient, 1
    [[0.5 0. ]]
    """
    if isinstance(scale, (int, float)) and scale == 0:
        return lambda denoise: denoise

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            prediction = denoise(x, level, cond)
            return shift_by_gradient(prediction, gradient(log_prob, x, level, cond), scale_at(scale, level, x), level)

        return guided

    return transform


def classifier_mean_shift(log_prob: LogProb, solver: Solver, scale: Scale = 1.0) -> Transform:
    """Returns the transform of classifier guidance in its mean-shift form, for `ancestral` and `ddim` with eta > 0.

        x' = (the solver's mean) + s^2 * scale * grad_x log p(y | x, level) + s z

    where s is the standard deviation of the solver's noise (fixed or learned). Dhariwal & Nichol 2021,
    https://arxiv.org/abs/2105.05233, algorithm 1, with the gradient at x as in their code. It is the epsilon form with
    a scale that depends on the step; for `ancestral` with fixed_small the factor is coef_x of the posterior, which
    tends to 1 for small steps. The last step, to sigma = 0, draws no noise and is not guided.

    Args:
      log_prob: as for `classifier`.
      solver: the solver that the guided denoiser is sampled with, a table.
      scale: as for `classifier`.

    Raises:
      ValueError: if the solver uses more than one network evaluation per step, draws no noise, or visits a level twice;
        when called, if its variance is learned and the prediction has no var_frac.

    >>> from diffusers_fn import grids, oracles, solvers
    >>> solver = solvers.ancestral(grids.karras(20))
    >>> guided = classifier_mean_shift(lambda x, level: jnp.sum(2 * x, axis=1), solver)(oracles.gaussian(0.0, 1.0))
    >>> guided(jnp.ones((1, 1)), grids.karras(20)[-1]).x0.round(4)  # the last step
    Array([[1.]], dtype=float32)
    """
    rows = one_step_rows(solver)
    if rows.noise is None:
        raise ValueError(
            "the mean-shift form is proportional to the variance of the solver's noise, and this solver draws none: "
            "use `classifier`, the epsilon form"
        )
    fixed = scale_on_rows(rows, rows.noise**2 / shift_per_gradient(rows))
    log_range = None if rows.noise_range is None else scale_on_rows(rows, 2 * rows.noise_range)

    def transform(denoise: Denoiser) -> Denoiser:
        def guided(x: jax.Array, level: Level, cond: Any = None) -> Prediction:
            prediction = denoise(x, level, cond)
            strength = expand(fixed(level), x) * scale_at(scale, level, x)
            if log_range is not None:
                if prediction.var_frac is None:
                    raise ValueError(
                        "the solver's variance is learned, but the denoiser's prediction has var_frac None: use a "
                        "variance of fixed_small or fixed_large"
                    )
                strength = strength * jnp.exp(prediction.var_frac * expand(log_range(level), x))
            return shift_by_gradient(prediction, gradient(log_prob, x, level, cond), strength, level)

        return guided

    return transform


def class_log_prob(apply: Callable[..., Any], params: Any) -> LogProb:
    """Returns (x, level, cond) -> log p(cond | x) [B] in nats, the log-softmax of a network's logits.

    Args:
      apply: (params, x, t) -> logits [B, K], such as `backbones.Classifier(...).apply`.
      params: its parameters.

    Raises:
      ValueError: when called, if cond is None or a class label (not traced) lies outside 0 ... K - 1.

    >>> log_prob = class_log_prob(lambda params, x, t: x, None)
    >>> log_prob(jnp.array([[0.0, 200.0]]), Level(0.8, 0.6, 0.0), jnp.array([0]))
    Array([-200.], dtype=float32)
    """

    def log_prob(x: jax.Array, level: Level, cond: Any = None) -> jax.Array:
        if cond is None:
            raise ValueError("classifier guidance needs cond, the class labels [B]; got None")
        logits = apply(params, x, level.t)
        num_classes = logits.shape[-1]
        known = concrete(cond)
        if known is not None and not np.all((known >= 0) & (known < num_classes)):
            raise ValueError(f"class labels must lie in 0 ... {num_classes - 1}, the classifier's classes; got {known}")
        log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        labels = jnp.broadcast_to(jnp.asarray(cond), x.shape[:1])
        return jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]

    return log_prob


def gradient(log_prob: LogProb, x: jax.Array, level: Level, cond: Any) -> jax.Array:
    """Returns grad_x log p(y | x), [B, ...].

    It is the gradient of the sum over the batch, which is each example's own gradient.

    >>> gradient(lambda x, level: -0.5 * x[:, 0] ** 2, jnp.full((2, 1), 3.0), Level(0.8, 0.6, 0.0), None).tolist()
    [[-3.0], [-3.0]]
    """
    arguments = (level,) if cond is None else (level, cond)
    return jax.grad(lambda x: jnp.sum(log_prob(x, *arguments)))(x)
