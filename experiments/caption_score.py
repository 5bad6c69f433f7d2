"""Scores a text-conditional model: how often the real picture nearest to a sample is the one that its caption names.

    python -m experiments.caption_score --workdir=runs/emoji --captions=emoji/heldout --reference=emoji/train

For each caption of the folder --captions, --num_samples samples are drawn and compared with all pictures of the same
`kind` (a column of metadata.jsonl; without it all are of one kind) in both folders. The distance is the root mean
square of the pixels' differences; also after an average over blocks of a quarter of the side, which sees colours and
coarse shapes alone. Beside each share stand its standard error over captions and the share of a choice at random. A run
without texts (trained with --config.text.kind=none --config.sampler.cfg_scale=1) draws as many samples, which name
nothing: the figure of a model without text. Writes caption_score.json into the work directory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from diffusers_fn.from_config.conditions import takes_text
from experiments import data, processes, runs, texts, trained
from experiments.files import write_text
from experiments.provenance import provenance

__all__ = ["Pictures", "coarse", "main", "read_pictures", "score", "shares"]


class Pictures(NamedTuple):
    """Real pictures with captions.

    Attributes:
      images: [n, H, W, C] in [-1, 1].
      captions: n texts.
      kinds: [n] texts.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    kinds: np.ndarray


def read_pictures(config: ConfigDict, folder: Path) -> Pictures:
    """Returns the pictures of a folder in the shape of a run's data.

    Raises:
      ValueError: if they cannot be read, or have no captions.
    """
    section = runs.data_seed(config)
    with section.unlocked():
        section.update({"name": "images", "path": str(folder), "heldout_fraction": 0.0, "num_classes": 0})
    dataset = data.load(section, "train")
    if dataset.captions is None or dataset.names is None:
        raise ValueError(f"{folder} has no captions: `text` in metadata.jsonl, or .txt files beside the pictures")
    path, kinds = folder.expanduser() / "metadata.jsonl", {}
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        kinds = {row["file_name"]: str(row.get("kind", "")) for row in rows}
    found = np.array([kinds.get(name, "") for name in dataset.names])
    return Pictures(data.float_images(dataset), tuple(dataset.captions), found)


def coarse(images: np.ndarray) -> np.ndarray:
    """Returns averages over blocks of a quarter of the side, [n, 4, 4, C]; the rest of the pixels is left out.

    >>> coarse(np.ones((1, 8, 9, 3))).shape
    (1, 4, 4, 3)
    """
    n, height, width, channels = images.shape
    h, w = height // 4, width // 4
    blocks: np.ndarray = images[:, : 4 * h, : 4 * w].reshape(n, 4, h, 4, w, channels).mean(axis=(2, 4))
    return blocks


def shares(samples: np.ndarray, wanted: Pictures, others: Pictures) -> dict[str, dict[str, float]]:
    """Returns, by kind and for "all", how often the nearest real picture is the one of the sample's caption.

    Args:
      samples: [n, k, H, W, C], k for each of the n captions.
      wanted: the n pictures that the captions name.
      others: further pictures that a sample might be nearest to.
    """
    hits, by_chance = np.zeros(len(wanted.captions)), np.zeros(len(wanted.captions))
    for kind in np.unique(wanted.kinds):
        rows = np.flatnonzero(wanted.kinds == kind)
        real = np.concatenate([wanted.images[rows], others.images[others.kinds == kind]])
        flat = real.reshape(len(real), -1)
        for position, row in enumerate(rows):
            own = samples[row].reshape(samples.shape[1], -1)
            distance = (flat**2).sum(axis=1) - 2 * own @ flat.T  # and |own|^2, which is the same for all
            hits[row] = (distance.argmin(axis=1) == position).mean()
            by_chance[row] = 1 / len(real)
    members = {str(kind): wanted.kinds == kind for kind in np.unique(wanted.kinds)} | {"all": hits >= 0}
    return {
        kind: {
            "share": float(hits[which].mean()),
            "standard_error": float(hits[which].std() / np.sqrt(which.sum())),
            "chance": float(by_chance[which].mean()),
            "captions": int(which.sum()),
        }
        for kind, which in members.items()
    }


def score(
    config: ConfigDict,
    workdir: Path,
    captions: Path,
    reference: Path,
    *,
    num_samples: int = 8,
    batch_size: int = 64,
    seed: int = 0,
    params: str = "ema",
) -> dict[str, Any]:
    """Draws samples of captions, writes WORKDIR/caption_score.json and returns its content.

    Args:
      config: of the run; the sampler's settings may differ.
      workdir: of the run.
      captions: folder of the pictures and captions to draw.
      reference: folder of the other pictures.
      num_samples: samples of each caption.
      batch_size: samples drawn at a time.
      seed: of the samples.
      params: which parameters, see `states.choose_params`.

    Raises:
      ValueError: if folders and run do not fit.
    """
    wanted, others = read_pictures(config, captions), read_pictures(config, reference)
    number = len(wanted.captions) * num_samples
    cond = None
    if takes_text(config):
        cond = np.repeat(texts.of_prompts(config, workdir, wanted.captions), num_samples, axis=0)
    diffusion, networks, step = trained.load_trained(config, workdir, params)
    drawn = trained.draw_samples(
        diffusion, networks, runs.random_key(config, seed), cond, number, min(batch_size, number)
    )
    assert drawn is not None
    samples = np.clip(np.asarray(drawn), -1, 1).reshape(len(wanted.captions), num_samples, *config.data.shape)
    small = coarse(samples.reshape(number, *config.data.shape)).reshape(*samples.shape[:2], 4, 4, -1)
    found: dict[str, Any] = {
        "pixels": shares(samples, wanted, others),
        "coarse": shares(small, *(each._replace(images=coarse(each.images)) for each in (wanted, others))),
    }
    about = provenance(config, workdir, step, params) | {"seed": seed, "num_samples": num_samples}
    if processes.is_main():
        write_text(workdir / "caption_score.json", json.dumps({**about, **found}, indent=2) + "\n")
        print(_table(found, step))
    return found


def _table(found: dict[str, Any], step: int) -> str:
    rows = [f"{'':8}{'kind':10}{'captions':>9}{'nearest':>9}{'+-':>7}{'chance':>8}   (step {step})"]
    for space, by_kind in found.items():
        for kind, of in by_kind.items():
            numbers = f"{of['captions']:9}{of['share']:9.3f}{of['standard_error']:7.3f}{of['chance']:8.3f}"
            rows.append(f"{space:8}{kind or 'one':10}{numbers}")
    return "\n".join(rows)


def main(config: ConfigDict, workdir: Path) -> None:
    """Calls `score` with the flags of the command line."""
    given = flags.FLAGS
    for name in ("captions", "reference"):
        if getattr(given, name) is None:
            raise ValueError(f"--{name} is missing: a folder of pictures with captions")
    score(
        config,
        workdir,
        given.captions,
        given.reference,
        num_samples=given.num_samples,
        batch_size=given.batch_size,
        seed=given.seed,
        params=given.params,
    )


if __name__ == "__main__":
    runs.define_flags()
    runs.define_path("captions", None, "Folder of the captions to draw, and of the pictures that they name.")
    runs.define_path("reference", None, "Folder of the other pictures, such as those of the training.")
    flags.DEFINE_integer("num_samples", 8, "Samples of each caption.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 64, "Samples drawn at a time; it does not change them.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed of the samples.", lower_bound=0)
    trained.define_params_flag()
    runs.run(main)
