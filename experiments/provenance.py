"""What every file of figures states: which parameters of which run they are of, and on which data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config.derived import data_range

__all__ = ["class_names", "overrides", "provenance"]


def provenance(config: ConfigDict, workdir: Path, step: int, params: str) -> dict[str, Any]:
    """Returns the entries for the JSON file of figures.

    Args:
      config: of the command.
      workdir: of the run.
      step: of the checkpoint.
      params: which parameters, as in --params.

    Returns:
      `step`, `params`, `overrides` (see `overrides`), `data_range` (null for data of any range), and `data`, the counts
      and checksums that were recorded in training, or null.
    """
    recorded = workdir / "data.json"
    return {
        "step": step,
        "params": params,
        "overrides": overrides(config, workdir),
        "data_range": data_range(config),
        "data": json.loads(recorded.read_text()) if recorded.exists() else None,
    }


def overrides(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Returns {"section.field": value} of the fields that differ from the config that the run was trained with."""
    held = json.loads((workdir / "config.json").read_text())
    return _differing(held, json.loads(json.dumps(config.to_dict(), default=list)))


def class_names(workdir: Path) -> tuple[str, ...] | None:
    """Returns the names of the classes of the data that a run was trained on; None if they have none."""
    recorded = workdir / "data.json"
    names = json.loads(recorded.read_text()).get("class_names") if recorded.exists() else None
    return tuple(map(str, names)) if names else None


def _differing(held: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        if isinstance(value, dict):
            found |= _differing(held.get(name, {}), value, f"{prefix}{name}.")
        elif name in held and held[name] != value:
            found[prefix + name] = value
    return found
