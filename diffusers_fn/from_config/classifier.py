"""From a config with task "classifier" to a noise-aware classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusers_fn import _random, _threefry
from diffusers_fn._arrays import split_like, whole
from diffusers_fn._types import ArrayLike
from diffusers_fn.from_config import derived
from diffusers_fn.from_config.batches import check_images, check_labels
from diffusers_fn.from_config.network import check_time_label, init_params, make_classifier
from diffusers_fn.from_config.noise import make_noise
from diffusers_fn.from_config.signatures import BatchLoss, Config
from diffusers_fn.from_config.time_samplers import make_level_sampler
from diffusers_fn.guidance import class_log_prob
from diffusers_fn.levels import Level, add_noise

__all__ = ["NoisyClassifier", "build_classifier"]


class NoisyClassifier(NamedTuple):
    """A classifier of noisy data as pure functions.

    Attributes:
      init: (key) -> params.
      apply: (params, x, t, *, key=None, train=False) -> logits [B, num_classes].
      loss: (params, key, batch) -> (cross-entropy [B], {"accuracy": [B]}) at random noise levels.
      log_prob: (params) -> (x, level, cond) -> log p(cond | x) [B], for `guidance.classifier`.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    loss: BatchLoss
    log_prob: Callable[[Any], Callable[[jax.Array, Level, Any], jax.Array]]


def build_classifier(config: Config) -> NoisyClassifier:
    """Returns the noise-aware classifier that a config describes: backbone, noise_schedule, loss.time_sampler.

    Dhariwal & Nichol 2021, https://arxiv.org/abs/2105.05233, section 4.

    Raises:
      ValueError: if a field holds a name or number that is not allowed.

    >>> from diffusers_fn.from_config.defaults import customise, default_config
    >>> net = build_classifier(customise(default_config(), backbone={"name": "mlp_classifier", "num_classes": 10}))
    >>> params = jax.eval_shape(net.init, jax.random.key(0))
    """
    if config.scale_input:
        raise ValueError(
            "config.scale_input is for the networks of task 'diffusion': a classifier takes x unscaled. Set it to False"
        )
    shape = tuple(config.data.shape)
    num_classes = derived.num_classes(config)
    module = make_classifier(config.backbone, shape, num_classes)
    check_time_label(config.backbone, config.noise_schedule.time_label)
    sample_level = make_level_sampler(config.loss, make_noise(config.noise_schedule))

    def init(key: jax.Array) -> Any:
        return init_params(_random.one_key(key), jnp.zeros((1, *shape)), jnp.ones((1,)), module=module)

    def apply(
        params: Any, x: jax.Array, t: ArrayLike, *, key: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        params, t = whole(params, x), split_like(t, x)
        rngs = {} if key is None else {"dropout": _threefry.faster(key)}
        logits = module.apply({"params": params}, x, t, train=train, rngs=rngs)
        assert isinstance(logits, jax.Array)
        return logits

    def loss(params: Any, key: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        time_key, noise_key, dropout_key = _random.split(key, 3)
        x0 = check_images(batch, shape)
        labels = check_labels(batch.get("label"), num_classes, x0.shape[0], allow_null=False)
        level = sample_level(time_key, x0.shape[0])
        x = add_noise(x0, _random.normal(noise_key, x0), level)
        logits = apply(params, x, level.t, key=_random.one_key(dropout_key), train=True)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy, {"accuracy": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)}

    return NoisyClassifier(init, apply, loss, lambda params: class_log_prob(apply, params))
