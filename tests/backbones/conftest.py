"""Every test of a backbone compiles quickly."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(quick_compilation):
    """See `quick_compilation`."""
