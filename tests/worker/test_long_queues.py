"""A long queue: what the dispatcher sends again then, and what it leaves to wait."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from kombu.exceptions import OperationalError

from finetune_queue.contract import JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.messaging import BEGIN, CALL, CONTINUE, QUEUE, TRANSFER_QUEUE
from finetune_queue.store import CallClass, Change, keys, room_score
from finetune_worker import dispatcher as dispatcher_module
from finetune_worker.dispatcher import BATCH, CROWDED, Dispatcher
from support.bench import Bench
from support.until import until


@pytest.fixture
def dispatcher(bench: Bench) -> Iterator[Dispatcher]:
    yield Dispatcher(bench.container)
    bench.container.messenger._app.close()


def overdue(bench: Bench, job: JobRecord, seconds: float) -> None:
    """Let the job's message have been sent that long ago, and its deadline pass now."""
    client = bench.container.jobs._redis
    now = client.time()[0] * 1000
    client.hset(keys.job(job.id), "updated_ms", str(int(now - seconds * 1000)))
    client.zadd(keys.deadlines(), {job.id: now - 1})


def fill(bench: Bench, count: int) -> None:
    """Put messages in front of the job's."""
    for _ in range(count):
        bench.container.messenger.start("nobody", [Stage.SUBMIT])


def test_a_lost_message_is_sent_again(bench: Bench, dispatcher: Dispatcher) -> None:
    job = bench.job()
    overdue(bench, job, 16)
    dispatcher.step()
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 1
    assert bench.read(job).state is JobState.UPLOADING


def test_a_message_in_a_long_queue_is_not_sent_again_until_its_turn_is_over(
    bench: Bench, dispatcher: Dispatcher
) -> None:
    fill(bench, BATCH + 10)
    job = bench.job()

    overdue(bench, job, 16)
    dispatcher.step()
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 0
    assert bench.read(job).state is JobState.ACCEPTED

    overdue(bench, job, 60)
    dispatcher.step()
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 1


def test_what_waited_by_itself_is_started_however_long_the_queues_are(bench: Bench, dispatcher: Dispatcher) -> None:
    fill(bench, BATCH + 10)
    jobs, job = bench.container.jobs, bench.job()
    job = jobs.transition(job, Change(delay=60), to=JobState.UPLOADING)
    job = jobs.transition(job, Change(delay=60), waiting_for=WaitReason.BACKOFF, attempts=1)
    overdue(bench, job, 16)

    dispatcher.step()

    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 1
    assert bench.read(job).waiting_for is None


def test_a_job_whose_time_is_up_ends_however_long_the_queues_are(bench: Bench, dispatcher: Dispatcher) -> None:
    fill(bench, BATCH + 10)
    job = bench.job(deadline=datetime.now(UTC) + timedelta(seconds=1.5))
    overdue(bench, job, 16)
    dispatcher.step()  # not yet
    assert bench.due_ms(job) <= cast("datetime", job.request.deadline).timestamp() * 1000 + 100

    until(lambda: job.request.expired(datetime.now(UTC)), seconds=30)
    overdue(bench, job, 16)
    dispatcher.step()

    [(args, _, _)] = messages(bench, QUEUE, 1)
    assert args[0] == job.id


UNREACHED = JobError(code="dataset_unreachable", stage="upload", message="h.example cannot be reached.")


@pytest.mark.parametrize("checked", [False, True])
def test_first_tries_that_have_failed_do_not_go_before_what_is_new(
    bench: Bench, dispatcher: Dispatcher, *, checked: bool
) -> None:
    """As where a batch names a host that is away: each try may hold a thread for seconds. An upload goes on."""
    jobs, failing = bench.container.jobs, bench.job()
    failing = jobs.transition(failing, Change(delay=60), to=JobState.UPLOADING)
    report = {"ok": True} if checked else None
    fields: dict[str, Any] = {"attempts": 1, "error": UNREACHED, "dataset_report": report}
    failing = jobs.transition(failing, Change(delay=60), waiting_for=WaitReason.BACKOFF, **fields)
    overdue(bench, failing, 16)
    dispatcher.step()
    bench.container.messenger.start("new", [Stage.UPLOAD], priority=BEGIN)

    order = [args[0] for args, _, _ in messages(bench, TRANSFER_QUEUE, 2)]
    assert order == ([failing.id, "new"] if checked else ["new", failing.id])


def in_the_room(bench: Bench, **request: Any) -> JobRecord:
    jobs, job = bench.container.jobs, bench.submitting(**request)
    change = Change(delay=3600, room_score=room_score(CallClass.SUBMIT, job))
    return jobs.transition(job, change, waiting_for=WaitReason.SPENDING)


def test_a_job_that_still_waits_in_its_account_s_room_is_left_there(bench: Bench, dispatcher: Dispatcher) -> None:
    bench.container.accounts.stop_submits("default", stopped=True)
    job = in_the_room(bench)
    overdue(bench, job, 3600)
    before = bench.read(job)

    dispatcher.step()

    assert bench.read(job) == before
    assert bench.container.messenger.queued(QUEUE) == 0
    assert bench.container.accounts.place(job) == 0
    client = bench.container.jobs._redis
    assert bench.due_ms(job) > (client.time()[0] + 3000) * 1000


