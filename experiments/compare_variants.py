"""Trains, samples and scores the variants on digits, and writes one table and one picture.

    python -m experiments.compare_variants --root=runs/variants

Each variant is a config that `experiments.train`, `evaluate`, `sample` and `bits_per_dim` run in ROOT/NAME. Existing
results are kept, so that the same command continues after an interruption. `--only=score_ve,edm` runs some of them.
Writes variants.json, variants.md (a table) and variants.png (one row of samples per variant, one column per class).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import runs
from experiments.files import write_text
from experiments.pictures import save_grid

__all__ = ["VARIANTS", "Variant", "choose", "draw", "main", "read_figures", "run_variant", "table"]


class Variant(NamedTuple):
    """A variant, one line of the table.

    Attributes:
      name: name of its work directory.
      config: FILE.py or FILE.py:variant.
      text: description in the table.
      options: config overrides, in which ROOT stands for the folder of all runs.
      needs: name of a variant that must be trained before.
      bits: whether bits per dimension are measured.
      scored: whether it is sampled and evaluated.
    """

    name: str
    config: str
    text: str
    options: Sequence[str] = ()
    needs: str | None = None
    bits: bool = False
    scored: bool = True


VARIANTS = (
    Variant("ddpm", "ddpm_digits.py", "DDIM, guided classifier-free", bits=True),
    Variant("classifier", "classifier.py", "", scored=False),
    Variant(
        "guided",
        "ddpm_digits.py:unconditional",
        "no labels, guided by a classifier",
        ("--config.sampler.classifier_workdir=ROOT/classifier", "--config.sampler.classifier_scale=2.0"),
        needs="classifier",
    ),
    Variant("learned_variance", "learned_variance.py", "learned variance, hybrid loss", bits=True),
    Variant("score_ve", "score_sde.py:ve", "score SDE, VE", bits=True),
    Variant("score_vp", "score_sde.py:vp", "score SDE, VP", bits=True),
    Variant("score_sub_vp", "score_sde.py:sub_vp", "score SDE, sub-VP", bits=True),
    Variant("edm", "edm.py", "EDM", bits=True),
    Variant("flow", "flow.py", "flow matching", bits=True),
    Variant("autoencoder", "autoencoder.py", "", scored=False),
    Variant(
        "latent",
        "latent.py",
        "latent diffusion",
        ("--config.latent.autoencoder_workdir=ROOT/autoencoder",),
        needs="autoencoder",
    ),
    Variant("dit", "dit.py", "DiT"),
    Variant("uvit", "uvit.py", "U-ViT"),
    Variant("consistency", "few_step.py:consistency", "consistency model, 2 steps"),
    Variant("mean_flow", "few_step.py:mean_flow", "mean flow, 2 steps"),
)


def main() -> None:
    """Runs the commands whose results are missing, then writes the table and the picture."""
    root, chosen = flags.FLAGS.root, choose(flags.FLAGS.only)
    overrides = list(flags.FLAGS.override)
    with tqdm(chosen, unit="variant") as bar:
        for variant in bar:
            bar.set_description(variant.name)
            run_variant(variant, root, overrides)
    figures = {variant.name: read_figures(variant, root) for variant in VARIANTS if (root / variant.name).exists()}
    write_text(root / "variants.json", json.dumps(figures, indent=2) + "\n")
    write_text(root / "variants.md", table(figures))
    draw(figures, root)
    print(table(figures))
    print(f"written to {root / 'variants.md'}, {root / 'variants.json'} and {root / 'variants.png'}")


def choose(only: Sequence[str] | None) -> list[Variant]:
    """Returns the variants to run, in order, including those that they need.

    Raises:
      ValueError: if a name is unknown.
    """
    known = {variant.name: variant for variant in VARIANTS}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"--only must name some of {', '.join(known)}; got {', '.join(unknown)}")
    wanted = set(only or known)
    wanted |= {needed for name in wanted if (needed := known[name].needs)}
    return [variant for variant in VARIANTS if variant.name in wanted]


def run_variant(variant: Variant, root: Path, overrides: Sequence[str] = ()) -> None:
    """Runs the commands of a variant whose results are missing.

    Raises:
      SystemExit: if a command fails; its output is in ROOT/NAME.log.
    """
    workdir = root / variant.name
    root.mkdir(parents=True, exist_ok=True)
    arguments = [f"--config=configs/{variant.config}", f"--workdir={workdir}"]
    arguments += [option.replace("ROOT", str(root)) for option in (*variant.options, *overrides)]
    seconds = root / f"{variant.name}.seconds"
    if not (workdir / "curve.png").exists() or not seconds.exists():
        begin = time.monotonic()
        _call("train", arguments, root / f"{variant.name}.log")
        write_text(seconds, f"{time.monotonic() - begin:.0f}\n")
    if variant.scored:
        if not (workdir / "evaluation.json").exists():
            _call("evaluate", arguments, root / f"{variant.name}.log")
        if not (workdir / "sampled" / "samples.npz").exists():
            _call("sample", [*arguments, "--num_samples=40"], root / f"{variant.name}.log")
    if variant.bits and not (workdir / "bits_per_dim.json").exists():
        _call("bits_per_dim", arguments, root / f"{variant.name}.log")


def _call(binary: str, arguments: Sequence[str], log: Path) -> None:
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-m", f"experiments.{binary}", *arguments], stdout=file, stderr=file)
    if done.returncode:
        last = log.read_text().strip().splitlines()[-2:]
        raise SystemExit(f"experiments.{binary} failed, see {log}: {' '.join(last)}")


def read_figures(variant: Variant, root: Path) -> dict[str, Any]:
    """Returns the results of a variant's commands: {"evaluation": ..., "bits_per_dim": ..., "seconds": ...}."""
    figures: dict[str, Any] = {"text": variant.text, "config": variant.config}
    for name in ("evaluation", "bits_per_dim"):
        path = root / variant.name / f"{name}.json"
        if path.exists():
            figures[name] = json.loads(path.read_text())
    seconds = root / f"{variant.name}.seconds"
    if seconds.exists():
        figures["seconds"] = float(seconds.read_text())
    return figures


