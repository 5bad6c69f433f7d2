"""Default settings of `experiments.benchmark`.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --config=experiments/benchmarks/config.py:quick --output=runs/quick
    python -m experiments.benchmark --config.sections=networks,samplers --config.peer_python=/opt/torch/bin/python

    python -m experiments.benchmark --config.sections=networks --config.networks.networks="('unet',)"

Variants: `full` (the default), `quick` (few rounds, batch 8 only), `tiny` (networks of a few parameters, for tests).
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, pick

__all__ = ["VARIANTS", "get_config"]

VARIANTS = {
    "full": {},
    "quick": {
        "rounds": 3,
        "networks": {"batches": (8,)},
        "scaling": {"steps": (10, 1000), "depths": (2, 6), "batches": (1, 8)},
        "data": {"batches": (8,)},
    },
    "tiny": {
        "rounds": 2,
        "turn_seconds": 0.0,
        "networks": {"networks": ("tiny_unet",), "batches": (2,)},
        "samplers": {"shape": (2, 8, 8, 3), "steps": 20, "network": "tiny_unet", "batch": 2, "network_steps": 5},
        "scaling": {"steps": (2, 4), "depths": (1, 2), "batches": (1, 2), "cached_network": "tiny_unet"},
        "data": {"network": "tiny_unet", "batches": (2,), "num_examples": 20},
        "scans": {"networks": ("tiny_unet",), "batches": (2,)},
        "recompilations": {"calls": 3, "batch": 2, "max_steps": 4},
        "memory": {"stable_diffusion": False, "network": "tiny_unet", "train_batch": 1, "steps": 2},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the settings of a variant."""
    config = ConfigDict()
    config.sections = (
        "networks,samplers,scaling,data,scans,recompilations,memory,startup"  # comma-separated, measured in this order
    )
    config.rounds = 7  # turns per contender
    config.turn_seconds = 0.2  # work that is faster than this is repeated to fill a turn
    config.tolerance = 1e-3  # largest relative difference of outputs that may be compared
    config.timeout_s = 900.0  # longest wait for one answer of a contender, compilation included
    config.peer_python = ""  # comma-separated interpreters that have torch, diffusers or artifex; "" is this one

    config.networks = ConfigDict()
    config.networks.networks = ("unet", "dit", "uvit")
    config.networks.batches = (1, 8, 32)
    config.networks.work = ("forward", "train")
    config.networks.torch_compile = False  # needs a C++ compiler, and minutes per comparison

    config.samplers = ConfigDict()
    config.samplers.shape = (4, 32, 32, 3)  # shape of the samples where the network is 0.1 x
    config.samplers.steps = 1000
    config.samplers.network = "unet"  # the network of the last comparison, with its batch and number of steps
    config.samplers.batch = 4
    config.samplers.network_steps = 50

    config.scaling = ConfigDict()
    config.scaling.network = "dit"
    config.scaling.steps = (10, 100, 1000)
    config.scaling.depths = (2, 6, 12)
    config.scaling.batches = (1, 8, 32)
    config.scaling.cached_network = "unet"  # its training step is compiled with an empty and with a full cache
    config.scaling.cached_batch = 8

    config.data = ConfigDict()
    config.data.network = "unet"  # the network whose training consumes the batches
    config.data.batches = (8, 32)
    config.data.num_examples = 50_000

    config.scans = ConfigDict()
    config.scans.networks = ("small_unet", "unet", "dit", "uvit")
    config.scans.batches = (32, 8, 8, 8)  # batch size of each network
    config.scans.length = 4

    config.recompilations = ConfigDict()
    config.recompilations.calls = 20
    config.recompilations.batch = 8
    config.recompilations.max_steps = 20

    config.memory = ConfigDict()
    config.memory.stable_diffusion = True
    config.memory.network = "dit"
    config.memory.batch = 1
    config.memory.train_batch = 8
    config.memory.steps = 50

    return customise(config, **pick(VARIANTS, arg, "full"))
