"""Results as Markdown: a table for each section, one line for each contender of each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TIMED = ("", "", "median ms", "min - max", "first / it", "compile s", "peak MB", "peak MB, running")


def render(results: Mapping[str, Any]) -> str:
    """Returns the report of what `experiments.benchmark` writes as JSON."""
    parts = [machine_line(results)]
    for section, rows in results["sections"].items():
        parts.append(f"## {section}")
        timed = [row for row in rows if row["timed"]]
        facts = [row for row in rows if not row["timed"]]
        if timed:
            parts.append(table(TIMED, [line for row in timed for line in timed_lines(row)]))
        if facts:
            parts.append(facts_table(facts))
        parts += [line for row in rows for line in complaints(row)]
    return "\n\n".join(parts) + "\n"


def machine_line(results: Mapping[str, Any]) -> str:
    """Returns the machine and the versions in a sentence each."""
    machine, versions = results["machine"], results["versions"]
    sets = ", ".join(machine["instruction_sets"]) or "unknown instruction sets"
    memory = f", {machine['memory_gb']:g} GB" if "memory_gb" in machine else ""
    load = f"; load before the first row {machine['load']:g}" if "load" in machine else ""
    known = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return f"{machine['cpu']}, {machine['cores']} cores ({sets}){memory}, {machine['system']}{load}. {known}."


def timed_lines(row: Mapping[str, Any]) -> Iterable[list[str]]:
    """Yields the lines of a row that was timed."""
    for name, entry in row["contenders"].items():
        title = row["title"] if entry is next(iter(row["contenders"].values())) else ""
        if "median" not in entry:
            yield [title, name, row["status"] if entry["status"] == "ok" else entry["status"], *[""] * 5]
            continue
        ratio = row["ratios"].get(name)
        rate = f" ({number(1 / entry['median'])} {row['rate']})" if row["rate"] else ""
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


def complaints(row: Mapping[str, Any]) -> Iterable[str]:
    """Yields why a row was refused and why contenders failed."""
    if row["status"] != "ok":
        yield f"{row['title']}: {row['status']}: {row['why']}"
    for name, entry in row["contenders"].items():
        if entry["status"] == "failed":
            yield f"{row['title']}: {name}: {entry['status']}: {entry['why']}"


def facts_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of rows that say facts, a column for each."""
    names = list(dict.fromkeys(n for row in rows for e in row["contenders"].values() for n in e.get("facts", {})))
    lines = []
    for row in rows:
        for i, (contender, entry) in enumerate(row["contenders"].items()):
            facts = entry.get("facts", {})
            said = "" if entry["status"] == "ok" else f" ({entry['status']})"
            cells = [number(facts[name]) if name in facts else "" for name in names]
            lines.append(["" if i else row["title"], contender + said, *cells])
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
    """Returns a number with three digits that count; whole numbers and words as they are.

    >>> number(0.01234), number(3412.6), number(7), number("cpu")
    ('0.0123', '3413', '7', 'cpu')
    """
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def factor(value: float) -> str:
    """Returns a ratio with two digits behind the point, small ones with two that count.

    >>> factor(1.0), factor(0.00123)
    ('1.00', '0.0012')
    """
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
