"""What tests of the experiments need: signals given back, and a compilation cache that is not the user's."""

import signal

import pytest


@pytest.fixture(scope="module")
def signal_handlers():
    """Training takes the signals; they are given back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Binaries that tests start compile quickly, and keep their programs here and not in the user's home."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        # JAX reads these when it is imported: not in this process.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield folder
