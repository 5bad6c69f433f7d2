"""The machine on which figures are measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

__all__ = ["INSTRUCTION_SETS", "describe", "load_average"]

# The flags in /proc/cpuinfo that decide how fast a matrix product can be.
INSTRUCTION_SETS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
)


def describe(cpuinfo: str | None = None) -> dict[str, Any]:
    """Returns the CPU model, usable cores, instruction sets, memory and load; what is unknown is left out.

    Args:
      cpuinfo: contents of /proc/cpuinfo; None reads the file.

    >>> describe("model name : A\\nflags : sse2 avx2 fma\\n")["instruction_sets"]
    ['avx2', 'fma']
    """
    if cpuinfo is None:
        path = Path("/proc/cpuinfo")
        cpuinfo = path.read_text() if path.exists() else ""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    found |= {"load": load} if (load := load_average()) is not None else {}
    return found


def load_average() -> float | None:
    """Returns the mean number of processes that ran or waited for a core in the last minute; None if unknown.

    Thread pools slow down disproportionately on a busy machine: figures are reliable if this is near 0 before the first
    comparison and near the number of cores during the others.

    >>> load_average() is None or load_average() >= 0
    True
    """
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
