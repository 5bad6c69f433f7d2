"""The command line: --help, --list_fields, --workdir alone, changes, locks, mistakes; runs of the user's own."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.lock import lock
from experiments.workdir import read_config

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "docs" / "skeletons" / "own_run"
TINY = (
    "--config.backbone.width=8",
    "--config.training.num_steps=10",
    "--config.training.batch_size=16",
    "--config.training.warmup_steps=2",
    "--config.sampler.num_inference_steps=3",
    "--config.data.num_examples=100",
)


@pytest.fixture(scope="module")
def run(command):
    """Returns run(binary, *arguments, code=0) -> output; what is imported for one run is forgotten after it."""

    def run(binary, *arguments, code=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", list(sys.path))
            output = command(binary, *arguments, code=code)
        for name in [name for name in sys.modules if name.partition(".")[0] == "own_run"]:
            del sys.modules[name]
        assert "Traceback" not in output
        assert "ml_collections" not in output
        return output

    return run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A folder with a copy of the skeleton `own_run` and its work directory `run`; tests only read it."""
    folder = tmp_path_factory.mktemp("mine")
    shutil.copytree(OWN, folder / "own_run")
    run("train", f"--config={folder / 'own_run' / 'config.py'}", f"--workdir={folder / 'run'}", *TINY)
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A work directory of its own for tests that change it."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_of_ones_own_is_sampled_with_its_work_directory_alone(run, trained, copy):
    run("sample", f"--workdir={copy}", "--num_samples=6", "--config.sampler.name=heun")
    arrays = np.load(copy / "sampled" / "samples.npz")
    assert arrays["samples"].shape == (6, 2)
    assert arrays["labels"].tolist() == [0, 1, 2] * 2
    assert np.isfinite(arrays["samples"]).all()
    config = read_config(copy)
    assert (config.backbone.name, config.backbone.width, config.sampler.name) == ("own_run.nets:MyNet", 8, "ddim")


def test_a_network_that_is_gone_is_named(run, copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("own_run.nets", "gone_away.nets"))
    output = run("sample", f"--workdir={copy}", code=1)
    assert "config.backbone.name: 'gone_away.nets:MyNet': there is no module 'gone_away'" in output
    assert "PYTHONPATH" in output


def test_a_finished_run_is_extended_by_flag(run, copy):
    longer = ("--config.training.num_steps=14", "--config.training.learning_rate=0.0002")
    before = contents(copy)
    output = run("train", f"--workdir={copy}", *longer, code=1)
    assert "training.learning_rate: 0.001 there, 0.0002 here; training.num_steps: 10 there, 14 here" in output
    assert "--allow_changes" in output
    assert contents(copy) == before

    output = run("train", f"--workdir={copy}", *longer, "--allow_changes")
    assert "changed from step 10 on: training.learning_rate: 0.001 there, 0.0002 here" in output
    assert "resuming at step 10 of 14" in output
    assert (copy / "checkpoints" / "14").is_dir()
    (entry,) = [json.loads(line) for line in (copy / "changes.jsonl").read_text().splitlines()]
    assert entry["changes"]["training.num_steps"] == [10, 14]
    assert len((copy / "versions.jsonl").read_text().splitlines()) == 2
    assert "done" in run("train", f"--workdir={copy}")  # the change is part of the run


def test_a_second_process_ends_in_one_line_and_changes_nothing(run, copy):
    before = contents(copy)
    with lock(copy):
        output = run("train", f"--workdir={copy}", code=1)
        assert "is in use: process" in output
        run("sample", f"--workdir={copy}", f"--output={copy.parent / 'out'}", "--num_samples=2")  # needs no lock
    assert contents(copy) == before


def test_other_data_are_refused(run, copy):
    output = run("train", f"--workdir={copy}", "--config.data.num_examples=90", "--allow_changes")
    assert "training and" in output
    assert "changed from step 10 on" in output
    assert run("train", f"--workdir={copy}", "--config.data.num_examples=100", code=1).count("error: ") == 1


def test_help_shows_what_the_binary_has(run):
    output = run("sample", "--help")
    assert output.startswith("Draws samples from a trained model.")
    for text in ("--config: ", "--workdir: ", "--num_samples: ", "--labels: ", "--list_fields prints every field"):
        assert text in output
    assert "--logtostderr" not in output
    assert max(len(line) for line in output.splitlines()) <= 120


def test_the_list_of_fields_has_the_values_of_file_and_command_line(run, copy):
    output = run("train", "--list_fields")
    assert "--config.training.num_steps=10000 " in output
    output = run("train", f"--config={OWN / 'config.py'}", "--list_fields", "--config.training.num_steps=7")
    assert "--config.training.num_steps=7 " in output
    assert "--config.backbone.width=128 " in output
    assert "features of the two hidden layers." in output
    assert "--config.backbone.width=8 " in run("sample", f"--workdir={copy}", "--list_fields")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --config=FILE.py, the experiment, and --workdir=FOLDER; or --workdir alone"),
        (("--config=configs/nothing_here.py", "--config.training.num_steps=3"), "no file configs/nothing_here.py"),
        ((f"--config={OWN / 'config.py'}",), "--workdir is missing"),
        (("--workdir=NEW",), "NEW holds no run: train first, with --config=FILE.py and this --workdir"),
        (("--workdir=NEW", "--workdir=OTHER"), "--workdir was given 2 times"),
        (("--workdir=",), "a path is needed"),
        (("--workdir=NEW", "extra"), "unexpected argument 'extra': options are written --name=value"),
        (("--wrkdir=NEW",), "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (
            (f"--config={OWN / 'config.py'}", "--workdir=NEW", "--config.training.num_step", "3"),
            "did you mean config.tr",
        ),
        ((f"--config={OWN / 'config.py'}", "--workdir=NEW", "--config.seed", "x"), "config.seed must be of type int"),
        ((f"--config={OWN / 'config.py'}", "--workdir=NEW", "--init_from=nowhere"), "--init_from: there is no nowhere"),
    ],
)
def test_mistakes_end_in_one_line_that_leads_on(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    output = run("train", *arguments, code=1)
    assert message in output
    assert output.count("error: ") == 1
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_home_is_expanded_in_flags(run, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(trained))
    monkeypatch.chdir(tmp_path)
    run("sample", "--workdir=~/run", "--num_samples=2", f"--output={tmp_path / 'out'}")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_config_is_named_by_every_binary(run, copy, text):
    (copy / "config.json").write_text(text)
    for binary in ("train", "sample"):
        assert f"{copy / 'config.json'} is damaged (" in run(binary, f"--workdir={copy}", code=1)
