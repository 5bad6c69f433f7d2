"""What is measured: a contender, a row of contenders, and the work that a contender's process does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to do a row's work, in a process of its own.

    Attributes:
      name: what the table calls it.
      target: "module:function"; the function, called with kwargs in the process, returns its `Work`.
      kwargs: what JSON can hold.
      package: what must be installed there ("torch"); where it is not, the row says so and goes on.
      peer: whether its interpreter is one of config.peer_python, and not this one.
      env: environment variables of the process, beside those of this one.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    package: str = ""
    peer: bool = False
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """Contenders that do the same work, the first of which is compared to the others.

    Attributes:
      title: of the row, one of its own in the section.
      contenders: the first is ours.
      timed: whether they run in turns; otherwise each is started once, says its facts and ends.
      same: names of contenders whose output must be the first one's; None for all that have an output.
      rate: what is done in the time that is measured, "examples/s"; the table then says how many a second, too.
      prepare: run to its end before the others start: writes what they read.
    """

    title: str
    contenders: tuple[Contender, ...]
    timed: bool = True
    same: tuple[str, ...] | None = None
    rate: str = ""
    prepare: Contender | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """What a process repeats.

    Attributes:
      run: does it once and returns when it is done; None where there are facts alone.
      output: () -> array, compared between contenders. Called after two runs and before any that is timed.
      units: how many equal pieces a run does, such as steps of a scan; times are of one piece.
      facts: () -> more to report, what JSON can hold. Called last.
    """

    run: Callable[[], Any] | None = None
    output: Callable[[], Any] | None = None
    units: int = 1
    facts: Callable[[], Mapping[str, Any]] = dict
