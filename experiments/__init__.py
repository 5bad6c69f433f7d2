"""Binaries, run from a clone with `python -m experiments.NAME`, and the files that they need."""

import importlib.util
import re
import sys

# Top-level modules of the extras in pyproject.toml.
_EXTRA = (
    "array_record",
    "google",
    "grain",
    "matplotlib",
    "msgpack",
    "orbax",
    "PIL",
    "sklearn",
    "scipy",
    "tensorboardX",
    "tqdm",
)
_EXPORT = ("flatbuffers", "PIL", "safetensors")


def _check_extra(arguments: list[str]) -> None:
    """Raises SystemExit, naming the extra to install, if `python -m experiments.NAME` would not find its modules."""
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else ""
    extras: dict[str, tuple[str, ...]] = {"experiments": _EXTRA} if module != "experiments.run_exported" else {}
    extras |= {"export": _EXPORT} if module in ("experiments.export", "experiments.run_exported") else {}
    for extra, names in extras.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        if re.fullmatch(r"experiments\.\w+", module) and missing:
            raise SystemExit(f"error: {module} needs {', '.join(missing)}: pip install -e '.[{extra}]'")


_check_extra(sys.orig_argv)
