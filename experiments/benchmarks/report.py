"""The results as Markdown: tables per section, with one line per contender of each comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "TIMED",
    "complaints",
    "factor",
    "facts_table",
    "machine_line",
    "number",
    "render",
    "table",
    "timed_lines",
]

TIMED = ("", "", "median ms", "min - max", "first / this", "compile s", "peak MB", "peak MB, running")


def render(results: Mapping[str, Any]) -> str:
    """Returns the report of the results that `experiments.benchmark` writes as JSON."""
    parts = [machine_line(results)]
    for section, comparisons in results["sections"].items():
        parts.append(f"## {section}")
        timed = [each for each in comparisons if each["timed"]]
        facts = [each for each in comparisons if not each["timed"]]
        if timed:
            parts.append(table(TIMED, [line for each in timed for line in timed_lines(each)]))
        if facts:
            parts.append(facts_table(facts))
        parts += [line for each in comparisons for line in complaints(each)]
    return "\n\n".join(parts) + "\n"


def machine_line(results: Mapping[str, Any]) -> str:
    """Returns one line with the machine and the package versions."""
    machine, versions = results["machine"], results["versions"]
    sets = ", ".join(machine["instruction_sets"]) or "unknown instruction sets"
    memory = f", {machine['memory_gb']:g} GB" if "memory_gb" in machine else ""
    load = f"; load before the first comparison {machine['load']:g}" if "load" in machine else ""
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"{machine['cpu']}, {machine['cores']} cores ({sets}){memory}, {machine['system']}{load}. {known}."


def timed_lines(comparison: Mapping[str, Any]) -> Iterable[list[str]]:
    """Yields the lines of a timed comparison, one per contender."""
    for name, entry in comparison["contenders"].items():
        title = comparison["title"] if entry is next(iter(comparison["contenders"].values())) else ""
        if "median" not in entry:
            yield [title, name, comparison["status"] if entry["status"] == "ok" else entry["status"], *[""] * 5]
            continue
        ratio = comparison["ratios"].get(name)
        rate = f" ({number(1 / entry['median'])} {comparison['rate']})" if comparison["rate"] else ""
        yield [
            title,
            name + rate,
            number(1e3 * entry["median"]),
            f"{number(1e3 * entry['min'])} - {number(1e3 * entry['max'])}",
            "" if ratio is None else "{} ({} - {})".format(*(factor(ratio[name]) for name in ("median", "min", "max"))),
            number(entry["compile_s"]),
            number(entry["peak_mb"]),
            number(entry["run_peak_mb"]),
        ]


def complaints(comparison: Mapping[str, Any]) -> Iterable[str]:
    """Yields the reasons why a comparison was refused and why contenders failed."""
    if comparison["status"] != "ok":
        yield f"{comparison['title']}: {comparison['status']}: {comparison['why']}"
    for name, entry in comparison["contenders"].items():
        if entry["status"] == "failed":
            yield f"{comparison['title']}: {name}: {entry['status']}: {entry['why']}"


def facts_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of the comparisons that report facts, one column per fact."""
    entries = [entry for comparison in comparisons for entry in comparison["contenders"].values()]
    names = list(dict.fromkeys(name for entry in entries for name in entry.get("facts", {})))
    lines = []
    for comparison in comparisons:
        for i, (contender, entry) in enumerate(comparison["contenders"].items()):
            facts = entry.get("facts", {})
            status = "" if entry["status"] == "ok" else f" ({entry['status']})"
            cells = [number(facts[name]) if name in facts else "" for name in names]
            lines.append(["" if i else comparison["title"], contender + status, *cells])
    return table(["", "", *(name.replace("_", " ") for name in names)], lines)


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(_line, lines)])


def number(value: Any) -> str:
    """Returns a float with three significant digits; integers and strings are unchanged.

    >>> number(0.01234), number(3412.6), number(7), number("cpu")
    ('0.0123', '3413', '7', 'cpu')
    """
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def factor(value: float) -> str:
    """Returns a ratio with two decimal places, or two significant digits if it is below 0.1.

    >>> factor(1.0), factor(0.00123)
    ('1.00', '0.0012')
    """
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
