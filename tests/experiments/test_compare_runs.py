"""Comparing runs: one picture of their losses, a table of the fields that differ."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusers_fn.from_config.defaults import customise, default_config
from experiments.compare_runs import compare_runs, differences


def run_in(folder, losses, **sections):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(customise(default_config(), **sections).to_dict(), default=list))
    lines = [json.dumps({"step": 10 * (i + 1), "loss": loss}) for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_runs_are_drawn_and_their_differences_listed(tmp_path, capsys):
    first = run_in(tmp_path / "a", [4.0, 2.0, 1.0])
    second = run_in(tmp_path / "b", [3.0, None], training={"learning_rate": 0.5}, data={"shape": (2,)})
    compare_runs([first, second], tmp_path / "out" / "curves.png")
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["a", "1 at 30", "-"] in rows
    assert ["field", "a", "b"] in rows
    assert ["training.learning_rate", "0.001", "0.5"] in rows
    assert ["data.shape", "[8, 8, 1]", "[2]"] in rows
    pixels = np.asarray(Image.open(tmp_path / "out" / "curves.png").convert("RGB")).astype(int)
    blue, orange = pixels[..., 2] - pixels[..., 0], pixels[..., 0] - pixels[..., 2]
    assert (blue > 100).any()
    assert (orange > 100).any()


def test_equal_configs_differ_nowhere():
    config = default_config().to_dict()
    assert differences([config, config]) == []
    assert differences([{"a": 1}, {"b": 1}]) == [("a", "1", "(absent)"), ("b", "(absent)", "1")]


def test_mistakes_name_the_folder(tmp_path):
    run = run_in(tmp_path / "a", [])
    with pytest.raises(ValueError, match="at least two work directories"):
        compare_runs([run], tmp_path / "x.png")
    with pytest.raises(ValueError, match="none holds no run"):
        compare_runs([run, tmp_path / "none"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="none of the runs has a loss yet: a, b"):
        compare_runs([run, run_in(tmp_path / "b", [])], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
