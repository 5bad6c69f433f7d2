"""Without the extra `experiments`, a binary names it in one line."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

import experiments

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
MODULES = {
    "array-record": "array_record",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "protobuf": "google",
    "scikit-learn": "sklearn",
}


def test_a_binary_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("grain", "tqdm") else True)
    with pytest.raises(SystemExit, match=r"experiments.train needs grain, tqdm: pip install -e '.\[experiments\]'"):
        experiments._check_extra(["python", "-m", "experiments.train", "--workdir=x"])
    experiments._check_extra(["python", "-m", "experiments.benchmarks.worker"])  # a peer's environment may lack them
    experiments._check_extra(["python", "script.py"])
    experiments._check_extra(["python", "-m", "experiments.run_exported"])  # needs neither of them


def test_the_extra_of_exported_samplers(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else True)
    for binary in ("export", "run_exported"):
        with pytest.raises(
            SystemExit, match=rf"experiments.{binary} needs .*safetensors: pip install -e '.\[export\]'"
        ):
            experiments._check_extra(["python", "-m", f"experiments.{binary}"])
    experiments._check_extra(["python", "-m", "experiments.train"])


def test_nothing_is_missing_here():
    experiments._check_extra(["python", "-m", "experiments.train"])


def test_the_modules_are_those_of_the_extra():
    for extra, modules in (("experiments", experiments._EXTRA), ("export", experiments._EXPORT)):
        requirements = PROJECT["project"]["optional-dependencies"][extra]
        names = {requirement.split(">=")[0] for requirement in requirements}
        assert {MODULES.get(name, name) for name in names} == set(modules)
