"""Encodes a data set with a trained autoencoder, once, so that training on its latents need not run the encoder.

    python -m experiments.encode --config=configs/autoencoder.py --workdir=runs/autoencoder
    python -m experiments.train --config=configs/latent.py --workdir=runs/latent \\
        --config.latent.autoencoder_workdir=runs/autoencoder --config.latent.cache=runs/autoencoder/latents.npz

Writes --output, by default WORKDIR/latents.npz: `mean` and `logvar` [N, ...] of the training data in their order, not
scaled, and `labels` where there are some; `heldout_mean`, `heldout_logvar` and `heldout_labels`, unless
data.heldout_fraction is 0; `checksum`, of the autoencoder. All of it has to fit into memory. Each training step draws
latents anew from mean and logvar. A network on latents without this autoencoder reads the means alone:
--config.data.name=arrays --config.data.images_key=mean --config.data.normalize=False.
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
from experiments import data, runs
from experiments.checkpoints import checksum
from experiments.files import write_atomically


def encode(config: ConfigDict, workdir: Path, *, output: Path | None = None, batch_size: int = 500) -> Path:
    """Returns the file that it writes: the latents of both splits by the averaged parameters of the newest checkpoint.

    Args:
      config, workdir: of a run of the task "autoencoder".
      output: the .npz file; WORKDIR/latents.npz by default.
      batch_size: how many examples at once.

    Raises:
      ValueError: if the run is none of an autoencoder, or has no checkpoint, or the data do not fit it.
    """
    if config.task != "autoencoder":
        raise ValueError(f"config.task is {config.task!r}: only runs of the task 'autoencoder' encode")
    splits = {"": "train", "heldout_": "heldout"}
    if config.data.heldout_fraction == 0 and config.data.name != "idx":  # which has files of its own for it
        del splits["heldout_"]
    datasets = {prefix: data.load(runs.data_seed(config), split) for prefix, split in splits.items()}
    runs.check_data_fits(config, datasets[""])
    autoencoder = dfn.build_autoencoder(config)
    step, state = runs.load_state(config, workdir, runs.state_like(config, autoencoder.init))
    params = jax.device_put(state.ema)
    run = jax.jit(autoencoder.encode)

    arrays: dict[str, Any] = {"checksum": np.int64(checksum(state.ema))}
    for prefix, dataset in datasets.items():
        parts = []
        for start in tqdm(range(0, len(dataset), batch_size), desc=f"encoding {splits[prefix]}", unit="batch"):
            chosen = np.arange(start, start + batch_size) % len(dataset)  # one shape, one compilation
            coded = run(params, data.float_images(dataset, chosen))
            parts.append([np.asarray(part)[: len(dataset) - start] for part in coded])
        arrays[f"{prefix}mean"], arrays[f"{prefix}logvar"] = (np.concatenate(each) for each in zip(*parts))
        if dataset.labels is not None:
            arrays[f"{prefix}labels"] = dataset.labels
    output = output or workdir / "latents.npz"
    write_atomically(output, lambda file: np.savez(file, **arrays))
    shape = " x ".join(map(str, autoencoder.latent_shape))
    counts = " + ".join(str(len(dataset)) for dataset in datasets.values())
    print(f"{counts} latents of {shape} at step {step}: {output}")
    return output


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `encode` with the command line's flags."""
    given = flags.FLAGS
    encode(config, workdir, output=Path(given.output) if given.output else None, batch_size=given.batch_size)


if __name__ == "__main__":
    runs.define_flags()
    flags.DEFINE_string("output", None, "The .npz file; default: WORKDIR/latents.npz.")
    flags.DEFINE_integer("batch_size", 500, "How many examples at once.", lower_bound=1)
    runs.run(main)
