"""Shared by the modules that generate committed files. Each is run from the project's folder and calls `main` here,
which writes its files or, for `make check`, only compares them."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def replace_block(page: Path, name: str, body: str) -> str:
    """Return a page's text with ``body`` between the two markers of this name, `<!-- NAME: by whom -->` and
    `<!-- NAME: end -->`.

    Raises:
        ValueError: The page has not each marker once, in order.
    """
    text = page.read_text(encoding="utf-8")
    markers = list(re.finditer(rf"<!-- {re.escape(name)}: (.+?) -->", text))
    if [marker[1] == "end" for marker in markers] != [False, True]:
        message = f"{page.name} should hold each marker of '{name}' once, in order"
        raise ValueError(message)
    begin, end = markers
    return f"{text[: begin.end()]}\n{body}\n{text[end.start() :]}"


def main(wanted: Mapping[Path, str]) -> int:
    """Write those of the ``wanted`` files whose text differs, and return 0. With `--check` on the command line write
    nothing, print which differ, and return 1 if any does."""
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make generated`")
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0
