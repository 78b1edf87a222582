"""A report for a terminal: the verdict, the numbers, then the findings, each with its files and what to do."""

from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetune_queue.datasets.limits import MAX_ARCHIVE_BYTES
from finetune_queue.datasets.report import DatasetReport, Finding, Severity
from finetune_queue.plain_words import byte_size

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_FILES_SHOWN = 5


def render_report(report: DatasetReport, *, title: str | None = None) -> RenderableType:
    """Return what `Console.print` takes, for 80 columns, readable without colours. `title` names what was checked."""
    parts: list[RenderableType] = [_verdict(report, title), Padding(_facts(report), (1, 0, 0, 2))]
    for (_, code), group in groupby(report.findings, key=lambda each: (each.severity, each.code)):
        findings = list(group)
        parts.append(Padding(_finding(findings, report.omitted.get(code, 0)), (1, 0, 0, 0)))
    listed = {each.code for each in report.findings}
    rest = sum(more for code, more in report.omitted.items() if code not in listed)
    if rest:
        parts.append(Padding(Text(f"and {rest} more findings of other kinds", style="dim"), (1, 0, 0, 0)))
    return Group(*parts)


def _verdict(report: DatasetReport, title: str | None) -> Text:
    counts = [
        f"{count} {severity}{'s' if count > 1 else ''}"
        for severity in ("error", "warning", "note")
        if (count := report.count(severity))
    ]
    text = Text()
    text.append("PASS" if report.ok else "FAIL", style="bold green" if report.ok else "bold red")
    if title:
        text.append(f"  {title}", style="bold")
    text.append(f"  {', '.join(counts) if counts else 'no problems found'}")
    return text


def _facts(report: DatasetReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("images", str(report.images))
    table.add_row("captions", str(report.captions))
    if report.short_sides:
        low, high = report.short_sides
        table.add_row("short sides", f"{low} pixels" if low == high else f"{low} to {high} pixels")
    table.add_row("size", f"{byte_size(report.bytes)} of at most {byte_size(MAX_ARCHIVE_BYTES)}")
    if report.sha256:
        table.add_row("sha256", report.sha256)
    return table


def _finding(findings: list[Finding], omitted: int) -> Table:
    """Show one code: what it is about once, then each file with its own words."""
    first = findings[0]
    table = Table.grid(padding=(0, 2), expand=False)
    table.add_column(no_wrap=True, min_width=len("warning"))
    table.add_column(overflow="fold")
    table.add_row(Text(first.severity, style=_STYLES[first.severity]), Text(first.code, style="bold"))
    shown = findings[:_FILES_SHOWN]
    if len({each.message for each in shown}) == 1 and len(shown) > 1:
        table.add_row("", Text(first.message))
        table.add_row("", Text(", ").join(_file(each) for each in shown))
    else:
        for each in shown:
            table.add_row("", Text("  ").join([_file(each), Text(each.message)]) if each.file else Text(each.message))
    more = len(findings) - len(shown) + omitted
    if more:
        table.add_row("", Text(f"and {more} more", style="dim"))
    table.add_row("", Text(f"→ {first.fix}", style="italic"))
    return table


def _file(each: Finding) -> Text:
    return Text(each.file or "", style="bold cyan")
