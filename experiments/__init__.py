"""Binaries, run from a clone with `python -m experiments.NAME`, and the files that they need."""

import importlib.util
import re
import sys

# Top-level modules of the extra `experiments` in pyproject.toml.
_EXTRA = ("grain", "matplotlib", "orbax", "PIL", "sklearn", "scipy", "tensorboardX", "tqdm")


def _check_extra(arguments: list[str]) -> None:
    """Raises SystemExit, naming the extra to install, if `python -m experiments.NAME` would not find its modules."""
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if re.fullmatch(r"experiments\.\w+", module) and missing:
        raise SystemExit(f"error: {module} needs {', '.join(missing)}: pip install -e '.[experiments]'")


_check_extra(sys.orig_argv)
