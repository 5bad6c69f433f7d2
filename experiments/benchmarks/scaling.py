"""Section `scaling`: compilation time and temporary memory by steps, depth and batch, and with a full cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.benchmarks.work import Comparison, Contender

__all__ = ["MODULE", "comparisons"]

MODULE = "experiments.benchmarks.jax_compilation"


def comparisons(config: ConfigDict) -> Iterator[Comparison]:
    """Yields one comparison per size that varies, and one of a training step with an empty and with a full cache."""
    section = config.scaling
    name, depths = section.network, {depth: {"num_layers": depth} for depth in section.depths}
    few = depths[section.depths[0]]
    yield _comparison(
        f"DDIM of {name}, {section.depths[0]} blocks, by steps",
        "sample",
        {f"{steps} steps": {"name": name, "batch": 4, "steps": steps, "changes": few} for steps in section.steps},
    )
    yield _comparison(
        f"training step of {name}, batch 8, by depth",
        "train",
        {f"{depth} blocks": {"name": name, "batch": 8, "changes": changes} for depth, changes in depths.items()},
    )
    for kind in ("train", "forward"):
        yield _comparison(
            f"{'training step' if kind == 'train' else kind} of {name}, {section.depths[0]} blocks, by batch",
            kind,
            {f"batch {batch}": {"name": name, "batch": batch, "changes": few} for batch in section.batches},
        )
    # One after the other on one cache folder: the first contender fills it, the second reads it.
    cached = {
        "JAX_COMPILATION_CACHE_DIR": f"compilations_{section.cached_network}",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    kwargs = {"name": section.cached_network, "batch": section.cached_batch}
    yield Comparison(
        f"training step of {section.cached_network}, batch {section.cached_batch}, compiled",
        tuple(Contender(when, f"{MODULE}:train", kwargs, env=cached) for when in ("cold", "from the cache")),
        timed=False,
    )


def _comparison(title: str, function: str, kwargs: dict[str, dict[str, Any]]) -> Comparison:
    contenders = tuple(Contender(name, f"{MODULE}:{function}", each) for name, each in kwargs.items())
    return Comparison(title, contenders, timed=False)
