"""Whose a training is, as a table: what Segmind shows of it, against the jobs that look for one."""

from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState, WaitReason
from finetune_worker.segmind.models import FinetuneDetails
from finetune_worker.stages.whose import Verdict, allot, judge
from support.samples import sample_request

SENT = 1_700_000_000
CALL_TIMEOUT = 60.0
SHARED = "https://example.com/faces.zip"
UPLOAD = "https://storage.example/me-faces.zip"

Expected = tuple[Verdict, str]


def job(name: str, sent: float = 0.0, *, on: str = SHARED, owner: str = "", **request: Any) -> JobRecord:
    """Return a job whose submit was sent so many seconds after the first one's, and had no answer."""
    return JobRecord(
        id=name,
        state=JobState.SUBMITTING,
        request=sample_request(dataset=SHARED, **request),
        dataset_url=on,
        intent_ms=int((SENT + sent) * 1000),
        owner=owner,
        waiting_for=WaitReason.PROVIDER,
    )


def training(created: float | None = 1.0, *, on: str | None = SHARED, **fields: Any) -> FinetuneDetails:
    when = None if created is None else datetime.fromtimestamp(SENT + created, UTC).isoformat()
    shown = {"finetune_id": "ft-1", "name": "a-face", "instance_prompt": "photo of 1MAN"}
    return FinetuneDetails.model_validate({**shown, "data_source_path": on, "created_ts": when, **fields})


def known(**created: float) -> dict[str, int]:
    return {name: int((SENT + seconds) * 1000) for name, seconds in created.items()}


CASES: dict[str, tuple[JobRecord, list[JobRecord], FinetuneDetails, dict[str, int], Expected]] = {
    "in time": (job("me"), [], training(), {}, (Verdict.ITS, "was created at")),
    "just in time": (job("me"), [], training(180.0), {}, (Verdict.ITS, "was created at")),
    "by a clock that is behind": (job("me"), [], training(-120.0), {}, (Verdict.ITS, "was created at")),
    "somewhat old": (job("me"), [], training(-130.0), {}, (Verdict.NOT_NOW, "at another time")),
    "somewhat young": (job("me"), [], training(190.0), {}, (Verdict.NOT_NOW, "at another time")),
    "old": (job("me"), [], training(-3600.0), {}, (Verdict.ANOTHERS, "at another time")),
    "young": (job("me"), [], training(3600.0), {}, (Verdict.ANOTHERS, "at another time")),
    "without a time": (job("me"), [], training(None), {}, (Verdict.UNCLEAR, "no creation time")),
    "of another name": (job("me"), [], training(name="b"), {}, (Verdict.ANOTHERS, "is named 'b'")),
    "on another dataset": (job("me"), [], training(on="https://c.example/d.zip"), {}, (Verdict.ANOTHERS, "c.example")),
    "of another prompt": (job("me"), [], training(instance_prompt="x"), {}, (Verdict.NOT_NOW, "another prompt")),
    "old and of another prompt": (
        job("me"),
        [],
        training(-130.0, instance_prompt="x"),
        {},
        (Verdict.ANOTHERS, "at another time"),
    ),
    "of another job's prompt": (
        job("me"),
        [job("it", instance_prompt="x")],
        training(instance_prompt="x"),
        {},
        (Verdict.ANOTHERS, "has the prompt of job it"),
    ),
    "of a submit on its way": (job("me"), [job("it", owner="w")], training(), {}, (Verdict.SOON, "on its way")),
    "too old for a submit on its way": (
        job("me"),
        [job("it", 600.0, owner="w")],
        training(),
        {},
        (Verdict.ITS, "was created at"),
    ),
    "of one who asked for another": (
        job("me"),
        [job("it", theme="Art")],
        training(),
        {},
        (Verdict.UNCLEAR, "job it's, whose request differs"),
    ),
    "too old for one who asked for another": (
        job("me"),
        [job("it", 600.0, theme="Art")],
        training(),
        {},
        (Verdict.ITS, "was created at"),
    ),
    "of a twin who was submitted just before it": (
        job("me"),
        [job("twin", 100.0)],
        training(101.0),
        {},
        (Verdict.NOT_NOW, "fits job twin better"),
    ),
    "of mine, and the twin came later": (
        job("me"),
        [job("twin", 100.0)],
        training(1.0),
        {},
        (Verdict.ITS, "was created at"),
    ),
    "of mine, as the twin has a later one": (
        job("me"),
        [job("twin", 1.0)],
        training(2.0),
        known(later=3.0),
        (Verdict.ITS, "was created at"),
    ),
    "of the twin's, as a later one is mine": (
        job("me", 1.0),
        [job("twin")],
        training(2.0),
        known(later=3.0),
        (Verdict.NOT_NOW, "fits job twin better"),
    ),
    "of the twin's, by a time without its fraction": (
        job("me", 100.1),
        [job("twin", 100.3)],
        training(100.0),
        {},
        (Verdict.NOT_NOW, "fits job twin better"),
    ),
    "of mine, by a time without its fraction": (
        job("me", 100.3),
        [job("twin", 99.9)],
        training(100.0),
        {},
        (Verdict.ITS, "was created at"),
    ),
    "marked": (job("me", on=UPLOAD), [], training(None, on=UPLOAD), {}, (Verdict.ITS, "has its mark")),
    "marked and of another name": (
        job("me", on=UPLOAD),
        [],
        training(on=UPLOAD, name="b"),
        {},
        (Verdict.NOT_NOW, "is named 'b'"),
    ),
    "marked and of another prompt": (
        job("me", on=UPLOAD),
        [],
        training(on=UPLOAD, instance_prompt="x"),
        {},
        (Verdict.NOT_NOW, "another prompt"),
    ),
    "on my upload, by the prompt another's": (
        job("me", on=UPLOAD),
        [job("it", 5.0, on=UPLOAD, instance_prompt="x")],
        training(6.0, on=UPLOAD, instance_prompt="x"),
        {},
        (Verdict.ANOTHERS, "has the prompt of job it"),
    ),
    "on my upload, by the time another's": (
        job("me", on=UPLOAD),
        [job("it", 500.0, on=UPLOAD)],
        training(501.0, on=UPLOAD),
        {},
        (Verdict.NOT_NOW, "at another time"),
    ),
    "on another's upload": (job("me", on=UPLOAD), [], training(on=SHARED), {}, (Verdict.ANOTHERS, SHARED)),
    "of no dataset, of a name that another job has": (
        job("me", on=UPLOAD),
        [job("it")],
        training(on=None),
        {},
        (Verdict.UNCLEAR, "job it's, whose request differs"),
    ),
}


