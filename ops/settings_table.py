"""Write the settings table and `.env.example` from the settings themselves.

    python -m ops.settings_table [--check]

With `--check` it writes nothing and says which file is stale.
"""

import shlex
import sys
from pathlib import Path

from ops.generated import ROOT, main, replace_block

from finetune_queue.settings import SettingRow, describe

# Where the table stands, between markers.
PAGE = ROOT / "docs" / "settings.md"
ENV_EXAMPLE = ROOT / ".env.example"


def table(rows: list[SettingRow]) -> str:
    """Return the Markdown table of all settings."""
    lines = ["| Variable | Type | Default | Meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default else ""
        secret = " **Secret.**" if row.secret else ""
        lines.append(f"| `{row.env}` | {row.type} | {default} | {row.meaning}{secret} |".replace("|  |", "| |"))
    return "\n".join(lines)


def env_example(rows: list[SettingRow]) -> str:
    """Return a `.env` file with every setting explained and commented out."""
    head = "# Copy to .env and set what differs from the default. See docs/settings.md."
    parts = [f"# {row.meaning.replace('`', '')}\n# {row.env}={shlex.quote(row.example)}" for row in rows]
    return "\n\n".join([head, *parts]) + "\n"


def wanted() -> dict[Path, str]:
    """Return what each generated file should hold."""
    rows = list(describe())
    return {ENV_EXAMPLE: env_example(rows), PAGE: replace_block(PAGE, "settings", table(rows))}


if __name__ == "__main__":
    sys.exit(main(wanted()))
