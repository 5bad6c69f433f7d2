"""The overhead script: what it compares computes the same samples."""

import pytest

from experiments import overhead


@pytest.mark.slow
def test_every_candidate_is_measured_on_the_same_samples():
    figures = overhead.measure(num_steps=5, repeats=2)  # raises where results differ
    assert set(figures) == {"ddim", "euler", "dpmpp_2m"}
    assert all(figure["hand"] > 0 for figure in figures.values())
    assert figures["ddim"]["shortest"] > 0
