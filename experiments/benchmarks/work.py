"""What is measured: contenders, comparisons of contenders, and the work that a contender's process repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Comparison", "Contender", "Work"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One implementation of a comparison's work, run in a process of its own.

    Attributes:
      name: its name in the report.
      target: "module:function"; the process calls the function with kwargs, which returns its `Work`.
      kwargs: arguments of the function, JSON-serialisable.
      package: the package that the process needs ("torch"); if it is not installed, the report notes that and the other
        contenders are measured.
      peer: whether it runs under one of the interpreters in config.peer_python instead of this one.
      env: environment variables of the process, in addition to those of this process.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    package: str = ""
    peer: bool = False
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work; each of the others is compared with the first.

    Attributes:
      title: its title in the report, unique within the section.
      contenders: the first one is the reference for ratios and outputs.
      timed: whether the contenders run in turns; otherwise each is started once, reports its facts and ends.
      same: names of the contenders whose output must equal the first one's; None for all that have an output.
      rate: unit of the work done per unit of time, such as "examples/s"; the report then shows the rate too.
      prepare: a contender that is run to its end before the others start, and writes the files that they read.
    """

    title: str
    contenders: tuple[Contender, ...]
    timed: bool = True
    same: tuple[str, ...] | None = None
    rate: str = ""
    prepare: Contender | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """What a contender's process repeats.

    Attributes:
      run: does the work once and returns when it is finished; None if there are only facts.
      output: () -> array, compared between contenders. Called after two runs and before the timed runs.
      units: number of equal parts of one run, such as steps of a scan; times are per part.
      facts: () -> further JSON-serialisable figures for the report. Called last.
    """

    run: Callable[[], Any] | None = None
    output: Callable[[], Any] | None = None
    units: int = 1
    facts: Callable[[], Mapping[str, Any]] = dict
