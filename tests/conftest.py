"""Shared test set-up: eight emulated devices, strict rank promotion, double precision, replayed noise."""

import os

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import jax
import pytest
from golden_files import ReplayedNoise

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision, so that a formula can be told from its rounding."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """A network runs once or twice in a test: what costs is its compilation, so XLA compiles quickly here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def replayed_noise(monkeypatch):
    """A stand-in for jax.random.normal that returns recorded draws."""
    return ReplayedNoise(monkeypatch)
