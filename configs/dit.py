"""Class-conditional DiT (Peebles and Xie 2022, https://arxiv.org/abs/2212.09748): digits, or ImageNet in latents.

    python -m experiments.train --config=configs/dit.py --workdir=runs/dit

    python -m experiments.train --config=configs/dit.py:xl_2 --workdir=runs/xl_2 --config.data.path=LATENTS.npz

Variant `digits` (the default), 8x8 pixels in patches of 2, 0.7 million parameters, trains in three and a half minutes
on two busy CPU cores. A support vector machine trained on real digits then recovers the class label of 99.8% of the
guided samples (of held-out digits: 98.9%); with parameterization epsilon, after twice the training, of only 41%.

For accelerators, `s_2`, `b_2`, `l_2` and `xl_2`: the published sizes (33, 130, 458 and 675 million parameters) on
latents [32, 32, 4] of 256x256 pixels, an .npz with `images`, float latents times 0.18215, and `labels`. Learning rate,
batch size, EMA (7 million steps, FID 2.27 for `xl_2` with guidance scale 1.5), learned variance (hybrid loss) and
ancestral sampling are the paper's; guidance acts on the first three channels only, as in the authors' code.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

LATENTS = {
    "data": {"name": "arrays", "shape": (32, 32, 4), "num_classes": 1000, "heldout_fraction": 0.01, "normalize": False},
    "sampler": {
        "name": "ancestral",
        "num_inference_steps": 250,
        "cfg_scale": 1.5,
        "cfg_channels": 3,
    },
    "variance": "learned_range",
    "loss": {"objective": "hybrid"},
    "training": {
        "num_steps": 400_000,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "ema_decay": 0.9999,
        "grad_clip": 0.0,
        "sample_every": 10_000,
        "checkpoint_every": 5_000,
    },
    "evaluation": {"batch_size": 50},
}


def size(hidden_size: int, depth: int, num_heads: int) -> dict:
    """Returns the changes of a published size."""
    net = {
        "hidden_size": hidden_size,
        "depth": depth,
        "num_heads": num_heads,
        "learned_variance": True,
    }
    return {**LATENTS, "backbone": {"name": "dit", **net}}


VARIANTS = {
    "digits": {
        "data": {"num_classes": 10},
        "backbone": {
            "name": "dit",
            "hidden_size": 96,
            "depth": 4,
            "num_heads": 4,
        },
        "parameterization": "v",  # gives more weight than epsilon to high noise, where the class matters most
        "sampler": {"name": "dpmpp_2m", "skip_type": "log_snr", "num_inference_steps": 25, "cfg_scale": 1.5},
        "training": {"num_steps": 2_000, "batch_size": 64, "learning_rate": 2e-3, "ema_decay": 0.995},
    },
    "s_2": size(384, 12, 6),
    "b_2": size(768, 12, 12),
    "l_2": size(1024, 24, 16),
    "xl_2": size(1152, 28, 16),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(default_config(), **pick(VARIANTS, arg, "digits"))
