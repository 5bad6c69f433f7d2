"""The cache of compiled programs: its folder, that it is used, and that problems with it never stop a run."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import compilation

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, resource, sys, jax, jax.numpy as jnp
from experiments import compilation
print("folder:", compilation.use_cache(sys.argv[1] if len(sys.argv) > 1 else None))
if "LARGEST_FILE" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
run = compilation.compile_now("it", jax.jit(lambda x: jnp.sort(x)[:2], donate_argnums=0), jnp.arange(3.0))
print("result:", run(jnp.array([3.0, 1.0, 2.0])).tolist())
"""


def run(*options, **extra):
    """Returns the output of a process that uses the cache."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *options],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT), **extra},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "result: [1.0, 2.0]" in done.stdout
    return done.stdout + done.stderr


def entries(folder):
    return sorted(path for path in folder.rglob("*-cache"))


def test_the_second_run_reads_what_the_first_one_compiled(tmp_path):
    assert "from the cache" not in run(XDG_CACHE_HOME=str(tmp_path))
    assert entries(tmp_path / "diffusers_fn" / "jax" / compilation.machine())
    assert "from the cache" in run(XDG_CACHE_HOME=str(tmp_path))


def test_jaxs_own_variable_is_respected(tmp_path):
    folder = tmp_path / "mine"
    output = run(XDG_CACHE_HOME=str(tmp_path / "xdg"), JAX_COMPILATION_CACHE_DIR=str(folder))
    assert f"folder: {folder}\n" in output
    assert entries(folder)
    assert not (tmp_path / "xdg").exists()


def test_it_can_be_turned_off():
    enabled = jax.config.jax_enable_compilation_cache
    try:
        assert compilation.use_cache("off") is None
        assert not jax.config.jax_enable_compilation_cache
        assert not jax.config.jax_compilation_cache_dir
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert compilation.use_cache(str(tmp_path / "file")) is None
    output = capsys.readouterr().out
    assert "no compilation cache (" in output
    assert "set --compilation_cache to another folder, or to off" in output


def test_it_can_be_elsewhere_and_a_full_disk_and_damaged_entries_stop_nothing(tmp_path):
    home, chosen = tmp_path / "xdg", tmp_path / "chosen"
    output = run(str(chosen), XDG_CACHE_HOME=str(home), LARGEST_FILE="100")  # in bytes
    assert f"folder: {chosen / compilation.machine()}\n" in output
    assert "from the cache" not in output
    assert not home.exists()
    damaged = entries(chosen)
    assert damaged
    assert max(path.stat().st_size for path in damaged) <= 100
    output = run(str(chosen))
    assert "from the cache" not in output
    assert "Error reading persistent compilation cache entry" in output  # a warning; the run continues without


def test_an_unwritable_folder_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert compilation.use_cache(str(tmp_path)) is None
    assert "is not writable" in capsys.readouterr().out
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert compilation.use_cache() is None
    assert "no home" in capsys.readouterr().out
    assert not jax.config.jax_compilation_cache_dir


def test_other_cpus_have_other_folders(monkeypatch):
    names = []
    for flags in ("flags : fma avx2\n", "flags : avx2 fma\n", "flags : avx2 fma avx512f\n"):
        monkeypatch.setattr(Path, "read_text", lambda self, flags=flags: "processor : 0\n" + flags)
        names.append(compilation.machine())
    assert names[0] == names[1] != names[2]


def test_the_least_recently_used_files_are_removed(tmp_path):
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1_000 - age, 1_000 - age))
    compilation.prune(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    compilation.prune(tmp_path, 20)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_program_compiled_ahead_donates_and_rejects_other_shapes(capsys):
    run = compilation.compile_now(
        "it", jax.jit(lambda x: x + 1, donate_argnums=0), jax.ShapeDtypeStruct((3,), "float32")
    )
    assert capsys.readouterr().out.startswith("compiling it ... ")
    x = jnp.zeros(3)
    assert run(x).tolist() == [1, 1, 1]
    assert x.is_deleted()
    with pytest.raises(TypeError):
        run(jnp.zeros(4))


def test_tests_write_nothing_into_the_users_cache(compilation_cache, tmp_path_factory):
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(compilation_cache)
    assert tmp_path_factory.getbasetemp() in compilation_cache.parents
