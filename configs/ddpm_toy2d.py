"""Unconditional DDPM of a point cloud in the plane, with a small MLP.

    python -m experiments.train --config=configs/ddpm_toy2d.py --workdir=runs/toy2d

Trains in a minute on a laptop. Variants are the point clouds: `moons` (the default), `eight_gaussians`, `checkerboard`,
`swiss_roll`, `rings`, `two_spirals`.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

VARIANTS = {
    name: {"data": {"variant": name}}
    for name in ("moons", "eight_gaussians", "checkerboard", "swiss_roll", "rings", "two_spirals")
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = customise(
        default_config(),
        data={"name": "toy2d", "shape": (2,), "num_classes": 0},
        backbone={"name": "mlp", "hidden_size": 128, "depth": 3, "embedding_dim": 64},
        sampler={"skip_type": "log_snr", "num_inference_steps": 100},
        training={"num_steps": 6_000, "batch_size": 512},
    )
    return customise(config, **pick(VARIANTS, arg, "moons"))
