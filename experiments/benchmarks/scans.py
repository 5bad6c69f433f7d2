"""Section `scans`: what a step costs as the body of a scan, against the same step alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.work import Contender, Row

# The classifiers that guide, by network.
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


def rows(config: ConfigDict) -> Iterator[Row]:
    """Yields rows for each network: a training step, and for a UNet a sampler's step guided by a classifier."""
    section = config.scans
    for name, batch in zip(section.networks, section.batches, strict=True):
        given = {**networks.arguments(name, batch), "length": section.length}
        yield _row("training step", "train", name, batch, given, "alone")
        if name not in CLASSIFIERS:
            continue
        size = given["shape"][1]
        classifier = {"num_classes": 10, "image_size": size, **CLASSIFIERS[name]}
        del given["num_classes"]
        yield _row("guided step", "guided", name, batch, {**given, "classifier": classifier}, "its two parts alone")


def _row(what: str, function: str, name: str, batch: int, given: dict[str, Any], alone: str) -> Row:
    target = f"experiments.benchmarks.jax_scans:{function}"
    contenders = (
        Contender(f"in a scan of {given['length']}", target, {**given, "in_scan": True}),
        Contender(alone, target, {**given, "in_scan": False}),
    )
    return Row(f"{what}, {name}, batch {batch}", contenders, prepare=networks.saved(name))
