"""What every file of figures states: which parameters of which run they are of, and on which data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusers_fn.from_config.derived import data_range
from experiments import workdir as workdirs

__all__ = ["overrides", "provenance"]


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
    return {
        "step": step,
        "params": params,
        "overrides": overrides(config, workdir),
        "data_range": data_range(config),
        "data": workdirs.recorded_data(workdir),
    }


def overrides(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Returns {"section.field": value} of the fields that differ from the config that the run was trained with."""
    held = workdirs.read_config(workdir).to_dict()
    return _differing(
        json.loads(json.dumps(held, default=list)), json.loads(json.dumps(config.to_dict(), default=list))
    )


def _differing(held: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        if isinstance(value, dict):
            found |= _differing(held.get(name, {}), value, f"{prefix}{name}.")
        elif name in held and held[name] != value:
            found[prefix + name] = value
    return found
