"""The benchmark: turns, statistics, refusals, and that the arguments of every contender fit its function."""

import ast
import importlib
import inspect
import json
import pathlib

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmarks import config as benchmark_config
from experiments.benchmarks import inputs, jax_samplers, jax_session, machine, report, samplers, stats, worker
from experiments.benchmarks.measure import Settings, count_ticks, measure
from experiments.benchmarks.processes import file_name
from experiments.benchmarks.work import Comparison, Contender, Work

# Contenders that need only the standard library; the processes find them in their working directory.
FAKES = """
import os
from experiments.benchmarks.work import Work

def note(name, value=1.0, units=1):
    def run():
        print("output of a contender is not an answer")
        with open("turns.txt", "a") as file:
            file.write(name + " ")
    return Work(run=run, output=lambda: [value, 2 * value], units=units, facts=lambda: {"length": len(name)})

def broken():
    raise RuntimeError("cannot be made")

def dies(after):
    count = 0
    def run():
        nonlocal count
        count += 1
        if count > after:
            os._exit(3)
    return Work(run=run)

def write(path):
    open(path, "x").close()
    return Work()
"""
SETTINGS = Settings(rounds=3, turn_seconds=0.0, timeout_s=60.0)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fakes.py").write_text(FAKES)
    return tmp_path


def fake(name, function="note", **kwargs):
    return Contender(name, f"fakes:{function}", {"name": name, **kwargs} if function == "note" else kwargs)


# Turns and numbers.


def test_contenders_take_turns_in_rotated_order(folder):
    ticks = []
    comparison = Comparison("it", (fake("a"), fake("b"), fake("c")))
    found = measure(comparison, SETTINGS, folder, lambda: ticks.append(1))
    # Each is started alone and does its work twice; then come the rounds, where an untimed call precedes each turn.
    assert (folder / "turns.txt").read_text().split() == [*"aabbcc", *"aabbcc", *"bbccaa", *"ccaabb"]
    assert len(ticks) == count_ticks(comparison, SETTINGS) == 6
    assert found["status"] == "ok"
    assert found["differences"] == {"b": 0.0, "c": 0.0}
    assert set(found["ratios"]) == {"b", "c"}
    for entry in found["contenders"].values():
        assert len(entry["seconds"]) == 3
        assert entry["median"] == sorted(entry["seconds"])[1]
        assert entry["peak_mb"] > 1
        assert "python" in entry["versions"]


def test_statistics_by_hand():
    assert stats.summary([4.0, 1.0, 2.0, 3.0]) == {"median": 2.5, "min": 1.0, "max": 4.0}
    # A slow round slows both contenders: ratios are taken per round, not of the medians.
    assert stats.ratio([1.0, 10.0, 3.0], [2.0, 20.0, 1.0]) == {"median": 0.5, "min": 0.5, "max": 3.0}
    assert stats.relative_difference([1.0, -7.0], [1.0, -8.0]) == 0.125
    assert stats.relative_difference([0.0], [0.0]) == 0
    assert stats.relative_difference([1.0], [0.0]) == np.inf
    assert stats.relative_difference([np.nan], [1.0]) == np.inf
    assert stats.relative_difference([1.0, 1.0], [1.0]) == np.inf


