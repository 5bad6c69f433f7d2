"""What `experiments.benchmark` measures.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --config=experiments/benchmarks/config.py:quick --output=runs/quick
    python -m experiments.benchmark --config.sections=networks,samplers --config.peer_python=/opt/torch/bin/python

    python -m experiments.benchmark --config.sections=networks --config.networks.networks="('unet',)"

Variants: `full` (the default), `quick` (few rounds, batch 8 alone), `tiny` (networks of a few parameters, for tests).
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, pick

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
    config = ConfigDict()
    config.sections = (
        "networks,samplers,scaling,data,scans,recompilations,memory,startup"  # in this order, commas between
    )
    config.rounds = 7  # turns of each contender
    config.turn_seconds = 0.2  # quick work is repeated to fill a turn; slow work is done once
    config.tolerance = 1e-3  # relative difference of outputs above which a row is refused
    config.timeout_s = 900.0  # of one answer of a contender, which may be its compilation
    config.peer_python = ""  # interpreters that have torch, diffusers, artifex, commas between; "" is this one

    config.networks = ConfigDict()
    config.networks.networks = ("unet", "dit", "uvit")
    config.networks.batches = (1, 8, 32)
    config.networks.work = ("forward", "train")
    config.networks.torch_compile = False  # needs a C++ compiler, and minutes a row

    config.samplers = ConfigDict()
    config.samplers.shape = (4, 32, 32, 3)  # of the samples of a network that is free
    config.samplers.steps = 1000
    config.samplers.network = "unet"  # of the samples of a network that is not
    config.samplers.batch = 4
    config.samplers.network_steps = 50

    config.scaling = ConfigDict()
    config.scaling.network = "dit"
    config.scaling.steps = (10, 100, 1000)
    config.scaling.depths = (2, 6, 12)
    config.scaling.batches = (1, 8, 32)
    config.scaling.cached_network = "unet"  # its training step is compiled cold and from the persistent cache
    config.scaling.cached_batch = 8

    config.data = ConfigDict()
    config.data.network = "unet"  # its training takes the batches
    config.data.batches = (8, 32)
    config.data.num_examples = 50_000

    config.scans = ConfigDict()
    config.scans.networks = ("small_unet", "unet", "dit", "uvit")
    config.scans.batches = (32, 8, 8, 8)  # of each network
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
