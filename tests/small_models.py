"""A model that compiles in no time, and parameters for it: points in the plane."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusers_fn.from_config.defaults import customise, default_config


def small_config(num_classes=0, **sections):
    """A config that compiles in no time: points in the plane."""
    config = customise(
        default_config(),
        data={"shape": (2,), "num_classes": num_classes},
        backbone={"hidden_size": 8, "depth": 1, "embedding_dim": 8},
        sampler={"num_inference_steps": 4},
    )
    return customise(config, **sections)


def some_params(init):
    """Parameters without zeros: a zero-initialised last layer hides what lies before it. Drawn without a compiler."""
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda p: jnp.asarray(0.5 * rng.standard_normal(p.shape), p.dtype), shapes)
