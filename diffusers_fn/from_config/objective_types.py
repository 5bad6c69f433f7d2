"""The types that objectives share: what they are made from, what they are, and their entry of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusers_fn.from_config.choices import Requirement
from diffusers_fn.from_config.noise import Noise
from diffusers_fn.levels import Level
from diffusers_fn.parameterizations import Parameterization
from diffusers_fn.variances import Variance

__all__ = ["Loss", "Metrics", "ObjectiveEntry", "ObjectiveInputs"]

Metrics = dict[str, jax.Array]  # name -> [B]
Loss = Callable[..., tuple[jax.Array, Metrics]]  # (params, key, batch) -> (loss [B], metrics)


class ObjectiveInputs(NamedTuple):
    """The model that an objective trains.

    Attributes:
      apply: (params, x, t, cond, *, x0, key, train) -> network output.
      noise: the noise levels.
      parameterization: what the network predicts.
      variance: of a reverse step.
      sigma_data: standard deviation of the data.
      num_classes: 0 for an unconditional model; the label num_classes is the null class.
      self_conditioned: whether `apply` takes the previous estimate x0.
      sample_level: (key, B) -> Level[B], the noise levels of a training batch.
      read_batch: (key, batch) -> (x0 [B, ...], cond): the examples, and their labels after label dropout.
    """

    apply: Callable[..., jax.Array]
    noise: Noise
    parameterization: Parameterization
    variance: Variance
    sigma_data: float
    num_classes: int
    self_conditioned: bool
    sample_level: Callable[[jax.Array, int], Level]
    read_batch: Callable[[jax.Array, Mapping[str, jax.Array]], tuple[jax.Array, Any]]


class ObjectiveEntry(NamedTuple):
    """An objective that config.loss.objective names.

    Attributes:
      make: (config.loss, inputs) -> the loss; raises ValueError for numbers that it does not allow.
      requires: values that other fields of the config must have.
      learned_variance: whether it trains a learned variance, and needs one.
      two_times: whether its network takes two times (`backbones.TwoTimeConditioned`), as `few_step.jump` needs.
      self_conditioning: whether it trains a network on its previous estimate of x0.
      denoiser: whether its network predicts x0 at every noise level, as likelihoods and inversion need.
    """

    make: Callable[[ConfigDict, ObjectiveInputs], Loss]
    requires: tuple[Requirement, ...] = ()
    learned_variance: bool = False
    two_times: bool = False
    self_conditioning: bool = False
    denoiser: bool = True
