"""Shared test set-up: eight devices, quick compilation, strict rank promotion, float64, recorded noise."""

import contextlib
import gc
import os
from importlib.metadata import version

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
if version("jax").startswith("0.10."):  # its emitter of fusions takes two thirds of a small program's compilation
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from golden_files import ReplayedNoise

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000)  # every trace makes many small objects, and looking through all of them takes its time


@pytest.fixture
def x64():
    """Double precision, so that a formula can be told from its rounding."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What a test runs it runs once or twice: the compilation is what costs, so XLA compiles quickly here."""
    with compiling(quickly=True):
        yield


@pytest.fixture
def quick_runs():
    """The other way round, for a test that runs longer than it compiles, or needs two programs to round alike."""
    with compiling(quickly=False):
        yield


@contextlib.contextmanager
def compiling(quickly):
    """XLA leaves most of its optimizations out, or makes them all."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def replayed_noise(monkeypatch):
    """A stand-in for jax.random.normal that returns recorded draws."""
    return ReplayedNoise(monkeypatch)
