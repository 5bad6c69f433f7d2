"""Writes the parameters of a run into one safetensors file, without optimizer state or anything else.

    python -m experiments.export_params --workdir=runs/digits --params=ema --output=digits.safetensors

The names are the paths in the tree of parameters ("block_0/kernel"); the metadata hold step, params and config.
A new run starts from it by --init_from=digits.safetensors. In Python

    flat = safetensors.flax.load_file("digits.safetensors")
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    samples = dfn.build(config).sample(params, key, 16)

A network of a published family is written in the names of that family by `dfn.pretrained.save`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import traverse_util

from diffusers_fn.pretrained.safetensors_file import write_safetensors
from experiments import runs
from experiments.files import write_atomically
from experiments.init_from import load_run
from experiments.trained import define_params_flag

__all__ = ["export_params"]


def export_params(workdir: Path, which: str, output: Path) -> None:
    """Writes parameters of the newest checkpoint of a run into a safetensors file, atomically.

    Args:
      workdir: of the run.
      which: "ema", "raw" or "ema:STD", see `states.choose_params`.
      output: the file.

    Raises:
      ValueError: if the file exists already, or the run has no such parameters.
    """
    if output.exists():
        raise ValueError(f"--output={output} exists: give another file")
    config, step, params = load_run(workdir, which)
    flat: dict[str, Any] = {
        name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep="/").items()
    }
    specs = {name: (value.shape, value.dtype) for name, value in flat.items()}
    metadata = {"format": "flax", "step": str(step), "params": which, "config": config.to_json()}
    write_atomically(output, lambda file: write_safetensors(file, specs, flat.items(), metadata))
    print(
        f"{len(flat)} arrays ({sum(each.nbytes for each in flat.values()) / 2**20:.1f} MiB) of step {step} in {output}"
    )


def main() -> None:
    """Calls `export_params` with the flags of the command line."""
    given = flags.FLAGS
    if given.workdir is None or given.output is None:
        raise ValueError("give --workdir=FOLDER, of a run, and --output=FILE.safetensors")
    export_params(given.workdir, given.params, given.output)


if __name__ == "__main__":
    runs.define_path("workdir", None, "Folder of the run.")
    runs.define_path("output", None, "The file to write.")
    define_params_flag()
    runs.run_without_config(main)
