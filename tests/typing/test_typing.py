"""What mypy --strict finds in a user's files, with this package installed beside them."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "diffusers_fn"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """{file name: the numbers of the lines with an error}, and the whole output of mypy."""
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (installed,) = (folder / "env").glob("lib/python*/site-packages")
    shutil.copytree(PACKAGE, installed / "diffusers_fn")
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    files = [shutil.copy(HERE / name, folder) for name in ("user_file.py", "mistakes.py")]
    interpreter = ["--python-executable", folder / "env" / "bin" / "python"]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", *interpreter, *files]
    output = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500).stdout
    found = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error", output, re.MULTILINE)
    assert {name for name, _ in found} <= {"user_file.py", "mistakes.py"}, output
    return {
        file: {int(line) for name, line in found if name == file} for file in ("user_file.py", "mistakes.py")
    }, output


@pytest.mark.long
def test_a_users_file_is_clean(errors):
    lines, output = errors
    assert lines["user_file.py"] == set(), output
    assert (
        len(set(re.findall(r"\b(?:dfn|grids|solvers|guidance|losses|oracles|likelihood|backbones)\.\w+\(", source())))
        > 20
    )


@pytest.mark.long
def test_every_mistake_is_found_and_nothing_else(errors):
    lines, output = errors
    text = (HERE / "mistakes.py").read_text().splitlines()
    marked = {number for number, line in enumerate(text, start=1) if line.endswith("# mistake")}
    assert len(marked) > 50
    assert lines["mistakes.py"] == marked, output


def source():
    return (HERE / "user_file.py").read_text()
