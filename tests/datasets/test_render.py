"""A report on a terminal: everything is there, nothing is wider than the terminal, and no name can dress it up."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from finetune_queue.datasets.check import FEW_IMAGES, LONG_CAPTION, MANY_IMAGES, check_archive
from finetune_queue.datasets.limits import DEFAULT_LIMITS
from finetune_queue.datasets.render import render_report
from finetune_queue.datasets.report import RULES, DatasetReport, finding
from support.images import image_bytes, make_dataset_zip, make_zip


def shown(report: DatasetReport, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render_report(report, title="cats"))
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_kind_of_finding_fits(width: int) -> None:
    findings = tuple(finding(code, "Something is the matter. " * 4, "a" * 100) for code in RULES)
    text = shown(DatasetReport(ok=False, findings=findings, sha256="0" * 64), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for code in RULES:
        assert code in text


def test_the_verdict_and_the_numbers_come_first(tmp_path: Path) -> None:
    report = check_archive(make_dataset_zip(tmp_path / "a.zip", count=7))
    text = shown(report)
    assert text.splitlines()[0].rstrip() == "PASS  cats  7 warnings"
    assert "short sides  64 pixels" in text
    assert report.sha256 is not None
    assert report.sha256 in text
    assert "photo001.jpg, photo002.jpg, photo003.jpg, photo004.jpg, photo005.jpg" in text
    assert "and 2 more" in text


def test_nothing_to_say_is_said() -> None:
    assert "PASS  cats  no problems found" in shown(DatasetReport(ok=True))


def test_a_failure_names_the_file_and_the_fix(tmp_path: Path) -> None:
    report = check_archive(make_zip(tmp_path / "a.zip", {"a.jpg": image_bytes(1), "b.jpg": b"no"}))
    text = shown(report)
    assert text.startswith("FAIL")
    assert "b.jpg  It is named like an image" in text
    assert RULES["image_unreadable"].fix in text


def test_what_is_not_listed_is_counted() -> None:
    listed = finding("image_small", "64 x 64 pixels.", "a.jpg")
    text = shown(DatasetReport(ok=True, findings=(listed,), omitted={"image_small": 9, "image_cmyk": 3}))
    assert "13 warnings" in text
    assert "and 9 more" in text
    assert "and 3 more findings of other kinds" in text


def test_names_are_shown_as_they_are_and_control_nothing(tmp_path: Path) -> None:
    files = {"[bold]x[/bold].exe": b"", "[/].exe": b"", "\u202egpj.exe": b""}
    text = shown(check_archive(make_zip(tmp_path / "a.zip", files)))
    assert "[bold]x[/bold].exe, [/].exe" in text
    assert "\\u202egpj.exe" in text
    assert "\x1b" not in text


def test_the_page_in_docs_has_every_finding_and_its_fix() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    for severity in ("error", "warning", "note"):
        rows = [f"| `{code}` | {rule.fix} |" for code, rule in RULES.items() if rule.severity == severity]
        assert "\n".join([f"| {severity} | what to do |", "|---|---|", *rows]) in page


def test_the_page_in_docs_has_the_limits() -> None:
    page = " ".join((Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8").split())
    most = DEFAULT_LIMITS
    sizes = f"{most.max_entry_bytes // 10**6} MB each and {most.max_inflated_bytes // 10**6} MB in all"
    assert f"may have {most.max_entries:,} files, which inflate to {sizes}" in page
    assert f"an image {most.max_pixels // 10**6} million pixels" in page
    assert f"Fewer than {FEW_IMAGES} images are few, more than {MANY_IMAGES} many" in page
    assert f"more than {LONG_CAPTION:,} characters is long" in page
