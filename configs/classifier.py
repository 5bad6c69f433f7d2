"""Noise-aware classifiers, for classifier guidance (Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233).

    python -m experiments.train --config=configs/classifier.py --workdir=runs/classifier
    python -m experiments.train --config=configs/ddpm_digits.py:unconditional --workdir=runs/unconditional
    python -m experiments.sample --workdir=runs/unconditional \\
        --config.sampler.classifier_workdir=runs/classifier --config.sampler.classifier_scale=2.0

The noise schedule must be that of the guided model. Variants: `digits` (the default), a perceptron on the 64 pixels;
`adm_64`, the classifier of the paper for ImageNet at 64 pixels. The picture shows the accuracy by noise level.
"""

from ml_collections import ConfigDict

from diffusers_fn.from_config.defaults import customise, default_config, pick

VARIANTS = {
    "digits": {
        "backbone": {"name": "mlp_classifier", "num_classes": 10, "dropout": 0.2},
        "training": {"num_steps": 3_000, "batch_size": 128},
    },
    "adm_64": {
        "data": {"name": "images", "shape": (64, 64, 3), "num_classes": 1000, "image_size": 64, "flip": True},
        "backbone": {"name": "classifier", "num_classes": 1000},
        "noise_schedule": {"beta_schedule": "cosine"},
        "training": {
            "num_steps": 300_000,
            "batch_size": 1024,
            "optimizer": "adamw",
            "learning_rate": 3e-4,
            "weight_decay": 0.05,
        },
    },
}


def get_config(arg: str | None = None) -> ConfigDict:
    return customise(customise(default_config(), task="classifier"), **pick(VARIANTS, arg, "digits"))
