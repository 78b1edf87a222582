"""A job as steps, and the steps as a picture."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from finetune_queue.cli.follow import Snapshot
from finetune_queue.cli.picture import Picture
from finetune_queue.cli.timeline import Step, detail, steps
from finetune_queue.contract import EventType, JobRecord, JobState, WaitReason
from finetune_queue.sdk import FineTuneQueue, Waiting
from finetune_queue.settings import load_settings
from support.cli import Worker


def steps_of(worker: Worker, job: JobRecord, waiting: Waiting | None = None) -> list[Step]:
    return steps(job, worker.store.events(job.id), waiting, datetime.now(UTC))


def marks(found: list[Step]) -> list[tuple[str, str]]:
    return [(str(step.state), step.mark) for step in found]


def test_a_job_in_the_middle_has_steps_behind_and_before_it(worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.TRAINING)
    found = steps_of(worker, job, Waiting(WaitReason.PROVIDER, 0, None))
    assert marks(found) == [
        ("accepted", "done"),
        ("uploading", "done"),
        ("submitting", "done"),
        ("training", "now"),
        ("downloading", "todo"),
        ("succeeded", "todo"),
    ]
    assert [step.detail for step in found[:4]] == [
        "on the queue",
        "8 images, 8 captions, 1.2 MB",
        "training ft-1",
        "Segmind: REQUESTED",
    ]
    assert all(step.seconds is not None and 0 <= step.seconds < 5 for step in found[:4])


def test_a_job_that_waits_for_inference_has_one_step_more(worker: Worker) -> None:
    found = steps_of(worker, worker.accept(wait_for="available"))
    assert marks(found)[-2:] == [("deploying", "todo"), ("succeeded", "todo")]


def test_a_job_that_ended_well_has_nothing_before_it(worker: Worker) -> None:
    found = steps_of(worker, worker.bring(worker.accept(), JobState.SUCCEEDED))
    assert marks(found)[-2:] == [("downloading", "done"), ("succeeded", "done")]
    assert found[-2].detail == "4.2 MB, 170 tensors, verified and stored"


def test_a_failure_marks_the_step_and_says_why(worker: Worker) -> None:
    found = steps_of(worker, worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING)))
    assert marks(found)[-2:] == [("downloading", "bad"), ("failed", "bad")]
    assert found[-1].detail == "The disk is full."


def test_a_retry_is_shown_as_it_happened(worker: Worker) -> None:
    job = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING))
    job = worker.move(job, JobState.DOWNLOADING, error=None, failed_stage=None)
    found = steps_of(worker, job)
    assert marks(found)[-4:] == [
        ("downloading", "bad"),
        ("failed", "bad"),
        ("downloading", "now"),
        ("succeeded", "todo"),
    ]
    assert found[-3].detail == "The disk is full."


def test_a_job_that_needs_a_person_says_so(worker: Worker) -> None:
    job = worker.move(worker.bring(worker.accept(), JobState.SUBMITTING), JobState.NEEDS_ATTENTION, intent_ms=1)
    found = steps_of(worker, job)
    assert marks(found)[3:] == [
        ("needs_attention", "attention"),
        ("training", "todo"),
        ("downloading", "todo"),
        ("succeeded", "todo"),
    ]
    assert found[3].detail == "a person must say whether the submit reached Segmind (finetune resolve)"


def test_a_job_that_no_worker_has_taken_up_says_so(worker: Worker) -> None:
    job = worker.accept()
    assert detail(job, None) == ""
    assert detail(job, Waiting(WaitReason.WORKER, 0, None)) == "no worker has picked it up yet"
    alone = Waiting(WaitReason.WORKER, 0, None, no_worker=True)
    assert detail(job, alone, stranded=True) == "no worker is running: it waits until one is started"
    assert detail(worker.bring(job, JobState.TRAINING), Waiting(WaitReason.PROVIDER, 0, None)) == "Segmind: REQUESTED"


def test_a_cancel_says_what_goes_on(worker: Worker) -> None:
    job = worker.move(worker.bring(worker.accept(), JobState.TRAINING), JobState.CANCELLED, waiting_for=None)
    assert detail(job, None) == "stopped here; Segmind's training continues, as it has no cancel"


def picture(worker: Worker, job: JobRecord, width: int, *, encoding: str = "utf-8", moving: bool = False) -> str:
    with FineTuneQueue(load_settings()) as queue:
        seen = Snapshot(queue.get(job.id), tuple(worker.store.events(job.id)), queue.waiting(queue.get(job.id)))
    target = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=target, width=width, force_terminal=True, color_system=None)
    console.print(Picture(seen, moving=moving))
    target.seek(0)
    return target.read()


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_keeps_to_the_terminal_s_width(worker: Worker, width: int) -> None:
    job = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING), message="word " * 100)
    lines = picture(worker, job, width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("✓ accepted")


def test_the_picture_shows_bytes_with_a_bar(worker: Worker) -> None:
    job = worker.progress(worker.bring(worker.accept(), JobState.DOWNLOADING), 2_100_000, 4_200_000)
    assert "2.1 MB of 4.2 MB" in picture(worker, job, 80)
    job = worker.progress(job, 2_100_000, None)
    assert "2.1 MB" in picture(worker, job, 80)


def test_the_picture_is_drawn_with_what_the_terminal_can_show(worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.TRAINING)
    drawn = picture(worker, job, 80, encoding="ascii", moving=True)
    assert drawn.startswith("+ accepted")
    assert ". succeeded" in drawn


def test_a_name_cannot_steer_the_terminal(worker: Worker) -> None:
    job = worker.note(worker.bring(worker.accept(), JobState.TRAINING), provider_status="\x1b[2Jgone")
    assert "\x1b" not in picture(worker, job, 80)
    assert "\\x1b[2Jgone" in picture(worker, job, 80)


def test_a_change_of_segmind_s_word_is_no_step(worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.TRAINING)
    job = worker.note(job, event=EventType.PROGRESS, provider_status="DEPLOYING")
    assert len(steps_of(worker, job)) == 6
