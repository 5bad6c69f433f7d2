"""Section `startup`: importing the package, against importing its dependencies alone."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from experiments.benchmarks.work import Comparison, Contender

__all__ = ["DEPENDENCIES", "comparisons"]

DEPENDENCIES = ["jax", "flax.linen", "optax", "chex", "ml_collections", "absl.app", "numpy"]


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields the only comparison."""
    contenders = (
        Contender(name, "experiments.benchmarks.imports:start", {"modules": modules})
        for name, modules in (("diffusers_fn", ["diffusers_fn"]), ("its dependencies", DEPENDENCIES))
    )
    yield Comparison("python -c import", tuple(contenders))
