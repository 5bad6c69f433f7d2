"""Section `recompilations`: a session that changes what may change, and the programs that it compiles: none."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks.work import Contender, Row


def rows(config: ConfigDict) -> Iterator[Row]:
    """Yields the one row."""
    given = config.recompilations.to_dict()
    contender = Contender("diffusers_fn", "experiments.benchmarks.jax_session:session", given)
    yield Row("eta, guidance scale, padded steps, labels, keys and batches change", (contender,), timed=False)
