"""The command lines, as a user types them: train, kill, resume, sample, evaluate; and the messages of mistakes.

Most of them run in this process, which has imported JAX already. Those that need a process of their own are `long`.
"""

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

from diffusers_fn.pretrained.safetensors_file import open_safetensors
from experiments.checkpoints import Checkpoints
from experiments.metric_log import MetricLog

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
# More steps than are done before the signal; with a constant learning rate their number changes nothing else.
ENDLESS = (
    "--config.training.num_steps=1000000",
    "--config.training.steps_per_call=5",
    "--config.training.lr_schedule=constant",
    "--config.training.checkpoint_every=500000",  # none is due before the signal
)


def arguments(config, workdir, *options):
    return [f"--config=configs/{config}", f"--workdir={workdir}", *SMALL, *options]


@pytest.fixture(scope="module")
def run(command):
    """Returns run(binary, config, workdir, *options, code=0) -> output, within this process."""

    def run(binary, config, workdir, *options, code=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            return command(binary, *arguments(config, workdir, *options), code=code)

    return run


def start(binary, config, workdir, *options):
    """Starts a binary in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{binary}", *arguments(config, workdir, *options)],
        cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


def finished(process, code=0):
    """Returns the output of a process when it has ended."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def final_parameters(workdir, step=60):
    """Returns (the arrays of a checkpoint by path, their checksums)."""
    folder = workdir / "checkpoints" / str(step)
    arrays = {name: stored.read() for name, stored in open_safetensors(folder / "shards-00000.safetensors").items()}
    return arrays, (folder / "shards-00000.json").read_text()


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A work directory whose run was never interrupted, and the output of the run; tests only read it."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, run("train", "ddpm_digits.py", workdir)


def test_train_leaves_what_it_promises(trained):
    workdir, output = trained
    assert f"done: samples in {workdir / 'samples.png'}, curve in {workdir / 'curve.png'}" in output
    for name in ("samples.png", "curve.png", "config.json", "metrics.jsonl"):
        assert (workdir / name).stat().st_size > 100
    assert list((workdir / "tensorboard").iterdir())
    assert [entry["step"] for entry in metrics_of(workdir)] == [10, 20, 30, 40, 50, 60]
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [40, 50, 60]  # keep_checkpoints


@pytest.mark.long
def test_a_truncated_newest_checkpoint_falls_back_with_a_warning(run, trained, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(trained[0], workdir)
    largest = workdir / "checkpoints" / "60" / "shards-00000.safetensors"
    os.truncate(largest, largest.stat().st_size // 2)
    output = run("train", "ddpm_digits.py", workdir)
    assert "Checkpoint 60 is damaged" in output
    assert "resuming at step 50" in output
    assert (workdir / "damaged" / "60").is_dir()  # set aside, not deleted
    assert final_parameters(workdir)[1] == final_parameters(trained[0])[1]


def test_a_run_that_diverges_keeps_its_last_checkpoint_and_names_what_to_change(run, tmp_path):
    workdir = tmp_path / "diverged"
    options = ("--config.training.learning_rate=1e15", "--config.training.grad_clip=0.0")
    every = ("--config.training.checkpoint_every=1", "--config.training.log_every=1")
    output = run("train", "ddpm_digits.py", workdir, *options, *every, code=1)
    assert "was skipped (1 so far): the loss" in output
    assert output.count("steps in a row were skipped: back from step") == 3
    assert "--config.training.learning_rate=3e+14 --allow_changes" in output
    assert "Traceback" not in output
    state, _ = final_parameters(workdir, max(int(path.name) for path in (workdir / "checkpoints").iterdir()))
    assert all(np.isfinite(leaf).all() for leaf in state.values())


@pytest.mark.long
def test_steps_in_one_call_are_those_of_single_calls(run, trained, tmp_path):
    workdir = tmp_path / "scanned"
    run("train", "ddpm_digits.py", workdir, "--config.training.steps_per_call=5")
    state, _ = final_parameters(workdir)
    whole, _ = final_parameters(trained[0])
    assert int(state["step"]) == 60
    assert set(state) == set(whole)
    for name, value in state.items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)
    metrics, expected = metrics_of(workdir), metrics_of(trained[0])
    assert [entry["step"] for entry in metrics] == [10, 20, 30, 40, 50, 60]
    np.testing.assert_allclose([m["loss"] for m in metrics], [m["loss"] for m in expected], rtol=1e-5)


def check_stopped(workdir, output):
    assert "the same command resumes from there" in output
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert newest % 5 == 0  # a call is finished first
    assert f"stopped at step {newest} of 1000000" in output


@pytest.mark.long
def test_sigterm_saves_a_checkpoint(run, tmp_path, monkeypatch):
    write, sent = MetricLog.write, []

    def write_and_stop(self, *args):
        write(self, *args)
        if not sent:  # a second signal would end this process
            sent.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(MetricLog, "write", write_and_stop)
    check_stopped(tmp_path / "run", run("train", "ddpm_digits.py", tmp_path / "run", *ENDLESS, code=75))


def test_sample_and_evaluate(run, trained, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained[0], workdir)
    output = run("sample", "ddpm_digits.py", workdir, "--num_samples=12", "--labels=3,5", "--batch_size=5")
    arrays = np.load(workdir / "sampled" / "samples.npz")
    assert arrays["samples"].shape == (12, 8, 8, 1)
    assert np.isfinite(arrays["samples"]).all()
    assert arrays["labels"].tolist() == [3, 5] * 6
    assert "samples.png" in output
    # A sample depends on its own key alone: another batch size draws the same samples.
    options = ("--num_samples=12", "--labels=3,5", "--batch_size=12", f"--output={workdir / 'b'}")
    run("sample", "ddpm_digits.py", workdir, *options)
    np.testing.assert_allclose(np.load(workdir / "b" / "samples.npz")["samples"], arrays["samples"], atol=1e-4)

    run("evaluate", "ddpm_digits.py", workdir)
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["class_accuracy"]["heldout"] > 0.97  # a support vector machine on real digits
    assert (figures["step"], figures["params"], figures["data_range"]) == (60, "ema", [-1.0, 1.0])
    assert figures["num_samples"] == 200


@pytest.mark.long  # twelve programs
def test_round_trip_writes_its_figures(run, trained, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained[0], workdir)
    output = run("round_trip", "ddpm_digits.py", workdir, "--num_images=4", "--sizes=5,8")
    assert "coupled" in output
    figures = json.loads((workdir / "round_trip.json").read_text())["figures"]
    assert figures["coupled"]["rmse"][1] < 1e-3 < figures["ddim"]["rmse"][1]
    assert (workdir / "round_trip.png").stat().st_size > 10_000


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
        (
            "train",
            "ddpm_digits.py",
            ("--config.training.num_steps=many",),
            "config.training.num_steps must be of type int; got 'many'",
        ),
        (
            "train",
            "ddpm_digits.py",
            ("--config.loss.weight=snrr",),
            "config.loss.weight must be one of edm, likelihood, min_snr",
        ),
        ("train", "ddpm_toy2d.py", (), "holds a run of another config"),
        (
            "train",
            "ddpm_digits.py",
            ("--config.backbone.num_classes=7",),
            "config.backbone.num_classes is 7, but config.data.num_classes is 10",
        ),
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
def test_mistakes_end_in_one_line(run, trained, binary, config, options, message):
    before = sorted(path.name for path in trained[0].iterdir())
    output = run(binary, config, trained[0], *options, code=1)
    assert message in output
    assert "Traceback" not in output
    assert sorted(path.name for path in trained[0].iterdir()) == before


def test_sampling_before_training_is_refused(run, tmp_path):
    assert "holds no run: train first" in run("sample", "ddpm_digits.py", tmp_path / "nothing", code=1)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.long  # processes that are killed and stopped
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    finished(start("train", "ddpm_digits.py", tmp_path / "whole"))
    workdir = tmp_path / "killed"
    process = start("train", "ddpm_digits.py", workdir, "--config.training.sample_every=15")
    wait_for((workdir / "checkpoints" / "10").exists, process)
    process.kill()
    process.communicate()
    assert not (workdir / "samples.png").exists()  # it was killed on the way

    assert "resuming at step" in finished(start("train", "ddpm_digits.py", workdir))
    state, checksum = final_parameters(workdir)
    whole, whole_checksum = final_parameters(tmp_path / "whole")
    assert checksum == whole_checksum
    assert int(state["step"]) == 60
    for name, value in state.items():
        np.testing.assert_array_equal(value, whole[name])
    steps = [entry["step"] for entry in metrics_of(workdir)]
    assert steps == sorted(set(steps))


@pytest.mark.long
def test_sigterm_ends_a_process_cleanly(tmp_path):
    workdir = tmp_path / "stopped"
    process = start("train", "ddpm_digits.py", workdir, *ENDLESS)
    log = workdir / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    check_stopped(workdir, finished(process, code=75))


@pytest.mark.long
def test_sigint_ends_a_picture_at_once(tmp_path):
    workdir = tmp_path / "stopped"
    endless_picture = ("--config.sampler.name=ancestral", "--config.sampler.num_inference_steps=1000")
    options = ("--config.training.sample_every=5", "--config.backbone.hidden_size=1024", "--config.backbone.depth=4")
    process = start("train", "ddpm_digits.py", workdir, *ENDLESS, *endless_picture, *options)
    wait_for((workdir / "checkpoints" / "5").exists, process)
    time.sleep(2)  # into the compilation or the sampling
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    output = finished(process, code=75)
    assert time.monotonic() - began < 5
    assert "stopped at step 5 of 1000000; the same command resumes from there" in output
    assert not list((workdir / "samples").iterdir())


@pytest.mark.long
def test_a_poisoned_batch_is_skipped_named_and_repeated_after_a_kill(run, tmp_path, monkeypatch):
    """An example that is finite, but so large that its loss is not, in two runs: one of them begins again."""
    images = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    images[17] = 1e30
    np.savez(tmp_path / "data.npz", images=images)
    data = (
        "--config.data.name=arrays",
        f"--config.data.path={tmp_path / 'data.npz'}",
        "--config.data.shape=(2,)",
        "--config.data.heldout_fraction=0.0",
        "--config.data.normalize=False",
        "--config.parameterization=x0",  # its target is the example, whose square overflows
    )
    output = run("train", "ddpm_toy2d.py", tmp_path / "whole", *data)
    assert "was skipped (1 so far): the loss is not finite for example 17" in output
    assert sum(entry["skipped"] for entry in metrics_of(tmp_path / "whole")) in (9, 10)  # in 9.6 epochs
    save = Checkpoints.save

    def save_and_die(self, step, *args):
        save(self, step, *args)
        self.wait()
        if step == 30:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        run("train", "ddpm_toy2d.py", tmp_path / "killed", *data, code=1)
    run("train", "ddpm_toy2d.py", tmp_path / "killed", *data)
    assert final_parameters(tmp_path / "killed")[1] == final_parameters(tmp_path / "whole")[1]


@pytest.mark.long
def test_a_process_ends_a_mistake_in_one_line(tmp_path):
    output = finished(start("train", "ddpm_digits.py", tmp_path / "run", "--config.training.log_every=0"), code=1)
    assert "training.log_every must be at least 1; got 0" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
