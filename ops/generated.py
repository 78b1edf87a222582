"""What the modules share that write committed files: they end in `main`, which also checks for `make check`. They run
from the project's folder."""

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
    """Write the files that should hold something else. With `--check` write nothing, say which these are, and return
    1 if there are any."""
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale: run `make generated`")
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0
