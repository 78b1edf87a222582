"""Writes the results of a full run into docs/benchmarks.md, between its markers, and the plots beside it."""

from typing import Any

from ops.generated import ROOT, replace_block

from finetune_bench import plot, report
from finetune_bench.cases import CASES
from finetune_bench.measures import Result

DOCS = ROOT / "docs"
PAGE = DOCS / "benchmarks.md"


def budget(name: str, found: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write the tables of all cases, and a plot of each with more than one kind of contestant."""
    parts = [_said_of(machine)]
    for case_name, rows in found.items():
        case, results = CASES[case_name], [Result(**row) for row in rows]
        parts.append(report.markdown(case, results))
        if {"tutorial", "careful"} & {each.contestant for each in results}:
            picture = DOCS / f"benchmark-{case.name}.svg"
            picture.write_text(plot.svg(case, results))
            parts.append(f"![Finished jobs over time: {case.title}]({picture.name})")
    PAGE.write_text(replace_block(PAGE, name, "\n\n".join(parts)))


def tables(name: str, found: dict[str, Any], machine: dict[str, Any]) -> None:
    """Write one table for each title."""
    parts = [_said_of(machine), *(report.markdown_rows(*each) for each in found.items())]
    PAGE.write_text(replace_block(PAGE, name, "\n\n".join(parts)))


def _said_of(machine: dict[str, Any]) -> str:
    return (
        f"Measured on {machine['cores']} cores ({machine['system']}, {machine['processor']}, Python "
        f"{machine['python']}), with everything on them; load average before the run: {machine['load_before']}."
    )
