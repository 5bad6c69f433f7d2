"""Encodes a data set with a trained autoencoder, so that training on the latents does not run the encoder.

    python -m experiments.encode --workdir=runs/autoencoder
    python -m experiments.train --config=configs/latent.py --workdir=runs/latent \\
        --config.latent.autoencoder_workdir=runs/autoencoder --config.latent.cache=runs/autoencoder/latents

Writes the folder --output, by default WORKDIR/latents, with shards of the arrays `mean` and `logvar` [N, ...] of the
training data, unscaled and in their order, and `labels` if any; `heldout_mean`, `heldout_logvar` and `heldout_labels`,
unless nothing is held out; and `latents.json` with `step`, `params` and `checksum` of the autoencoder's parameters: see
`experiments.latent_shards`. At most one shard is in memory. Each training step draws new latents from mean and logvar.
To train on the means alone, without the autoencoder, use --config.data.name=arrays --config.data.path=FOLDER
--config.data.images_key=mean --config.data.normalize=False.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

import diffusers_fn as dfn
from experiments import data, over_devices, processes, runs, states, trained
from experiments.latent_shards import latent_writer
from experiments.orbax_checkpoints import checksum

__all__ = ["encode", "main"]


def encode(
    config: ConfigDict, workdir: Path, *, output: Path | None = None, batch_size: int = 500, params: str = "ema"
) -> Path:
    """Writes the latents of both splits, by the parameters of the newest checkpoint; returns the folder's path.

    Args:
      config: config of an autoencoder run (task "autoencoder").
      workdir: its work directory.
      output: the folder; WORKDIR/latents by default.
      batch_size: number of examples that are encoded at a time.
      params: which parameters, see `states.choose_params`. Training in latents uses the averaged ones ("ema"), and
        refuses a folder of others.

    Raises:
      ValueError: if it is not an autoencoder run, or has no checkpoint, or the data do not fit it.
    """
    if config.task != "autoencoder":
        raise ValueError(f"config.task is {config.task!r}: only runs of the task 'autoencoder' can encode data")
    splits = ("train", "heldout") if data.has_heldout(config.data) else ("train",)
    datasets = {split: data.load(runs.data_seed(config), split) for split in splits}
    runs.check_data_fits(config, datasets["train"])
    autoencoder = dfn.build_autoencoder(config)
    step, state = states.load_state(config, workdir, states.state_like(config, autoencoder.init))
    chosen = states.choose_params(config, workdir, state, params)
    on_devices, run = over_devices.place_params(config, chosen), jax.jit(autoencoder.encode)
    mesh = over_devices.mesh_of(on_devices)

    def coded(split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dataset = datasets[split]
        starts, quiet = range(0, len(dataset), batch_size), not processes.is_main()
        for start in tqdm(starts, desc=f"encoding {split}", unit="batch", disable=quiet):
            which = np.arange(start, start + batch_size) % len(dataset)  # the last batch is filled up
            images = over_devices.split_rows(data.float_images(dataset, which), mesh)
            mean, logvar = over_devices.first_rows(run(on_devices, images), min(batch_size, len(dataset) - start))
            yield mean, logvar

    output = output or workdir / "latents"
    if processes.is_main():
        with latent_writer(output) as writer:
            for split, dataset in datasets.items():
                writer.write(split, coded(split), dataset.labels)
            writer.finish({"checksum": int(checksum(chosen)), "step": int(step), "params": params})
    else:  # computes its part
        for split in datasets:
            collections.deque(coded(split), maxlen=0)
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
    runs.define_path("output", None, "The folder to write; default: WORKDIR/latents.")
    flags.DEFINE_integer("batch_size", 500, "Number of examples that are encoded at a time.", lower_bound=1)
    trained.define_params_flag()
    runs.run(main)
