"""Section `scans`: the cost of a step as the body of a scan, against the same step on its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.work import Comparison, Contender

__all__ = ["CLASSIFIERS", "comparisons"]

# Fields of the classifier that guides each network.
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "unet": {"channels": 64, "channel_multipliers": [1, 2, 2], "attention_resolutions": [16, 8], "num_res_blocks": 2},
    "small_unet": {"channels": 32, "channel_multipliers": [1, 2], "attention_resolutions": [], "num_res_blocks": 1},
    "tiny_unet": {
        "channels": 8,
        "channel_multipliers": [1, 1],
        "attention_resolutions": [],
        "num_res_blocks": 1,
        "head_dim": 8,
        "norm_groups": 4,
    },
}


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields per network a training step and, for a UNet, a sampler step with classifier guidance."""
    section = config.scans
    for name, batch in zip(section.networks, section.batches, strict=True):
        kwargs = {**networks.arguments(name, batch), "length": section.length}
        yield _comparison("training step", "train", name, batch, kwargs, "alone")
        if name not in CLASSIFIERS:
            continue
        size = kwargs["shape"][1]
        classifier = {"num_classes": 10, "image_size": size, **CLASSIFIERS[name]}
        del kwargs["num_classes"]
        yield _comparison(
            "guided step", "guided", name, batch, {**kwargs, "classifier": classifier}, "its two parts alone"
        )


def _comparison(what: str, function: str, name: str, batch: int, kwargs: dict[str, Any], alone: str) -> Comparison:
    target = f"experiments.benchmarks.jax_scans:{function}"
    contenders = (
        Contender(f"in a scan of {kwargs['length']}", target, {**kwargs, "in_scan": True}),
        Contender(alone, target, {**kwargs, "in_scan": False}),
    )
    return Comparison(f"{what}, {name}, batch {batch}", contenders, prepare=networks.saved(name))
