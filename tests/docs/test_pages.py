"""What the pages say of others: links lead somewhere, and words of the program are ones that it has."""

import inspect
import re
from pathlib import Path

import pytest

from finetune_queue.store import keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = ("producers", "worker", "ops/sandbox")
OTHERS = {"redis_exporter", "aof_last_write_status", "rdb_last_bgsave_status"}
"""Words of other programs."""


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if ":" in target:  # an address on the web
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("name", ["runbook", "settings"])
def test_codes_and_events_that_a_page_names_are_in_the_code(name: str) -> None:
    code = "".join(file.read_text(encoding="utf-8") for part in SOURCES for file in (ROOT / part).rglob("*.py"))
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)[`:]", page)) - OTHERS
    assert named
    assert {word for word in named if not re.search(rf"\b{word}\b", code)} == set()


def test_keys_that_commands_of_the_runbook_name_are_those_of_the_store() -> None:
    makers = [maker for _, maker in inspect.getmembers(keys, inspect.isfunction) if maker.__module__ == keys.__name__]
    known = {maker(*["ACCOUNT"] * len(inspect.signature(maker).parameters)) for maker in makers}
    named = set(re.findall(r"'(\{finetune\}:[^' ]+)'", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")))
    assert len(named) > 2
    assert named <= known
