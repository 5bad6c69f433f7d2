"""What tests that train in their own process need."""

import signal

import pytest


@pytest.fixture(scope="module")
def signal_handlers():
    """Training takes the signals; they are given back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