def test_times_are_per_unit_and_per_call(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    assert worker.timed(Work(run=lambda: None, units=4), calls=3) == 0.5


def test_peak_memory_is_that_of_this_process():
    before = worker.peak_mb()
    block = np.ones(60_000_000, np.uint8)
    assert worker.peak_mb() > before + 40 or before > 2_000  # unless an earlier test had a larger peak
    del block


# What goes wrong.


@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_a_comparison_of_different_outputs_is_refused(folder, value):
    found = measure(Comparison("it", (fake("a"), fake("b", value=value))), SETTINGS, folder)
    assert found["status"] == "invalid"
    assert "of b differs from that of a" in found["why"]
    assert found["differences"]["b"] == (None if np.isnan(value) else pytest.approx(0.01))
    json.dumps(found, allow_nan=False)
    assert not any("seconds" in entry for entry in found["contenders"].values())
    assert (folder / "turns.txt").read_text().split() == [*"aabb"]  # nothing was timed


def test_outputs_that_need_not_be_the_same_are_not_compared(folder):
    comparison = Comparison("it", (fake("a"), fake("b", value=2.0), fake("c")), same=("c",))
    found = measure(comparison, SETTINGS._replace(rounds=1), folder)
    assert (found["status"], found["differences"]) == ("ok", {"c": 0.0})


def test_a_missing_package_is_reported_and_the_others_continue(folder):
    absent = Contender("peer", "nowhere:nothing", package="a_package_of_nobody", peer=True)
    comparison = Comparison("it", (fake("a"), absent))
    for python in ("", "/nowhere/python", "/nowhere/python,/nor/here"):
        found = measure(comparison, SETTINGS._replace(rounds=1, peer_python=python), folder)
        assert found["status"] == "ok"
        assert found["contenders"]["peer"]["status"] == "not installed"
        assert len(found["contenders"]["a"]["seconds"]) == 1


def test_a_contender_that_fails_does_not_stop_the_others(folder):
    contenders = (fake("a"), fake("b", "broken"), fake("c", "dies", after=0), fake("d", "dies", after=3))
    found = measure(Comparison("it", contenders), SETTINGS, folder)
    entries = found["contenders"]
    assert [entries[name]["status"] for name in "abcd"] == ["ok", "failed", "failed", "failed"]
    assert entries["b"]["why"] == "RuntimeError: cannot be made"
    assert "ended" in entries["c"]["why"]
    assert len(entries["a"]["seconds"]) == 3
    assert found["ratios"] == {}


def test_a_comparison_fails_with_its_first_contender_or_its_preparation(folder):
    found = measure(Comparison("it", (fake("a", "broken"), fake("b"))), SETTINGS, folder)
    assert (found["status"], found["why"]) == ("failed", "RuntimeError: cannot be made")
    (folder / "there").touch()
    found = measure(Comparison("it", (fake("a"),), prepare=fake("it", "write", path="there")), SETTINGS, folder)
    assert found["status"] == "failed"
    assert found["why"].startswith("it: FileExistsError")


def test_the_preparation_ends_before_the_others_start(folder):
    comparison = Comparison("it", (fake("a"),), timed=False, prepare=fake("it", "write", path="made"))
    found = measure(comparison, SETTINGS, folder)
    assert (folder / "made").exists()
    assert found["contenders"]["a"]["facts"] == {"length": 1}
    assert "seconds" not in found["contenders"]["a"]


# The whole.


def tiny(**changes):
    config = benchmark_config.get_config("tiny")
    config.update(changes)
    return config


def test_results_are_written_with_machine_and_versions(monkeypatch, tmp_path):
    def section_comparisons(name, config):
        return [
            Comparison(f"{name} timed", (fake_in_place("a"), fake_in_place("b")), rate="runs/s"),
            Comparison(f"{name} facts", (fake_in_place("a"), Contender("gone", "x:y", package="nobodys")), timed=False),
        ]

    def fake_in_place(name):
        return Contender(name, "experiments.benchmarks.imports:start", {"modules": ["sys"]})

    monkeypatch.setattr(benchmark, "section_comparisons", section_comparisons)
    results = benchmark.run(tiny(sections="data, memory"), tmp_path)
    held = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(held["sections"]) == ["data", "memory"]
    assert held["sections"]["data"][0]["contenders"]["b"]["median"] > 0
    assert held["machine"]["cores"] >= 1
    assert "python" in held["versions"]
    text = (tmp_path / "benchmark.md").read_text()
    assert text == report.render(held) == report.render(results)
    assert "runs/s" in text
    assert "not installed" in text
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_sections_and_rounds_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"must be some of networks,.*got 'speed'"):
        benchmark.run(tiny(sections="speed"), tmp_path)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        benchmark.run(tiny(rounds=0), tmp_path)
    with pytest.raises(ValueError, match="unknown variant 'fast'"):
        benchmark_config.get_config("fast")


