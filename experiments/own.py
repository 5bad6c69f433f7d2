"""Functions and networks of the user's own, which a config names as "package.module:name".

    config.backbone.name = "my_package.nets:MyNet"     # a linen module, or a BackboneEntry
    config.loss.objective = "my_package.losses:mine"   # (config.loss, ObjectiveInputs) -> loss, or an ObjectiveEntry
    config.sampler.name = "my_package.solvers:mine"    # levels -> Solver, or a SolverEntry
    config.sampler.guidance = "my_package.guiding:mine"  # (config.sampler, inputs, scale) -> transform, or an entry
    config.data.name = "my_package.data:load"          # see `experiments.data.load`

Importable is what `python -m` can import, what lies beside the config file, and the package that the file is part of.
docs/skeletons/own_run has a run with a network and data of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from diffusers_fn.from_config import tables as names
from diffusers_fn.from_config.defaults import default_backbone
from diffusers_fn.from_config.network import DERIVED

_FIELDS = (
    ("backbone", "name"),
    ("loss", "objective"),
    ("sampler", "name"),
    ("sampler", "guidance"),
    ("data", "name"),
)

__all__ = ["add_folder", "complete", "folders", "import_name", "is_own", "tables", "use_folder"]


def is_own(name: Any) -> bool:
    """Returns whether a name in a config is that of an object to import, "package.module:name".

    >>> is_own("my_package.nets:MyNet"), is_own("mlp")
    (True, False)
    """
    return isinstance(name, str) and ":" in name


def import_name(name: str) -> Any:
    """Returns the object that "package.module:name" names.

    Raises:
      ValueError: if the text has another form, the module cannot be imported, or it has no such object.

    >>> import_name("math:sqrt")(4.0)
    2.0
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ValueError(f"{name!r} is not the name of an object: write 'package.module:name'")
    here = os.getcwd()
    if not {"", here} & set(sys.path):  # as with python -m
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{name!r} cannot be imported: {error}") from error
        raise ValueError(
            f"{name!r}: there is no module {error.name!r} beside the config file, in the current folder or on "
            f"PYTHONPATH: correct the name, or set PYTHONPATH to the folder that holds {error.name.partition('.')[0]}"
        ) from error
    except Exception as error:
        raise ValueError(f"{name!r} cannot be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name!r}: the module {module_name} ({found.__file__}) has no {attribute!r}")
        found = getattr(found, part)
    return found


def add_folder(config_file: Path) -> list[str]:
    """Makes importable what lies beside a config file, and the package that the file is part of; returns the folders.

    They come last in the order of the search, so that they hide no installed package.
    """
    folder = config_file.expanduser().resolve().parent
    package = folder
    while (package / "__init__.py").exists():
        package = package.parent
    added = [str(each) for each in dict.fromkeys((folder, package))]
    for each in added:
        use_folder(each)
    return added


def use_folder(folder: str) -> None:
    """Makes the modules and packages in a folder importable, unless one of the same name is found before."""
    if folder not in sys.path:
        sys.path.append(folder)


def folders(config: ConfigDict) -> list[str]:
    """Returns the folders from which the objects of the user's own in a config are imported."""
    found = []
    for section, field in _FIELDS:
        name = config.get(section, {}).get(field)
        if is_own(name):
            import_name(name)
            module_name = name.partition(":")[0]
            file = sys.modules[module_name].__file__
            if file is not None:
                path = Path(file).resolve()
                depth = module_name.count(".") + (path.stem == "__init__")
                found.append(str(path.parents[depth]))
    return list(dict.fromkeys(found))


def tables(config: ConfigDict) -> names.Tables:
    """Returns the tables for `dfn.build`: the library's, and the objects that the config names as "module:name".

    Raises:
      ValueError: if such an object cannot be imported or is of another kind.

    >>> from diffusers_fn import default_config
    >>> tables(default_config()) == names.Tables()
    True
    """
    sampler = config.sampler
    return names.Tables(
        backbones=_extended("backbone.name", config.backbone.name, names.BACKBONES, _backbone),
        objectives=_extended("loss.objective", config.loss.objective, names.OBJECTIVES, _objective),
        guidances=_extended("sampler.guidance", sampler.guidance, names.GUIDANCES, _guidance),
        solvers=_extended("sampler.name", sampler.name, names.SOLVERS, _solver),
    )


def complete(config: ConfigDict) -> ConfigDict:
    """Returns the config; a network of the user's own gets all fields of its module, at their defaults if not set."""
    name = config.backbone.name
    if is_own(name):
        section = default_backbone(name, tables(config).backbones)
        for field, value in config.backbone.items():
            if field in section or field not in DERIVED:  # a network may lack the fields that follow from the data
                section[field] = value
        with config.unlocked():
            config.backbone = section
    return config


def _extended(
    field: str, name: Any, table: Mapping[str, Any], entry_of: Callable[[Any], Any | None]
) -> Mapping[str, Any]:
    """The table, with an entry for the name if it is that of an object to import."""
    if not is_own(name):
        return table
    try:
        found = import_name(name)
    except ValueError as error:
        raise ValueError(f"config.{field}: {error}") from error
    entry = entry_of(found)
    if entry is None:
        raise ValueError(f"config.{field} is {name!r}, which is {found!r}: {entry_of.__doc__}")
    return {**table, name: entry}


def _backbone(found: Any) -> Any | None:
    """a linen module class or a BackboneEntry is needed"""
    if isinstance(found, type) and issubclass(found, nn.Module):
        return names.BackboneEntry(found)
    return found if isinstance(found, names.BackboneEntry) else None


def _objective(found: Any) -> Any | None:
    """a function (config.loss, ObjectiveInputs) -> loss or an ObjectiveEntry is needed"""
    if isinstance(found, names.ObjectiveEntry):
        return found
    return names.ObjectiveEntry(found) if callable(found) else None


def _guidance(found: Any) -> Any | None:
    """a function (config.sampler, GuidanceInputs, scale) -> transform or a GuidanceEntry is needed"""
    if isinstance(found, names.GuidanceEntry):
        return found
    return names.GuidanceEntry(found) if callable(found) else None


def _solver(found: Any) -> Any | None:
    """a function levels -> Solver or a SolverEntry is needed"""
    if isinstance(found, names.SolverEntry):
        return found
    return names.levels_only(found) if callable(found) else None
