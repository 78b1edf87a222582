"""What ``finetune doctor`` finds: one line each, with what to do."""

from dataclasses import dataclass
from typing import Literal

from finetune_queue.cli import output, words
from finetune_queue.store import MOST_SKEW

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, how it is, and what to do if it is not well."""

    name: str
    status: Status
    message: str
    action: str = ""


def clock(name: str, skew: float, whose: str) -> Finding:
    """Return what to say of this machine's clock, which is ``skew`` seconds ahead of another's."""
    if abs(skew) <= MOST_SKEW:
        return Finding(name, "ok", f"within {MOST_SKEW:g} s of {whose}'s")
    side = "ahead of" if skew > 0 else "behind"
    message = f"this machine is {words.duration(abs(skew))} {side} {whose}"
    return Finding(name, "warn", message, "Set both by NTP: deadlines, event times and signatures depend on them.")


def show(finding: Finding) -> None:
    """Print a finding for people."""
    from rich.table import Table
    from rich.text import Text

    console = output.out()
    status = Text(finding.status, style={"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.status])
    action = f"→ {finding.action}" if finding.action else ""
    if not console.is_terminal:
        output.say(f"{finding.status:<4}  {finding.name}: {finding.message} {action}".rstrip())
        return
    row = Table.grid(padding=(0, 2))
    row.add_column(width=4)
    row.add_column(width=15, overflow="fold")
    row.add_column(overflow="fold")
    row.add_row(status, finding.name, Text(finding.message))
    if action:
        row.add_row("", "", Text(action, style="italic"))
    console.print(row)
