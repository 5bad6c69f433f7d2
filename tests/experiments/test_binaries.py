"""The command lines, as a user types them: train, kill, resume, sample, evaluate; and what a mistake says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "--config.backbone.hidden_size=16",
    "--config.backbone.depth=1",
    "--config.training.num_steps=60",
    "--config.training.warmup_steps=5",
    "--config.training.batch_size=32",
    "--config.training.checkpoint_every=10",
    "--config.training.log_every=10",
    "--config.training.sample_every=1000",
    "--config.sampler.num_inference_steps=5",
    "--config.evaluation.num_samples=200",
)


def command(binary, config, workdir, *options):
    return [
        sys.executable,
        "-m",
        f"experiments.{binary}",
        f"--config=configs/{config}",
        f"--workdir={workdir}",
        *options,
    ]


def environment(**extra):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**env, "PYTHONPATH": str(ROOT), **extra}


def run(binary, config, workdir, *options, code=0, **extra):
    arguments = command(binary, config, workdir, *SMALL, *options)
    done = subprocess.run(arguments, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def final_parameters(workdir, step=60):
    from experiments.checkpoints import Checkpoints, ocp

    checkpoints = Checkpoints(workdir)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
    restored = checkpoints._manager.restore(step, args=args)
    checkpoints.close()
    return restored.state, restored.meta["checksum"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A work directory whose run was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    output = run("train", "ddpm_digits.py", workdir)
    return workdir, output


@pytest.mark.slow
def test_round_trip_writes_its_figures(trained, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained[0], workdir)
    output = run("round_trip", "ddpm_digits.py", workdir, "--num_images=4", "--sizes=5,8")
    assert "coupled" in output
    figures = json.loads((workdir / "round_trip.json").read_text())["figures"]
    assert figures["coupled"]["rmse"][1] < 1e-3 < figures["ddim"]["rmse"][1]
    assert (workdir / "round_trip.png").stat().st_size > 10_000


@pytest.mark.slow
def test_train_leaves_what_it_promises(trained):
    workdir, output = trained
    assert f"done: samples in {workdir / 'samples.png'}, loss curve in {workdir / 'curve.png'}" in output
    for name in ("samples.png", "curve.png", "config.json", "metrics.jsonl"):
        assert (workdir / name).stat().st_size > 100
    assert list((workdir / "tensorboard").iterdir())
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40, 50, 60]
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [40, 50, 60]  # keep_checkpoints


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bits(trained, tmp_path):
    workdir = tmp_path / "killed"
    slow = command("train", "ddpm_digits.py", workdir, *SMALL, "--config.training.sample_every=15")
    process = subprocess.Popen(slow, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (workdir / "checkpoints" / "10").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (workdir / "samples.png").exists()  # it was killed on the way

    output = run("train", "ddpm_digits.py", workdir)
    assert "resuming at step" in output
    state, checksum = final_parameters(workdir)
    whole, whole_checksum = final_parameters(trained[0])
    assert checksum == whole_checksum
    assert int(state["step"]) == 60
    for name in ("params", "ema"):
        for one, other in zip(leaves(state[name]), leaves(whole[name])):
            np.testing.assert_array_equal(one, other)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path):
    workdir = tmp_path / "diverged"
    options = ("--config.training.learning_rate=1e30", "--config.training.grad_clip=0.0")
    every = ("--config.training.checkpoint_every=1", "--config.training.log_every=1")
    output = run("train", "ddpm_digits.py", workdir, *options, *every, code=1)
    assert "the last checkpoint is kept" in output
    assert "Traceback" not in output
    names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert names  # the steps before the loss was not finite, each whole
    assert all(name.isdigit() for name in names)


@pytest.mark.slow
def test_steps_in_one_call_are_the_steps_of_as_many_calls(trained, tmp_path):
    workdir = tmp_path / "scanned"
    run("train", "ddpm_digits.py", workdir, "--config.training.steps_per_call=5")
    state, _ = final_parameters(workdir)
    whole, _ = final_parameters(trained[0])
    assert int(state["step"]) == 60
    for name in ("params", "ema", "opt_state"):
        for one, other in zip(leaves(state[name]), leaves(whole[name]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    metrics, expected = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (workdir, trained[0])
    )
    assert [entry["step"] for entry in metrics] == [10, 20, 30, 40, 50, 60]
    np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in expected], rtol=1e-5)


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(trained, tmp_path):
    workdir = tmp_path / "stopped"
    # More steps than can be done before the signal; the config must be that of the whole run to be comparable.
    options = [
        *SMALL,
        "--config.training.num_steps=1000000",
        "--config.training.steps_per_call=5",
        "--config.training.lr_schedule=constant",
        "--config.training.checkpoint_every=500000",  # none is due before the signal
    ]
    process = subprocess.Popen(
        command("train", "ddpm_digits.py", workdir, *options),
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not ((workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "the same command resumes from there" in output
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert newest % 5 == 0  # a call is finished first
    assert f"stopped at step {newest} of 1000000" in output


@pytest.mark.slow
def test_truncated_newest_checkpoint_falls_back_with_a_warning(trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained[0], workdir)
    largest = max((workdir / "checkpoints" / "60" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    output = run("train", "ddpm_digits.py", workdir)
    assert "Checkpoint 60 is damaged" in output
    assert "resuming at step 50" in output
    assert (workdir / "damaged" / "60").is_dir()  # set aside, not deleted
    assert final_parameters(workdir)[1] == final_parameters(trained[0])[1]


@pytest.mark.slow
def test_sample_and_evaluate(trained):
    workdir, _ = trained
    output = run("sample", "ddpm_digits.py", workdir, "--num_samples=12", "--labels=3,5", "--batch_size=5")
    arrays = np.load(workdir / "sampled" / "samples.npz")
    assert arrays["samples"].shape == (12, 8, 8, 1)
    assert np.isfinite(arrays["samples"]).all()
    assert arrays["labels"].tolist() == [3, 5] * 6
    assert "samples.png" in output
    # A sample depends on its own key: another batch size draws the same ones.
    run(
        "sample",
        "ddpm_digits.py",
        workdir,
        "--num_samples=12",
        "--labels=3,5",
        "--batch_size=12",
        "--output",
        str(workdir / "b"),
    )
    np.testing.assert_allclose(np.load(workdir / "b" / "samples.npz")["samples"], arrays["samples"], atol=1e-4)

    run("evaluate", "ddpm_digits.py", workdir)
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["class_accuracy"]["heldout"] > 0.97  # a support vector machine on real digits
    assert figures["num_samples"] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("binary", "config", "options", "message"),
    [
        ("train", "ddpm_digits.py:conv", (), "comes one of mlp, self_conditioned, unconditional, unet"),
        (
            "train",
            "ddpm_digits.py",
            ("--config.training.steps=3",),
            "config.training has no field 'steps'; it has accum",
        ),
        ("train", "ddpm_digits.py", ("--config.training.num_steps=many",), "num_steps=many: invalid literal for int"),
        (
            "train",
            "ddpm_digits.py",
            ("--config.loss.weight=snrr",),
            "config.loss.weight must be one of edm, likelihood, min_snr",
        ),
        ("train", "ddpm_toy2d.py", (), "holds a run of another config"),
        ("train", "ddpm_digits.py", ("--config.backbone.num_classes=7",), "set config.backbone.num_classes"),
        ("train", "ddpm_digits.py", ("--config.training.log_every=0",), "training.log_every must be at least 1; got 0"),
        (
            "train",
            "ddpm_digits.py",
            ("--config.training.steps_per_call=4",),
            "log_every must be a multiple of training.steps_per_call = 4; got 10",
        ),
        ("sample", "ddpm_digits.py", ("--labels=11",), r"--labels must lie in [0, 9]; got 11"),
    ],
)
def test_mistakes_end_in_one_line(trained, binary, config, options, message):
    before = sorted(path.name for path in trained[0].iterdir())
    output = run(binary, config, trained[0], *options, code=1)
    assert message in output
    assert "Traceback" not in output
    assert sorted(path.name for path in trained[0].iterdir()) == before


@pytest.mark.slow
def test_sampling_before_training_says_so(tmp_path):
    assert "holds no run: train first" in run("sample", "ddpm_digits.py", tmp_path / "nothing", code=1)
    assert not (tmp_path / "nothing").exists()


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)
