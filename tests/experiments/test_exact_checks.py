"""The figures of exact_checks on few levels are near the exact ones; the picture is written."""

import numpy as np
import pytest

from experiments import exact_checks


@pytest.mark.long
def test_the_figures_are_near_the_exact_answers(tmp_path):
    figures = {
        "spread": exact_checks.spreads([50, 400]),
        "likelihood": exact_checks.likelihoods([80]),
        "classes": exact_checks.class_shares(128),
        "posterior": exact_checks.posterior_errors([30]),
    }
    for name, values in figures["spread"].items():
        if name != "levels":
            assert abs(values[1] / 0.5 - 1) < 0.01
            assert abs(values[1] - 0.5) < abs(values[0] - 0.5)
    assert max(v for name, values in figures["likelihood"].items() if name != "levels" for v in values) < 1e-4
    assert np.ptp(list(figures["classes"].values())) < 1e-9
    assert figures["posterior"]["PiGDM"][0] < 0.05 < figures["posterior"]["DPS"][0]
    exact_checks.draw(figures, tmp_path / "exact.png")
    assert (tmp_path / "exact.png").stat().st_size > 10_000