def test_the_machine_is_read_from_the_list_of_processors():
    text = "processor : 0\nmodel name : Fast One\nflags : fpu avx2 avx512f\n\nprocessor : 1\nmodel name : Other\n"
    found = machine.describe(text)
    assert (found["cpu"], found["instruction_sets"]) == ("Fast One", ["avx2", "avx512f"])


@pytest.mark.parametrize("variant", benchmark_config.VARIANTS)
@pytest.mark.parametrize("section", benchmark.SECTIONS)
def test_the_arguments_of_contenders_fit_their_functions(section, variant):
    every = benchmark.section_comparisons(section, benchmark_config.get_config(variant))
    assert every
    assert len({each.title for each in every}) == len(every)
    for each in every:
        assert len({file_name(contender.name) for contender in each.contenders}) == len(each.contenders)
        assert set(each.same or ()) <= {contender.name for contender in each.contenders[1:]}
        for contender in [*each.contenders, *([each.prepare] if each.prepare else [])]:
            assert json.loads(json.dumps(dict(contender.kwargs))) == dict(contender.kwargs)
            parameters(contender.target).bind(**contender.kwargs)


def parameters(target):
    """Returns the signature of a target; a peer's module cannot be imported here, so its source is parsed."""
    module, name = target.split(":")
    if ".peers." not in module:
        return inspect.signature(getattr(importlib.import_module(module), name))
    path = pathlib.Path(benchmark.__file__).parents[1] / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    required = len(function.args.args) - len(function.args.defaults)
    return inspect.Signature(
        inspect.Parameter(arg.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, **({} if i < required else {"default": 0}))
        for i, arg in enumerate(function.args.args)
    )


def test_torch_peers_import_neither_this_package_nor_jax():
    shared = ["inputs.py", "work.py", "worker.py", "__init__.py"]
    folder = pathlib.Path(inputs.__file__).parent
    for path in [folder / name for name in shared] + sorted((folder / "peers").glob("torch_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"jax", "flax", "optax", "diffusers_fn", "configs"}


# Contenders that are compared compute the same outputs.


@pytest.mark.parametrize("solver", jax_samplers.BY_NAME)
def test_the_sampler_and_products_by_hand_give_the_same_samples(solver):
    comparison = samplers.products(solver, {"shape": [2, 4, 4, 3], "steps": 6})
    outputs = [jax_samplers.products(**contender.kwargs).output() for contender in comparison.contenders]
    assert np.std(outputs[0]) > 0
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [jax_samplers.deterministic, jax_samplers.noisy])
def test_scans_by_hand_sample_as_the_sampler_does(make):
    given = {"shape": [2, 4, 4, 3], "steps": 10}
    ours, theirs = make(**given).output(), make(**given, by_hand=True).output()
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5 * np.abs(ours).max())


def test_a_session_recompiles_nothing():
    facts = jax_session.session(calls=3, batch=2, max_steps=4, backbone={"hidden_size": 16, "depth": 1}).facts()
    assert facts["programs_in_the_first_call"] >= 2
    assert facts["recompilations"] == 0


@pytest.mark.long  # three processes that import JAX
def test_our_sampler_is_measured_in_processes_of_its_own(tmp_path):
    comparison = samplers.products("ddim", {"shape": [2, 4, 4, 3], "steps": 5})
    found = measure(comparison, SETTINGS, tmp_path)  # outputs of three processes are compared
    assert found["status"] == "ok"
    assert set(found["ratios"]) == set(found["differences"]) == {c.name for c in comparison.contenders[1:]}
    assert all(entry["versions"]["jax"] for entry in found["contenders"].values())
