"""The exported sampler: one file for three platforms, the samples of the sampler within this process, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

import diffusers_fn as dfn
from diffusers_fn.from_config.defaults import customise
from experiments.sample import sample
from experiments.train import train

pytest.importorskip("flatbuffers")
pytest.importorskip("safetensors")

from experiments import run_exported
from experiments.export import export

pytestmark = pytest.mark.usefixtures("signal_handlers")

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns (config, workdir) of a guided model of points in three classes."""
    root = tmp_path_factory.mktemp("run")
    points = np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32)
    np.savez(root / "points.npz", images=points, labels=np.arange(48) % 3, class_names=NAMES)
    config = customise(
        dfn.default_config(),
        data={"name": "arrays", "path": str(root / "points.npz"), "shape": (2,), "normalize": False, "num_classes": 3},
        backbone={"hidden_size": 8, "depth": 1},
        loss={"label_dropout": 0.1},
        training={"num_steps": 2, "warmup_steps": 0, "batch_size": 16, "sample_every": 0, "checkpoint_every": 2},
        sampler={"name": "ancestral", "num_inference_steps": 3, "clip_denoised": False, "cfg_scale": 2.5},
    )
    train(config, root / "run")
    return config, root / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Returns the folder of the exported sampler."""
    folder = tmp_path_factory.mktemp("exported")
    export(*run, folder, max_steps=6)
    return folder


def drawn(folder):
    with np.load(folder / "samples.npz") as held:
        return dict(held)


@pytest.mark.parametrize("steps", [3, 5])
def test_its_samples_are_those_of_the_sampler_within_the_process(run, exported, tmp_path, steps, capsys):
    config, workdir = run
    config = customise(config.copy_and_resolve_references(), sampler={"num_inference_steps": steps, "cfg_scale": 4.0})
    options = {"num_samples": 7, "batch_size": 3, "seed": 5}
    sample(config, workdir, output=tmp_path / "here", labels=["bee", "0"], **options)
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += [f"--model={exported}", "--labels=bee,0", f"--num_steps={steps}", "--guidance_scale=4"]
    run_exported.main([*flags, f"--output={tmp_path / 'there'}"])
    assert "batch 3 of 3" in capsys.readouterr().err
    here, there = drawn(tmp_path / "here"), drawn(tmp_path / "there")
    assert sorted(here) == sorted(there)
    for name in here:
        np.testing.assert_array_equal(there[name], here[name])
    assert np.std(here["samples"]) > 0.1


def test_one_program_for_three_platforms_and_every_number_of_steps(exported):
    program = jax.export.deserialize(bytearray((exported / "sampler.jax").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    model = run_exported.load(exported)
    found = [run_exported.draw(model, 2, labels=np.array([0, 1]), num_steps=steps) for steps in range(1, 7)]
    assert model.call._cache_size() == 1
    assert len({each.tobytes() for each in found}) == 6
    unlabelled = run_exported.draw(model, 2, labels=np.array([3, 3]))
    assert np.abs(unlabelled - found[2]).max() > 1e-4


def test_parameters_are_arguments_and_lie_beside_the_program(run, exported):
    model = run_exported.load(exported)
    assert sum(each.size for each in model.params.values()) > 100
    zeros = {name: np.zeros_like(each) for name, each in model.params.items()}
    samples = [run_exported.draw(model._replace(params=each), 1, labels=np.zeros(1)) for each in (model.params, zeros)]
    assert np.abs(samples[0] - samples[1]).max() > 1e-6


def test_the_description(exported):
    about = json.loads((exported / "sampler.json").read_text())
    assert about["inputs"] == {
        "keys": {"shape": ["num_samples", 2], "dtype": "uint32", "generator": "threefry2x32"},
        "labels": {"shape": ["num_samples"], "dtype": "int32"},
        "guidance_scale": {"shape": [], "dtype": "float32", "default": 2.5},
        "num_steps": {"shape": [], "dtype": "int32", "min": 1, "max": 6, "default": 3},
    }
    assert about["sample"] == {"shape": [2], "dtype": "float32", "range": None}
    assert about["class_names"] == NAMES
    assert (about["num_classes"], about["null_label"], about["step"], about["min_jax"]) == (3, 3, 2, jax.__version__)


def test_mistakes_end_in_one_line(run, exported, tmp_path):
    for flags, message in (
        (["--num_steps=7"], r"num_steps must lie in 1 \.\.\. 6; got 7"),
        (["--classifier_scale=2"], "no input classifier_scale; it has guidance_scale, num_steps"),
        (["--labels=dog"], "the classes are ant, bee, cat"),
        ([f"--model={tmp_path}"], "holds no exported sampler"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            run_exported.main([f"--model={exported}", "--num_samples=1", *flags])
    with pytest.raises(
        ValueError, match=r"--max_steps must be at least config\.sampler\.num_inference_steps, 3; got 2"
    ):
        export(*run, tmp_path / "exported", max_steps=2)


def test_the_reader_in_the_documentation(exported):
    page = (ROOT / "docs" / "exporting.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 11
    code = code.replace("exported/digits", str(exported)).replace("np.int32(50)", "np.int32(5)")
    found = {}
    exec(code, found)
    labels = np.arange(16) % len(NAMES)
    wanted = run_exported.draw(run_exported.load(exported), 16, labels=labels, guidance_scale=3, num_steps=5)
    np.testing.assert_array_equal(found["images"], wanted)


@pytest.mark.long
def test_the_reader_needs_no_model_code(exported, tmp_path):
    forbidden = ("diffusers_fn", "flax", "optax", "ml_collections", "matplotlib", "tqdm")
    script = (
        "import sys; from experiments import run_exported; "
        f"run_exported.main(['--model={exported}', '--num_samples=2', '--output={tmp_path}']); "
        f"assert not set({forbidden}) & set(sys.modules), sorted(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert drawn(tmp_path)["samples"].shape == (2, 2)
