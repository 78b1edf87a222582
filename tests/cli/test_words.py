"""How the command line says times, sizes and reasons."""

import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_queue.cli import words
from finetune_queue.contract import WaitReason, new_job_id
from finetune_queue.contract.job import JobError, JobRecord, JobState
from finetune_queue.plain_words import JOINERS, byte_size
from finetune_queue.sdk import Waiting
from support.samples import sample_request


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (119, "119 s"),
        (600, "10 min"),
        (3 * 3600 + 5 * 60, "3 h 5 min"),
        (3 * 3600, "3 h"),
        (20 * 3600 + 60, "20 h"),
        (72 * 3600, "3 days"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (4_194_304, "4.2 MB"),
        (100_000_000, "100 MB"),
        (2_500_000_000, "2.50 GB"),
    ],
)
def test_sizes(count: int, said: str) -> None:
    assert byte_size(count) == said


@given(st.text())
def test_no_text_of_others_can_steer_a_terminal_or_break_a_line(text: str) -> None:
    said = words.printable(text).translate(dict.fromkeys(map(ord, JOINERS)))
    assert not any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for character in said)


def test_names_in_all_scripts_are_shown_as_they_are_written() -> None:
    for name in ("\u0645\u062f\u0644\u200c\u0647\u0627", "\U0001f469\u200d\U0001f467 family", "שלום", "été", "模型"):
        assert words.printable(name) == name


def test_an_escape_sequence_is_shown_and_not_obeyed() -> None:
    assert words.printable("red \x1b[31m\nname") == "red \\x1b[31m name"


def _record() -> JobRecord:
    error = JobError(code="timeout", stage="submit", message="No answer.")
    return JobRecord(id=new_job_id(), state=JobState.SUBMITTING, request=sample_request(), error=error)


@pytest.mark.parametrize("reason", WaitReason)
def test_every_reason_to_wait_has_words(reason: WaitReason) -> None:
    assert words.waiting_line(Waiting(reason, 0, None), _record().error)


def test_a_wait_tells_how_many_are_ahead_and_for_how_long() -> None:
    line = words.waiting_line(Waiting(WaitReason.API_SLOT, 12, 14.4), _record().error)
    assert line == "waiting for an API call within the rate limit, 12 ahead, about 14 s"


def test_a_backoff_tells_what_went_wrong() -> None:
    assert words.waiting_line(Waiting(WaitReason.BACKOFF, 0, None), _record().error).endswith("after: No answer.")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///srv/a%20b/x.bin", "/srv/a b/x.bin"),
        ("file:///srv/a%20%20b/%1b[31m", "/srv/a  b/\\x1b[31m"),
        ("file://./var/artifacts", "./var/artifacts"),
        ("file://host/x", "file://host/x"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_a_file_is_shown_as_a_path(url: str, said: str) -> None:
    assert words.place(url) == said


def test_what_lies_below_the_current_folder_is_shown_from_there_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "var" / "x"
    monkeypatch.chdir(tmp_path)
    assert words.near(path.as_uri()) == str(path)  # a log is read elsewhere
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert words.near(path.as_uri()) == "var/x"
    assert words.near("file:///elsewhere/x") == "/elsewhere/x"
    monkeypatch.chdir("/")
    assert words.near(path.as_uri()) == str(path)


def test_a_dataset_report_in_a_line() -> None:
    findings = [{"severity": "warning"}, {"severity": "note"}, {"severity": "warning"}]
    report = {"images": 1, "captions": 2, "bytes": 1000, "findings": findings}
    assert words.report_line(report) == "1 image, 2 captions, 1 kB, 2 warnings"


def test_a_report_of_another_version_is_no_reason_to_fail() -> None:
    assert words.report_line({"something": "else"}) == ""
