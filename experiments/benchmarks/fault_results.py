"""What a row of the matrix of faults counts, and the comparison of a run with an undisturbed one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import states
from experiments.benchmarks.fault_runs import newest
from experiments.metric_log import read
from experiments.tasks import make_task
from experiments.workdir import read_config

__all__ = ["Counts", "compare", "state_of"]


class Counts(dict[str, Any]):
    """What happened in a row: `faults`, those `during_saves`, saved steps that were `lost`, and `failures` in words."""

    def __init__(self) -> None:
        super().__init__(faults=0, during_saves=0, lost=0, failures=[])

    def check(self, passed: bool, failure: str) -> None:
        """Records a failure unless it passed."""
        if not passed:
            self["failures"].append(failure)


def compare(counts: Counts, workdir: Path, whole: Path) -> None:
    """Checks that a run has the last state and the losses of an undisturbed one."""
    if newest(workdir) != newest(whole):
        counts.check(False, f"{workdir.name} has not reached the last step")
        return
    differ = [
        jax.tree_util.keystr(path)
        for (path, one), other in zip(
            jax.tree_util.tree_leaves_with_path(state_of(workdir)), jax.tree.leaves(state_of(whole)), strict=True
        )
        if np.asarray(one).tobytes() != np.asarray(other).tobytes()
    ]
    counts.check(not differ, f"{workdir.name}: other bits than {whole.name} in {', '.join(differ[:3])}")
    same = _same_losses(read(workdir / "metrics.jsonl"), read(whole / "metrics.jsonl"))
    counts.check(same, f"{workdir.name}: other losses than {whole.name}")


def _same_losses(entries: Iterable[Mapping[str, Any]], undisturbed: Iterable[Mapping[str, Any]]) -> bool:
    """Whether two logs have the same losses bit for bit, or to rounding where a stop has split an entry in two.

    An entry has the mean over the steps since the entry before it: a split one is compared with the weighted mean.
    """
    entries, start = list(entries), 0
    for whole in undisturbed:
        parts = [entry for entry in entries if start < entry["step"] <= whole["step"]]
        if not parts or parts[-1]["step"] != whole["step"]:
            return False
        lengths = np.diff([start, *(entry["step"] for entry in parts)])
        mean = float(np.average([entry["loss"] for entry in parts], weights=lengths))
        same = mean == whole["loss"] if len(parts) == 1 else bool(np.isclose(mean, whole["loss"], rtol=1e-6, atol=0))
        if not same:
            return False
        start = whole["step"]
    return True


def state_of(workdir: Path) -> Any:
    """The state in the newest checkpoint of a run."""
    config = read_config(workdir)
    task = make_task(config, workdir)
    return states.load_state(config, workdir, states.state_like(config, task.init, task.extras_like))[1]
