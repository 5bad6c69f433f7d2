"""Shared by the binaries: data and random numbers of a run; command line and work directory."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from diffusers_fn.from_config import derived
from experiments import data
from experiments.command_line import define_flags, define_path, run, run_with_config, run_without_config
from experiments.own import import_name
from experiments.workdir import open_workdir

__all__ = [
    "PRNG_IMPLS",
    "check_data_fits",
    "data_seed",
    "define_flags",
    "define_path",
    "import_name",
    "open_workdir",
    "random_key",
    "run",
    "run_with_config",
    "run_without_config",
]

PRNG_IMPLS = ("threefry2x32", "rbg", "unsafe_rbg")


def check_data_fits(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises ValueError unless the data set has the shape and the labels that the model is built for."""
    if tuple(config.data.shape) != tuple(dataset.shape):
        raise ValueError(f"config.data.shape is {tuple(config.data.shape)}, but the data have shape {dataset.shape}")
    num_classes = derived.num_classes(config)
    if num_classes and dataset.labels is None:
        raise ValueError(
            "the model is class-conditional, but no labels are read: set config.data.num_classes to the number of "
            "classes of the data, or to 0, and backbone.num_classes to None"
        )
    if num_classes and dataset.num_classes > num_classes:
        raise ValueError(
            f"the data have {dataset.num_classes} classes, the model {num_classes}: set config.data.num_classes"
        )


def data_seed(config: ConfigDict) -> ConfigDict:
    """Returns config.data with the run's seed, which also selects the held-out examples, and its number of classes.

    A network without a field for classes, such as an autoencoder, leaves the number to the data.
    """
    own = config.data.get("num_classes") is None and "num_classes" not in config.backbone
    num_classes = None if own else derived.num_data_classes(config)
    return ConfigDict({**config.data.to_dict(), "seed": config.seed, "num_classes": num_classes})


def random_key(config: ConfigDict, seed: int) -> jax.Array:
    """Returns the key of a seed, for the generator config.prng_impl.

    Raises:
      ValueError: if there is no such generator, or the seed is not an integer of 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"a seed must lie in 0 ... {2**32 - 1}; got {seed}")
    if config.prng_impl not in PRNG_IMPLS:
        raise ValueError(f"config.prng_impl must be one of {', '.join(PRNG_IMPLS)}; got {config.prng_impl!r}")
    return jax.random.key(seed, impl=config.prng_impl)
