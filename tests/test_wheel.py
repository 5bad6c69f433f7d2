"""The wheel: it holds this package alone, and works beside a user's own `configs` and `experiments`."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

USE = """
import configs.mine, experiments.mine
assert configs.mine.OWNER == experiments.mine.OWNER == "user"

import diffusers_fn, jax
import diffusers_fn as dfn
assert diffusers_fn.__file__.startswith(TARGET), diffusers_fn.__file__
model = dfn.build(dfn.default_config())
params = jax.eval_shape(model.init, jax.random.key(0))
samples = jax.eval_shape(lambda params, key: model.sample(params, key, 2), params, jax.random.key(1))
assert samples.x0.shape == (2, 8, 8, 1)
"""


def readme_lines():
    """The README's first block of Python, the ten lines."""
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the files that git tracks."""
    try:
        setuptools = int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        setuptools = 0
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        if name.startswith(("diffusers_fn/", "configs/", "experiments/")) or "/" not in name:
            copy = source / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, source]
    if setuptools >= 77:
        run(*build, "--no-build-isolation")
    else:  # pip installs it for the build
        done = subprocess.run(build, capture_output=True, text=True, timeout=600)
        output = done.stdout + done.stderr
        if done.returncode and "No matching distribution found for setuptools" in output:
            pytest.skip("setuptools >= 77, which builds the wheel, is neither installed nor to be downloaded")
        assert done.returncode == 0, output
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.long
def test_the_wheel_holds_the_package_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {re.sub(r"^diffusers_fn-.*\.dist-info$", "dist-info", name.split("/")[0]) for name in names} == {
        "diffusers_fn",
        "dist-info",
    }
    assert {"diffusers_fn/from_config/defaults.py", "diffusers_fn/py.typed"} <= set(names)


@pytest.mark.long
def test_it_leaves_a_users_packages_of_the_same_names_alone(wheel, tmp_path):
    target, folder = tmp_path / "target", tmp_path / "project"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    for name in ("configs", "experiments"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
        (folder / name / "mine.py").write_text('OWNER = "user"\n')
    (folder / "use.py").write_text(f"TARGET = {str(target)!r}\n" + USE + readme_lines())
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    run(sys.executable, "use.py", cwd=folder, env={**env, "PYTHONPATH": str(target)})
