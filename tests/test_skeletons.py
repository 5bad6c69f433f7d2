"""The skeletons of docs/how_to_add.md run as they are."""

import pathlib
import runpy

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "skeletons"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_skeleton_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")  # each checks its own claims
    assert capsys.readouterr().out


def test_the_page_names_every_skeleton():
    page = (FOLDER.parent / "how_to_add.md").read_text()
    assert [path.name for path in FOLDER.glob("*.py") if f"skeletons/{path.name}" not in page] == []
