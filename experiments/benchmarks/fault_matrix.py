"""Kills, stops and damages small runs, resumes them, and compares their last state with that of an undisturbed run.

    python -m experiments.benchmarks.fault_matrix --output=faults.json                    # all rows, 20 kills in each
    python -m experiments.benchmarks.fault_matrix --rows=one_process_killed,disk_full --kills=3

Each row is a kind of fault. It passes if every resumed run ends with the bits of an undisturbed run on the same
devices, has the same losses in its log (where a stop has split an entry, the mean of its parts), and goes on from the
newest checkpoint that was complete at the fault. All runs are on emulated CPU devices. The rows of several processes
start two on this host.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from experiments import runs
from experiments.benchmarks.fault_damage import fill_disk, flip, remove, truncate
from experiments.benchmarks.fault_results import Counts, compare, state_of
from experiments.benchmarks.fault_runs import Run, Settings, newest, unfinished
from experiments.files import write_text

__all__ = ["ROWS", "fault_matrix"]

_END = 240.0  # seconds in which the processes of a run must end after one of them has been lost


def fault_matrix(folder: Path, rows: list[str], kills: int, seed: int = 0) -> dict[str, Counts]:
    """Returns the counts of each row; prints a line per row.

    Args:
      folder: for the runs.
      rows: names in `ROWS`.
      kills: number of kills in each row that has them.
      seed: of the moments.
    """
    settings, found = Settings(folder), {}
    for name in rows:
        began = time.monotonic()
        counts = ROWS[name](settings, random.Random(f"{seed} {name}"), kills)
        counts["seconds"] = round(time.monotonic() - began, 1)
        found[name] = counts
        print(json.dumps({"row": name, "passed": not counts["failures"], **counts}), flush=True)
    return found


def one_process_killed(settings: Settings, random: random.Random, kills: int) -> Counts:
    """kill -9 of a run in one process: at a step, while a checkpoint is written, or at any time since the start."""
    return _killed(settings, random, kills, 1, lambda number: [0])


def one_of_two_killed(settings: Settings, random: random.Random, kills: int) -> Counts:
    """kill -9 of one of two processes: the other one ends by itself, and the same commands resume."""
    return _killed(settings, random, kills, 2, lambda number: [number % 2])


def both_killed(settings: Settings, random: random.Random, kills: int) -> Counts:
    """kill -9 of both processes of a run."""
    return _killed(settings, random, kills, 2, lambda number: [0, 1])


def one_of_two_stopped(settings: Settings, random: random.Random, kills: int) -> Counts:
    """SIGTERM to one of two processes: both stop at one step, with a checkpoint of it and the exit code 75."""
    counts, workdir = Counts(), settings.new_workdir("stopped")
    for number, target in enumerate(sorted(random.sample(range(1, settings.num_steps * 9 // 10), min(kills, 4)))):
        run = Run(settings, workdir, processes=2)
        if not run.until(functools.partial(_reached, workdir, target)):
            break
        run.processes[number % 2].terminate()
        codes = run.end(_END)
        counts["faults"] += 1
        counts.check(codes == [75, 75], f"exit codes {codes} after SIGTERM, not 75: {run.tail()}")
        counts.check(f"stopped at step {newest(workdir)} of" in run.output(0), "no checkpoint of the last step")
    return _compared(settings, counts, workdir, 2)


def disk_full(settings: Settings, random: random.Random, kills: int) -> Counts:
    """The disk is full in the middle of a run: one line and no traceback; with space again, the run resumes."""
    counts, small = Counts(), settings.new_workdir("small_disk")
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small], capture_output=True).returncode
    try:
        workdir, filler = small / "run", small / "filler"
        if mounted == 0:
            run = Run(settings, workdir)
            reached = run.until(functools.partial(_reached, workdir, settings.num_steps // 3))
            counts.check(reached, f"the run ended before the disk was full: {run.tail()}")
            fill_disk(filler)
        else:  # without the right to mount: files may have at most so many bytes
            run = Run(settings, workdir, max_file_bytes=settings.num_steps * 20)
        codes = run.end(_END)
        counts["faults"] += 1
        counts["disk"] = "tmpfs" if mounted == 0 else "limit of file size"
        counts.check(codes == [1], f"exit code {codes} on a full disk: {run.tail()}")
        counts.check("Traceback" not in run.output(0), f"a traceback on a full disk: {run.tail()}")
        filler.unlink(missing_ok=True)
        return _compared(settings, counts, workdir, 1, acknowledged=newest(workdir))
    finally:
        if mounted == 0:
            subprocess.run(["umount", small], check=False)


def damaged_files(settings: Settings, random: random.Random, kills: int) -> Counts:
    """Files of the newest checkpoint are truncated, have a flipped bit, or are missing."""
    counts, whole = Counts(), settings.undisturbed(1)
    files = ("shards-00000.safetensors", "shards-00000.json", "checkpoint.json")
    for damage in (truncate, flip, remove):
        for file in files:
            workdir = settings.new_workdir(f"{damage.__name__}-{file}")
            shutil.copytree(whole, workdir)
            steps = sorted(int(each.name) for each in (workdir / "checkpoints").iterdir())
            damage(workdir / "checkpoints" / str(steps[-1]) / file, random)
            run = Run(settings, workdir)
            codes = run.end(_END)
            counts["faults"] += 1
            said = f"Checkpoint {steps[-1]} is damaged, using checkpoint {steps[-2]}"
            counts.check(codes == [0] and said in run.output(0), f"{damage.__name__} {file}: {run.tail()}")
            compare(counts, workdir, whole)
    return counts


def other_device_counts(settings: Settings, random: random.Random, kills: int) -> Counts:
    """A run on 4 devices goes on with 2 and with 8: killed and resumed there, it has the bits of one that was not.

    `difference` is the largest relative one from the run that kept its 4 devices: the order of sums is another.
    """
    counts, whole = Counts(), settings.undisturbed(1)
    middle = settings.num_steps // 2
    counts["difference"] = 0.0
    for devices in (settings.devices // 2, settings.devices * 2):
        workdirs = [settings.new_workdir(f"{kind}-{devices}") for kind in ("moved", "moved_killed")]
        for workdir in workdirs:
            shutil.copytree(whole, workdir)
            for each in (workdir / "checkpoints").iterdir():
                if int(each.name) > middle:
                    shutil.rmtree(each)
        codes = Run(settings, workdirs[0], devices=devices).end(_END)
        counts.check(codes == [0], f"exit code {codes} with {devices} devices")
        run = Run(settings, workdirs[1], devices=devices)
        if run.until(functools.partial(_reached, workdirs[1], middle + 1)):
            counts["faults"] += 1
        run.kill([0])
        codes = Run(settings, workdirs[1], devices=devices).end(_END)
        counts.check(codes == [0], f"exit code {codes} after a kill with {devices} devices")
        compare(counts, workdirs[1], workdirs[0])
        for one, other in zip(*(jax.tree.leaves(state_of(each).params) for each in (workdirs[0], whole)), strict=True):
            counts["difference"] = max(counts["difference"], float(abs(one - other).max() / abs(other).max()))
    counts.check(counts["difference"] < 1e-3, "the runs on other devices differ by more than the order of sums")
    return counts


def restart(settings: Settings, random: random.Random, kills: int) -> Counts:
    """Seconds from the command to the first step after a restart, with the compilation cache and without."""
    counts, whole = Counts(), settings.undisturbed(1)
    for name, options in (("cached", ()), ("cached again", ()), ("not cached", ("--compilation_cache=off",))):
        workdir = settings.new_workdir(f"restarted-{name.replace(' ', '-')}")
        shutil.copytree(whole, workdir)
        shutil.rmtree(workdir / "checkpoints" / str(settings.num_steps))
        began, last = time.monotonic(), newest(workdir)
        run = Run(settings, workdir, options=("--config.training.log_every=1", *options))
        reached = run.until(functools.partial(_logged, workdir, last + 1))
        counts[name] = round(time.monotonic() - began, 1)
        counts.check(reached, f"no step: {run.tail()}")
        run.kill([0])
    counts.check(counts["cached again"] < 15, "more than 15 s to the first step with the compilation cache")
    return counts


ROWS: dict[str, Callable[[Settings, random.Random, int], Counts]] = {
    each.__name__: each
    for each in (
        one_process_killed,
        one_of_two_killed,
        both_killed,
        one_of_two_stopped,
        disk_full,
        damaged_files,
        other_device_counts,
        restart,
    )
}


def _killed(
    settings: Settings, random: random.Random, kills: int, processes: int, which: Callable[[int], list[int]]
) -> Counts:
    """Kills the processes `which(number)` of a run at random moments, and resumes it each time."""
    counts, workdir = Counts(), settings.new_workdir(f"killed-{processes}")
    acknowledged = 0
    targets = sorted(random.sample(range(1, settings.num_steps * 19 // 20), kills))
    for number, target in enumerate(targets):
        run = Run(settings, workdir, processes)
        began, delay = time.monotonic(), random.uniform(0, 1.5 * settings.start_up)
        moments: tuple[Callable[[], bool], ...] = (
            functools.partial(_reached, workdir, target),
            functools.partial(_saving, workdir, target),
            functools.partial(_passed, began + delay),
        )
        if not run.until(moments[number % 3]):
            counts.check(run.codes() == [0] * processes, f"a run ended by itself: {run.tail()}")
            break
        run.kill(which(number))
        now = time.monotonic()
        run.end(_END)
        counts["slowest_end"] = round(max(counts.get("slowest_end", 0.0), time.monotonic() - now), 1)
        counts["faults"] += 1
        counts["during_saves"] += unfinished(workdir) > 0
        _check_resumed(counts, run, acknowledged)
        acknowledged = newest(workdir)
    return _compared(settings, counts, workdir, processes, acknowledged)


def _check_resumed(counts: Counts, run: Run, acknowledged: int) -> None:
    """Checks that a run went on from the newest checkpoint that was there when it started."""
    began = run.resumed_at()
    if began is not None and began < acknowledged:
        counts["lost"] += acknowledged - began
        counts.check(False, f"resumed at step {began}, but checkpoint {acknowledged} was complete")


def _compared(settings: Settings, counts: Counts, workdir: Path, processes: int, acknowledged: int = 0) -> Counts:
    """Finishes a run, and compares it with an undisturbed one of as many processes."""
    run = Run(settings, workdir, processes)
    codes = run.end(_END)
    counts.check(codes == [0] * processes, f"the last part ended with {codes}: {run.tail()}")
    _check_resumed(counts, run, acknowledged)
    compare(counts, workdir, settings.undisturbed(processes))
    return counts


def _reached(workdir: Path, step: int) -> bool:
    return newest(workdir) >= step


def _saving(workdir: Path, step: int) -> bool:
    return unfinished(workdir) >= step


def _passed(when: float) -> bool:
    return time.monotonic() > when


def _logged(workdir: Path, step: int) -> bool:
    return f'"step": {step},' in (workdir / "metrics.jsonl").read_text()


def main() -> None:
    """Calls `fault_matrix` with the flags of the command line."""
    given = flags.FLAGS
    rows = given.rows or list(ROWS)
    if unknown := [name for name in rows if name not in ROWS]:
        raise ValueError(f"--rows has {unknown}; the rows are {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory(dir=given.folder, ignore_cleanup_errors=True) as folder:
        found = fault_matrix(Path(folder), rows, given.kills, given.seed)
    if given.output is not None:
        write_text(given.output, json.dumps(found, indent=2) + "\n")
    failed = [name for name, counts in found.items() if counts["failures"]]
    if failed:
        raise SystemExit(f"these rows failed: {', '.join(failed)}")
    print(f"all {len(found)} rows passed")


if __name__ == "__main__":
    flags.DEFINE_list("rows", [], "Rows to run, separated by commas; default: all.")
    flags.DEFINE_integer("kills", 20, "Number of kills in each row that has them.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the random moments.")
    flags.DEFINE_string("folder", None, "Existing folder for the runs; default: that for temporary files.")
    runs.define_path("output", None, "JSON file for the counts.")
    runs.run_without_config(main)
