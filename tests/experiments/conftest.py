"""Fixtures of the experiments' tests: command lines, restored signal handlers, a temporary compilation cache."""

import contextlib
import io
import logging
import runpy
import signal
import sys
import warnings

import jax
import pytest
from absl import app, flags


@pytest.fixture(scope="module")
def signal_handlers():
    """Restores the signal handlers that training replaces."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def command(signal_handlers):
    """Returns command(binary, *arguments, code=0) -> output: `python -m experiments.BINARY` within this process.

    Python and JAX are not started again, which takes seconds. All else is as on the command line: flags are parsed
    anew, and the output of a mistake is the message that the process would end with.
    """
    app.define_help_flags()

    def run(binary, *arguments, code=0):
        output, defined = io.StringIO(), set(flags.FLAGS)
        handler, logger = logging.StreamHandler(output), logging.getLogger("absl")
        cache = jax.config.jax_enable_compilation_cache
        logger.addHandler(handler)
        try:
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                patch.setattr(sys, "argv", [binary, *map(str, arguments), "--compilation_cache=off"])
                warnings.filterwarnings("ignore", "'experiments.* found in sys.modules", RuntimeWarning)
                with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                    try:
                        runpy.run_module(f"experiments.{binary}", run_name="__main__", alter_sys=True)
                        ended = 0
                    except SystemExit as end:  # a message is printed, and stands for the code 1
                        ended = (end.code or 0) if not isinstance(end.code, str) else 1
                        output.write(end.code if isinstance(end.code, str) else "")
        finally:
            logger.removeHandler(handler)
            jax.config.update("jax_enable_compilation_cache", cache)
            flags.FLAGS.unparse_flags()
            for name in set(flags.FLAGS) - defined:  # all but those of libraries imported on the way
                if name.startswith("config") or "experiments" in flags.FLAGS.find_module_defining_flag(name):
                    delattr(flags.FLAGS, name)
        assert ended == code, output.getvalue()
        return output.getvalue()

    return run


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Makes processes that tests start compile quickly, and keep their programs outside the user's cache."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        # JAX reads these when it is imported, so they have no effect on this process.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield folder
