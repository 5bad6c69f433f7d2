"""Section `startup`: importing the package, against importing what it depends on."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks.work import Contender, Row

DEPENDENCIES = ["jax", "flax.linen", "optax", "chex", "ml_collections", "absl.app", "numpy"]


def rows(config: ConfigDict) -> Iterator[Row]:
    """Yields the one row."""
    contenders = (
        Contender(name, "experiments.benchmarks.imports:start", {"modules": modules})
        for name, modules in (("diffusers_fn", ["diffusers_fn"]), ("its dependencies", DEPENDENCIES))
    )
    yield Row("python -c import", tuple(contenders))
