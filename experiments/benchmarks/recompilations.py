"""Section `recompilations`: counts the programs compiled while settings change that should need no compilation."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks.work import Comparison, Contender

__all__ = ["comparisons"]


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields the only comparison."""
    arguments = config.recompilations.to_dict()
    contender = Contender("diffusers_fn", "experiments.benchmarks.jax_session:session", arguments)
    yield Comparison("eta, guidance scale, padded steps, labels, keys and batches change", (contender,), timed=False)
