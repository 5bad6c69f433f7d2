"""Shared test set-up: eight devices, quick compilation, strict rank promotion, float64, recorded noise."""

import contextlib
import gc
import os
from importlib.metadata import version

os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
if version("jax").startswith("0.10."):  # its fusion emitters dominate the compilation of small programs
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from golden_files import ReplayedNoise

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000)  # tracing creates many small objects, and each collection scans all of them


@pytest.fixture
def x64():
    """Runs the test in double precision, so that an error in a formula is larger than rounding."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Makes XLA compile quickly: most tests run a program only once or twice, so its compilation dominates."""
    with compiling(quickly=True):
        yield


@pytest.fixture
def quick_runs():
    """Makes XLA optimize fully, for tests that run longer than they compile or need two programs to round alike."""
    with compiling(quickly=False):
        yield


@contextlib.contextmanager
def compiling(quickly):
    """Turns most of XLA's optimizations off (quickly) or on."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def replayed_noise(monkeypatch):
    """Replaces jax.random.normal by a function that returns recorded draws."""
    return ReplayedNoise(monkeypatch)
