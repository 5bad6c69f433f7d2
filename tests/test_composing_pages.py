"""The scripts of docs/composing run as they are; each compares its numbers with those of one device."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "composing"
SCRIPTS = ["pmap", "shard_map", "sharded_jit"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_agrees_with_one_device(name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")  # raises if a number differs
    sys.modules.pop("small", None)
    printed = capsys.readouterr().out
    assert all(f"{number} differ by at most" in printed for number in ("parameters", "gradient norm", "samples"))


def test_the_page_names_the_scripts_and_they_are_short():
    page = (FOLDER / "README.md").read_text()
    assert all(f"({name}.py)" in page for name in SCRIPTS)
    assert all(len(path.read_text().splitlines()) < 60 for path in FOLDER.glob("*.py"))
