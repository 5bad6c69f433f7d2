"""Counts of a compiled program's communication."""

from __future__ import annotations

import collections
import math
import re

__all__ = ["collectives"]

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Returns {collective: {"count", "bytes"}} of one call of a compiled program.

    Those in loops count once per iteration where the program has the number, as on CPUs, else once.

    Bytes are those of the results on one device. A TPU's program has reduce-scatters as fusions of an all-reduce and a
    slice: they count as reduce-scatter, with the bytes of the all-reduce. An all-reduce of which the CPU's program uses
    a slice counts as all-reduce.

    Args:
      text: `compiled.as_text()`.
    """
    bodies = _computations(text)
    times: collections.Counter[str] = collections.Counter()
    entry = next(name for name in bodies if name.startswith("ENTRY "))
    pending = [(entry, 1)]
    while pending:
        name, count = pending.pop()
        times[name] += count
        for line in bodies[name]:
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for called in re.findall(r"(?:body|calls|to_apply|condition)=%([\w.\-]+)", line):
                pending.append((called, count * int(trips[1]) if trips else count))
            for group in re.findall(r"branch_computations=\{([^}]*)\}", line):
                pending += [(called, count) for called in re.findall(r"%([\w.\-]+)", group)]
    found: dict[str, dict[str, int]] = {}
    for name, lines in bodies.items():
        scattered = "all-reduce-scatter" in name
        for line in lines:
            match = re.search(rf"= (.*?) ({_COLLECTIVES})(-start)?\(", line)
            if match and times[name]:
                kind = "reduce-scatter" if scattered and match[2] == "all-reduce" else match[2]
                size = (max if match[3] else sum)(_bytes(match[1]) or [0])  # the start of one returns its argument, too
                each = found.setdefault(kind, {"count": 0, "bytes": 0})
                each["count"] += times[name]
                each["bytes"] += times[name] * size
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a program, by name; that of the entry begins with "ENTRY "."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            name = (header[1] or "") + header[2]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def _bytes(types: str) -> list[int]:
    """The bytes of each array of a type, which may be a tuple."""
    return [
        _BYTES.get(kind, 1) * math.prod(int(each) for each in dims.split(",") if each)
        for kind, dims in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", types)
    ]
