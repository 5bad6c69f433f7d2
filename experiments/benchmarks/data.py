"""Section `data`: how fast batches come, against how fast training takes them; times are of one example."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks import networks
from experiments.benchmarks.work import Contender, Row


def rows(config: ConfigDict) -> Iterator[Row]:
    """Yields a row for each batch size."""
    section = config.data
    for batch in section.batches:
        given = networks.arguments(section.network, batch)
        pipeline = {"shape": given["shape"], "num_examples": section.num_examples, "flip": True}
        yield Row(
            f"an example, batch {batch}",
            (
                Contender("pipeline alone", "experiments.benchmarks.jax_data:batches", pipeline),
                Contender(
                    f"training of {section.network}",
                    "experiments.benchmarks.jax_networks:train",
                    {**given, "of_an_example": True},
                ),
            ),
            same=(),
            rate="examples/s",
            prepare=networks.saved(section.network),
        )
