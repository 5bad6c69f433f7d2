"""A run with a network and data of your own, without a line in this repository.

Copy this folder, under a name of your own, to any place. In the clone of this repository, or with PYTHONPATH set to it:

    python -m experiments.train --config=/path/to/own_run/config.py --workdir=runs/own
    python -m experiments.sample --workdir=runs/own

A name "package.module:name" in a config is imported. Found are modules beside the config file, the package that the
file is part of (the folders with an __init__.py), and whatever else Python finds. A loss, a solver and a guidance are
named the same way: `loss.objective`, `sampler.name`, `sampler.guidance`, see experiments/own.py. What to expect: three
clouds of points, in a quarter of a minute on a CPU.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config


def get_config() -> ConfigDict:
    return customise(
        default_config(),
        backbone={"name": "own_run.nets:MyNet", "width": 128, "num_classes": 3},  # others keep the module's defaults
        data={"name": "own_run.data:load", "shape": (2,), "num_examples": 3_000},
        sampler={"num_inference_steps": 20},
        training={"num_steps": 2_000, "batch_size": 128},
    )
