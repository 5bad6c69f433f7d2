"""Encodes a data set with a trained autoencoder, so that training on the latents does not run the encoder.

    python -m experiments.encode --workdir=runs/autoencoder
    python -m experiments.train --config=configs/latent.py --workdir=runs/latent \\
        --config.latent.autoencoder_workdir=runs/autoencoder --config.latent.cache=runs/autoencoder/latents.npz

Writes --output, by default WORKDIR/latents.npz, with the arrays `mean` and `logvar` [N, ...] of the training data,
unscaled and in their order, and `labels` if any; `heldout_mean`, `heldout_logvar` and `heldout_labels`, unless
data.heldout_fraction is 0; and `step`, `params` and `checksum` of the autoencoder's parameters. All arrays must fit
into memory. Each training step draws new latents from mean and logvar. To train on the means alone, without the
autoencoder, use --config.data.name=arrays --config.data.images_key=mean --config.data.normalize=False.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from experiments import data, over_devices, processes, runs, states, trained
from experiments.checkpoints import checksum
from experiments.files import write_atomically

__all__ = ["encode", "main"]


def encode(
    config: ConfigDict, workdir: Path, *, output: Path | None = None, batch_size: int = 500, params: str = "ema"
) -> Path:
    """Writes the latents of both splits, by the parameters of the newest checkpoint; returns the file's path.

    Args:
      config: config of an autoencoder run (task "autoencoder").
      workdir: its work directory.
      output: the .npz file; WORKDIR/latents.npz by default.
      batch_size: number of examples that are encoded at a time.
      params: which parameters, see `states.choose_params`. Training in latents uses the averaged ones ("ema"), and
        refuses a file of others.

    Raises:
      ValueError: if it is not an autoencoder run, or has no checkpoint, or the data do not fit it.
    """
    if config.task != "autoencoder":
        raise ValueError(f"config.task is {config.task!r}: only runs of the task 'autoencoder' can encode data")
    splits = {"": "train", "heldout_": "heldout"}
    if not data.has_heldout(config.data):
        del splits["heldout_"]
    datasets = {prefix: data.load(runs.data_seed(config), split) for prefix, split in splits.items()}
    runs.check_data_fits(config, datasets[""])
    autoencoder = dfn.build_autoencoder(config)
    step, state = states.load_state(config, workdir, states.state_like(config, autoencoder.init))
    chosen = states.choose_params(config, workdir, state, params)
    on_devices, run = over_devices.place_params(config, chosen), jax.jit(autoencoder.encode)
    mesh = over_devices.mesh_of(on_devices)

    arrays: dict[str, Any] = {"checksum": np.int64(checksum(chosen)), "step": np.int64(step), "params": np.str_(params)}
    for prefix, dataset in datasets.items():
        parts = []
        starts, quiet = range(0, len(dataset), batch_size), not processes.is_main()
        for start in tqdm(starts, desc=f"encoding {splits[prefix]}", unit="batch", disable=quiet):
            which = np.arange(start, start + batch_size) % len(dataset)  # the last batch is filled up
            images = over_devices.split_rows(data.float_images(dataset, which), mesh)
            parts.append(over_devices.first_rows(run(on_devices, images), min(batch_size, len(dataset) - start)))
        arrays[f"{prefix}mean"], arrays[f"{prefix}logvar"] = (np.concatenate(each) for each in zip(*parts))
        if dataset.labels is not None:
            arrays[f"{prefix}labels"] = dataset.labels
    output = output or workdir / "latents.npz"
    if processes.is_main():
        write_atomically(output, lambda file: np.savez(file, **arrays))
    shape = " x ".join(map(str, autoencoder.latent_shape))
    counts = " + ".join(str(len(dataset)) for dataset in datasets.values())
    print(f"{counts} latents of {shape} at step {step}: {output}")
    return output


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `encode` with the flags of the command line."""
    given = flags.FLAGS
    encode(config, workdir, output=given.output, batch_size=given.batch_size, params=given.params)


if __name__ == "__main__":
    runs.define_flags()
    runs.define_path("output", None, "The .npz file to write; default: WORKDIR/latents.npz.")
    flags.DEFINE_integer("batch_size", 500, "Number of examples that are encoded at a time.", lower_bound=1)
    trained.define_params_flag()
    runs.run(main)