def table(figures: dict[str, Any]) -> str:
    """Returns the Markdown table of all variants, with held-out data in the first line."""
    head = "| | `configs/` | training | evaluations | class accuracy | Fréchet | precision | recall | bits/dim |"
    lines = [head, "|---" * 9 + "|"]
    scored = {name: each["evaluation"] for name, each in figures.items() if "evaluation" in each}
    for evaluation in list(scored.values())[:1]:
        lines.append(_row("held-out digits", "", "", "", evaluation, "heldout", ""))
    for name, evaluation in scored.items():
        each = figures[name]
        calls = f"{evaluation['network_evaluations']:g}"
        seconds = f"{each['seconds']:.0f} s" if "seconds" in each else ""
        lines.append(_row(each["text"], f"`{each['config']}`", seconds, calls, evaluation, "samples", _bits(each)))
    return "\n".join(lines) + "\n"


def _row(text: str, config: str, seconds: str, calls: str, evaluation: Any, column: str, bits: str) -> str:
    accuracy = evaluation["class_accuracy"][column] if "class_accuracy" in evaluation else None
    numbers = [evaluation[name][column] for name in ("frechet_distance", "precision", "recall")]
    cells = [text, config, seconds, calls, "" if accuracy is None else f"{100 * accuracy:.1f}%"]
    cells += [f"{number:.2f}" for number in numbers]
    return "| " + " | ".join([*cells, bits]) + " |"


def _bits(each: dict[str, Any]) -> str:
    """Returns the variational bound, if any, and the bits by the probability flow with uniform dequantisation."""
    found = each.get("bits_per_dim", {}).get("bits_per_dim", {})
    return " / ".join(
        f"{name.split(',')[0]} {found[name]['mean']:.2f}" for name in ("bound", "flow, uniform") if name in found
    )


def draw(figures: dict[str, Any], root: Path) -> None:
    """Writes variants.png: one row of samples per variant, in the order of the table, one column per class."""
    rows = []
    for name in figures:
        path = root / name / "sampled" / "samples.npz"
        if path.exists():
            rows.append(np.load(path)["samples"][:20])
    if rows:
        save_grid(root / "variants.png", np.concatenate(rows), columns=20)


if __name__ == "__main__":
    runs.define_path("root", "runs/variants", "Folder of all work directories and of the results.")
    flags.DEFINE_list("only", None, "Comma-separated names of the variants to run; default: all.")
    flags.DEFINE_multi_string("override", [], "A config override such as --config.a.b=value, passed to every command")
    runs.run_without_config(main)
