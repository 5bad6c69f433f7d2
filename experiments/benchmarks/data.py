"""Section `data`: how fast batches are produced, against how fast training consumes them; times are per example."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.work import Comparison, Contender

__all__ = ["comparisons"]


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields one comparison per batch size."""
    section = config.data
    for batch in section.batches:
        arguments = networks.arguments(section.network, batch)
        pipeline = {"shape": arguments["shape"], "num_examples": section.num_examples, "flip": True}
        yield Comparison(
            f"one example, batch {batch}",
            (
                Contender("pipeline alone", "experiments.benchmarks.jax_data:batches", pipeline),
                Contender(
                    f"training of {section.network}",
                    "experiments.benchmarks.jax_networks:train",
                    {**arguments, "per_example": True},
                ),
            ),
            same=(),
            rate="examples/s",
            prepare=networks.saved(section.network),
        )
