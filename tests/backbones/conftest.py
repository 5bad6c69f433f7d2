"""A network runs once or twice in a test: what costs is its compilation, so XLA compiles quickly here."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
