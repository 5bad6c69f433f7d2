"""The figure of solvers: errors against the exact flow and the exact distribution."""

import json

import jax
import numpy as np
import pytest

from diffusers_fn import Level, processes
from experiments import compare_solvers
from experiments.compare_solvers import MEANS, SOLVERS, STDS, WEIGHTS


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch):
    monkeypatch.setattr(compare_solvers, "NUM_SAMPLES", 20_000)


def test_quantiles_are_those_of_the_mixture():
    clean = compare_solvers.mixture_quantiles(Level(1.0, 0.0, 0.0), 20_000)
    assert np.mean(clean) == pytest.approx(WEIGHTS @ MEANS, abs=1e-3)
    variance = WEIGHTS @ (STDS**2 + (MEANS - WEIGHTS @ MEANS) ** 2)
    assert np.var(clean) == pytest.approx(variance, rel=2e-3)
    noisy = compare_solvers.mixture_quantiles(Level(0.6, 0.8, 0.0), 20_000)
    assert np.var(noisy) == pytest.approx(0.36 * variance + 0.64, rel=2e-3)


@pytest.mark.usefixtures("x64")
def test_errors_fall_with_the_order_of_the_solver():
    process = processes.vp()
    for name, slope in (("ddim", 1), ("heun", 2)):
        (n, coarse), (m, fine) = (compare_solvers.flow_error(SOLVERS[name].make, process, size) for size in (60, 120))
        assert (n, m) == ((60, 120) if name == "ddim" else (119, 239))
        assert np.log2(coarse / fine) == pytest.approx(slope, abs=0.2)
    _, coarse = compare_solvers.distribution_error(SOLVERS["ancestral"].make, process, 10)
    _, fine = compare_solvers.distribution_error(SOLVERS["ancestral"].make, process, 100)
    assert fine < 0.3 * coarse


@pytest.mark.long
def test_the_picture_and_its_numbers_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_solvers, "SIZES", (6, 12))
    with jax.enable_x64(True):
        figures = compare_solvers.measure(processes.vp(), ["ddim", "heun", "deis (3)", "ancestral"])
    compare_solvers.draw(tmp_path / "solvers.png", figures)
    assert (tmp_path / "solvers.png").stat().st_size > 10_000
    assert json.loads(json.dumps(figures))["heun"]["evaluations"] == [11, 23]
