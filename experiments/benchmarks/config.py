"""What `experiments.benchmark` measures.

    python -m experiments.benchmark --output=runs/benchmark
    python -m experiments.benchmark --config=experiments/benchmarks/config.py:quick --output=runs/quick
    python -m experiments.benchmark --config.sections=networks,samplers --config.peer_python=/opt/torch/bin/python

Variants: `full` (the default), `quick` (few rounds, batch 8 alone), `tiny` (networks of a few parameters, for tests).
"""

from ml_collections import ConfigDict

from configs.default import customise, pick

VARIANTS = {
    "full": {},
    "quick": {"rounds": 3, "networks": {"batches": (8,)}},
    "tiny": {
        "rounds": 2,
        "turn_seconds": 0.0,
        "networks": {"networks": ("tiny_unet",), "batches": (2,)},
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = ConfigDict()
    config.sections = "networks"  # in this order, commas between
    config.rounds = 7  # turns of each contender
    config.turn_seconds = 0.2  # quick work is repeated to fill a turn; slow work is done once
    config.tolerance = 1e-3  # relative difference of outputs above which a row is refused
    config.timeout_s = 900.0  # of one answer of a contender, which may be its compilation
    config.peer_python = ""  # the interpreter that has torch and diffusers; "" is this one

    config.networks = ConfigDict()
    config.networks.networks = ("unet", "dit", "uvit")
    config.networks.batches = (1, 8, 32)
    config.networks.work = ("forward", "train")
    config.networks.torch_compile = False  # needs a C++ compiler, and minutes a row
    return customise(config, **pick(VARIANTS, arg, "full"))
