"""What the pages say of others: links lead somewhere, and words of the program are ones that it has."""

import inspect
import re
from pathlib import Path

import pytest

from finetune_queue.contract import TRANSITIONS, JobState
from finetune_queue.settings import Settings, load_settings
from finetune_queue.store import keys
from finetune_worker.celery import worker_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = "".join(
    file.read_text(encoding="utf-8")
    for part in ("producers", "worker", "ops")
    for file in (ROOT / part).rglob("*")
    if file.suffix in {".py", ".lua", ".yaml", ".json"}
)
OTHERS = {
    *("redis_exporter", "aof_last_write_status", "rdb_last_bgsave_status", "sum_over_time"),
    *("task_send_sent_event", "parentbased_traceidratio"),
}
"""Words of other programs."""
NO_SETTINGS = {"FINETUNE_ID", "FINETUNE_REDIS_ULR"}
"""The id of a training, and a mistake that a program points out."""


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


def test_the_readme_leads_to_every_page() -> None:
    targets = re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    named = {(ROOT / target).resolve() for target in targets if ":" not in target}
    others = {page for page in PAGES if not {page, page.parent, *page.parent.glob("README.md")} & named}
    assert others - {ROOT / "README.md"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_targets_files_and_words_that_a_page_names_are_in_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    settings = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"\b(?:FINETUNE|SEGMIND)_[A-Z_]+\b", text)) - settings - NO_SETTINGS == set()
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z0-9-]+)", text)) <= set(targets)
    files = re.findall(r"`((?:tests|worker|producers|ops|docker|docs|\.ci)/[\w./-]+)", text)
    assert [name for name in files if not (ROOT / name).exists()] == []
    words = (
        set(re.findall(r"`(?!finetune_)([a-z]+(?:_[a-z]+)+)[`:]", text)) - OTHERS
    )  # metrics: tests/e2e/test_metrics.py
    assert {word for word in words if not re.search(rf"\b{word}\b", CODE)} == set()


def test_the_diagram_of_a_job_s_life_is_the_table_of_the_code() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^    (\w+) --> (\w+)$", page.partition("stateDiagram-v2")[2].partition("```")[0], re.MULTILINE)
    ends = {JobState.FAILED, JobState.CANCELLED}  # the page says in words that every live state leads to them
    table = {(str(source), str(to)) for source, targets in TRANSITIONS.items() for to in targets - ends}
    assert set(drawn) == table
    assert {source for source in JobState if TRANSITIONS[source] >= ends} == {
        state for state in JobState if not state.terminal
    }


def test_each_celery_setting_of_a_worker_has_its_reason() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## How Celery is configured")[2]
    config = worker_config(load_settings({}))
    names = {*config, *config["broker_transport_options"]}
    assert {name for name in names if not re.search(rf"`[^`]*\b{name}\b[^`]*`", page)} == set()


def test_keys_that_commands_of_the_runbook_name_are_those_of_the_store() -> None:
    makers = [maker for _, maker in inspect.getmembers(keys, inspect.isfunction) if maker.__module__ == keys.__name__]
    known = {maker(*["ACCOUNT"] * len(inspect.signature(maker).parameters)) for maker in makers}
    named = set(re.findall(r"'(\{finetune\}:[^' ]+)'", (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")))
    assert len(named) > 2
    assert named <= known