@pytest.mark.parametrize(("mine", "others", "details", "times", "expected"), CASES.values(), ids=CASES)
def test_whose_a_training_is(
    mine: JobRecord, others: list[JobRecord], details: FinetuneDetails, times: dict[str, int], expected: Expected
) -> None:
    found = judge(mine, others, details, call_timeout=CALL_TIMEOUT, known=times)
    verdict, said = expected
    assert found.verdict is verdict, found.why
    assert said in found.why
    only_by_time = verdict is Verdict.NOT_NOW and details.name == "a-face" and details.instance_prompt != "x"
    assert (found.created_ms is not None) == only_by_time


@pytest.mark.parametrize(
    ("sent", "created", "expected"),
    [
        pytest.param([0, 130], [1, 131], {0: 0, 1: 1}, id="each its own, though the later fits both"),
        pytest.param([0, 1], [2, 3], {0: 0, 1: 1}, id="both sent before both were created"),
        pytest.param([0, 60, 120], [61, 121, 181], {0: 0, 1: 1, 2: 2}, id="each slow, so that the next was sent"),
        pytest.param([0, 130], [131], {1: 0}, id="one of them never arrived"),
        pytest.param([100], [0], {0: 0}, id="by a clock that is behind"),
        pytest.param([0, 500], [-2000, 300], {}, id="strangers"),
        pytest.param([0.2, 0.7], [0], {1: 0}, id="one of them never arrived, by a time without its fraction"),
        pytest.param([0.2, 0.7, 1.4], [0, 0, 1], {0: 0, 1: 1, 2: 2}, id="each its own, by times without fractions"),
        pytest.param([120.9], [0], {0: 0}, id="by a clock that is behind, without its fraction"),
    ],
)
def test_trainings_are_shared_out_so_that_none_is_left_over(
    sent: list[float], created: list[float], expected: dict[int, int]
) -> None:
    jobs = [job(f"job-{number}", seconds) for number, seconds in enumerate(sent)]
    times = known(**{f"ft{number}": seconds for number, seconds in enumerate(created)})
    whose = allot(times, list(reversed(jobs)), call_timeout=CALL_TIMEOUT)
    assert whose == {f"ft{training}": f"job-{number}" for number, training in expected.items()}