def test_a_job_that_lost_its_place_or_its_time_is_started(bench: Bench, dispatcher: Dispatcher) -> None:
    bench.container.accounts.stop_submits("default", stopped=True)
    taken_out, too_late = in_the_room(bench), in_the_room(bench, deadline="2026-01-01T00:00:00Z")
    bench.container.jobs._redis.zrem(keys.room("default"), taken_out.id)
    for job in (taken_out, too_late):
        overdue(bench, job, 3600)

    dispatcher.step()

    assert bench.container.messenger.queued(QUEUE) == 2


def test_long_queues_put_off_nobody_whose_turn_a_broken_broker_took(
    bench: Bench, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, BATCH + 10)
    late = bench.job()
    overdue(bench, late, 16)
    dispatcher.step()
    client = bench.container.jobs._redis
    assert bench.due_ms(late) > (client.time()[0] + 18) * 1000  # 37 s since it was sent

    jobs = bench.container.jobs
    dead = [jobs.transition(bench.job(), Change(delay=0), to=JobState.UPLOADING, owner="died") for _ in range(3)]
    monkeypatch.setattr(bench.container.messenger, "start", broken)
    with pytest.raises(OperationalError):
        dispatcher.step()
    handover = bench.container.settings.finetune_handover
    assert all(bench.due_ms(job) < (client.time()[0] + handover + 1) * 1000 for job in dead)


def broken(*_: Any, **__: Any) -> None:
    raise OperationalError


def test_a_lease_that_ran_out_does_not_wait_for_the_queues(bench: Bench, dispatcher: Dispatcher) -> None:
    fill(bench, BATCH + 10)
    jobs, job = bench.container.jobs, bench.job()
    job = jobs.transition(job, Change(delay=30), to=JobState.UPLOADING, owner="a worker that died")
    overdue(bench, job, 31)

    dispatcher.step()

    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 1
    assert bench.read(job).owner == ""


def test_an_empty_queue_has_no_messages(bench: Bench, dispatcher: Dispatcher) -> None:
    assert bench.container.messenger.queued(QUEUE) == 0


def test_a_call_slot_goes_before_what_was_started_and_that_before_what_is_new(
    bench: Bench, dispatcher: Dispatcher
) -> None:
    messenger = bench.container.messenger
    requested, urgent = bench.job(), bench.job(priority=6)
    messenger.run(requested)
    messenger.start("new", [Stage.SUBMIT], priority=BEGIN)
    messenger.run(urgent)
    messenger.start("goes on", [Stage.SUBMIT])
    messenger.start("has a slot", [Stage.SUBMIT], priority=CALL)
    messenger.sweep("default")
    assert messenger.queued(QUEUE) == 6

    received = [args[0] for args, _, _ in messages(bench, QUEUE, 6)]
    assert received == ["has a slot", "default", "goes on", "new", urgent.id, requested.id]


def test_a_call_slot_for_an_upload_url_is_used_in_the_short_queue(bench: Bench, dispatcher: Dispatcher) -> None:
    jobs = bench.container.jobs
    for _ in range(3):
        job = jobs.transition(bench.job(), Change(delay=60), to=JobState.UPLOADING)
        overdue(bench, jobs.transition(job, Change(delay=60), waiting_for=WaitReason.BACKOFF), 16)
    dispatcher.step()
    job = jobs.transition(bench.job(), Change(delay=60), to=JobState.UPLOADING)
    parked = Change(delay=60, room_score=room_score(CallClass.PREPARE, job))
    jobs.transition(job, parked, waiting_for=WaitReason.API_SLOT)
    dispatcher.step()

    # Its call is not behind the transfers, and its upload is not before them.
    [(args, _, options)] = messages(bench, QUEUE, 1)
    assert args == [job.id]
    upload, *later = reversed(options["chain"])
    assert (upload["task"], upload["options"]["priority"]) == ("finetune.upload", CONTINUE)
    assert later[0]["task"] == "finetune.submit"
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 3


def test_where_transfers_are_scarce_an_upload_url_is_not_asked_for_long_before_its_upload(
    bench: Bench, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "CROWD_SEEN_EVERY", 0.0)
    jobs, messenger = bench.container.jobs, bench.container.messenger

    def parked() -> JobRecord:
        job = jobs.transition(bench.job(), Change(delay=60), to=JobState.UPLOADING)
        change = Change(delay=60, room_score=room_score(CallClass.PREPARE, job))
        return jobs.transition(job, change, waiting_for=WaitReason.API_SLOT)

    for _ in range(CROWDED + 1):
        messenger.start("nobody", [Stage.DOWNLOAD])
    parked()
    dispatcher.step()
    assert messenger.queued(QUEUE) == 1  # nobody looks at the transfers while no upload starts

    waits = parked()
    dispatcher.step()
    assert messenger.queued(QUEUE) == 1
    assert bench.container.accounts.place(waits) == 0
    for _ in range(CROWDED):
        messenger.start("new", [Stage.UPLOAD], priority=BEGIN)  # goes after an upload that has its URL

    messages(bench, TRANSFER_QUEUE, 1)
    dispatcher.step()
    assert (messenger.queued(QUEUE), bench.container.accounts.place(waits)) == (2, None)
    parked()
    dispatcher.step()
    assert messenger.queued(QUEUE) == 3


def messages(bench: Bench, queue: str, count: int) -> list[Any]:
    with bench.container.messenger._app.producer_or_acquire() as producer:
        return [producer.channel.basic_get(queue, no_ack=True).decode() for _ in range(count)]
