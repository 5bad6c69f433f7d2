"""Imports of the packages in the extra `text`."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["import_extra"]


def import_extra(name: str) -> ModuleType:
    """Returns a module of the extra `text`.

    Raises:
      ValueError: if it is absent, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"tokenizing needs the package {name}: pip install 'diffusers_fn[text]'") from error
