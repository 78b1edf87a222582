"""The way in: what a raw client's messages become, however odd they are and however often they come."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from finetune_queue.contract import JobState, WaitReason, derived_job_id, new_job_id
from finetune_queue.messaging import CONTINUE, TRANSFER_QUEUE
from finetune_queue.store import LOST_MESSAGES, JobStore, keys
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.intake import Terms, accept
from support.bench import Bench
from support.samples import sample


@pytest.mark.parametrize("message_id", [new_job_id(), "order-17"], ids=["a UUID", "a name of the client's own"])
def test_a_request_that_comes_again_finds_the_job_it_made(bench: Bench, message_id: str) -> None:
    for _ in range(2):  # its worker died before it acknowledged it
        accept(bench.container, [sample()], {}, message_id=message_id)
    assert bench.container.jobs._redis.zcard(keys.jobs()) == 1


def test_the_names_of_messages_are_no_idempotency_keys(bench: Bench) -> None:
    accept(bench.container, [sample()], {}, message_id="order-17")
    [job_id] = bench.container.jobs._redis.zrange(keys.jobs(), 0, -1)
    assert job_id != derived_job_id("default", "order-17")


def test_requests_without_an_id_are_jobs_of_their_own(bench: Bench) -> None:
    for _ in range(2):
        accept(bench.container, [sample()], {}, message_id="")
    assert bench.container.jobs._redis.zcard(keys.jobs()) == 2


def test_a_password_in_the_dataset_s_url_is_rejected_and_told_to_nobody(bench: Bench) -> None:
    body = sample(dataset="https://me:hidden-pw@example.com/faces.zip")

    said = accept(bench.container, [body], {}, message_id="m-1")

    redis: Any = bench.container.jobs._redis
    [(_, letter)] = redis.xrange(keys.dead_letters())
    assert json.loads(letter["body"]) == [[body], {}]  # as it came, like all that cannot become a job
    [(_, event)] = redis.xrange(keys.events())
    for told in (said, letter["problems"], event["event"]):
        assert "dataset: should hold no user name or password" in told
        assert "hidden-pw" not in told
    assert redis.zcard(keys.jobs()) == 0


@pytest.mark.parametrize("parameters", [{"odd": "\ud83d"}, {"\ud83d": 1}])
def test_half_a_character_in_the_parameters_is_rejected(bench: Bench, parameters: dict[str, Any]) -> None:
    said = accept(bench.container, [sample(advance_parameters=parameters)], {}, message_id="m-1")
    assert "advance_parameters: holds half of a character" in said
    assert bench.container.jobs._redis.xlen(keys.dead_letters()) == 1


def test_a_request_that_met_a_defect_is_set_aside(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumbles(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(JobStore, "register", stumbles)
    said = accept(bench.container, [sample()], {}, message_id="m-1")
    assert said == "rejected: the worker met an unexpected ZeroDivisionError when it read the request"
    [(_, letter)] = cast("Any", bench.container.jobs._redis).xrange(keys.dead_letters())
    assert json.loads(letter["body"]) == [[sample()], {}]


def test_a_text_that_is_no_job_s_id_is_rejected(bench: Bench) -> None:
    events_of = f"{bench.job().id}:events"  # with it, Redis would refuse the job's key, and the message come for ever
    assert accept(bench.container, [events_of], {}, message_id="m-1").startswith("rejected: ")


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        (Terms(expires=datetime(2020, 1, 2, tzinfo=UTC)), "the message expired at 2020-01-02"),
        (Terms(revoked=True), "the message was revoked before a worker took it"),
    ],
    ids=["expired", "revoked"],
)
def test_a_request_that_its_sender_wants_no_more_is_set_aside(bench: Bench, terms: Terms, why: str) -> None:
    said = accept(bench.container, [sample()], {}, message_id="m-1", terms=terms)

    redis: Any = bench.container.jobs._redis
    [(_, letter)] = redis.xrange(keys.dead_letters())
    assert json.loads(letter["body"]) == [[sample()], {}]
    [(_, event)] = redis.xrange(keys.events())
    for told in (said, letter["problems"], event["event"]):
        assert why in told
    assert redis.zcard(keys.jobs()) == 0


def test_a_request_in_time_that_comes_again_when_it_has_expired_finds_its_job(bench: Bench) -> None:
    now = datetime.now(UTC)
    accept(bench.container, [sample()], {}, message_id="m-1", terms=Terms(expires=now + timedelta(minutes=1)))
    said = accept(bench.container, [sample()], {}, message_id="m-1", terms=Terms(expires=now - timedelta(minutes=1)))
    assert said.startswith("nothing to do: job ")
    assert bench.container.jobs._redis.exists(keys.dead_letters()) == 0


def test_to_revoke_a_message_cancels_no_job(bench: Bench) -> None:
    accept(bench.container, [sample()], {}, message_id="m-1")
    registered = bench.job()
    for body in (sample(), registered.id):
        assert "job" in accept(bench.container, [body], {}, message_id="m-1", terms=Terms(revoked=True))
    assert bench.container.jobs._redis.exists(keys.dead_letters()) == 0
    assert bench.read(registered).state is JobState.UPLOADING


def test_a_request_for_later_is_a_job_at_once_and_starts_when_it_is_due(bench: Bench) -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    for _ in range(2):  # its worker died before it acknowledged it
        said = accept(bench.container, [sample()], {}, message_id="m-1", terms=Terms(eta=eta))
        assert "is to start in 3,600 s" in said
    client: Any = bench.container.jobs._redis
    [job] = bench.container.jobs.get_many(client.zrange(keys.jobs(), 0, -1))
    assert (job.state, job.waiting_for) == (JobState.ACCEPTED, WaitReason.START)
    assert abs(bench.due_ms(job) - eta.timestamp() * 1000) < 2000
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 0

    client.zadd(keys.deadlines(), {job.id: 0})
    Dispatcher(bench.container).step()

    job = bench.read(job)
    assert (job.state, job.waiting_for) == (JobState.UPLOADING, None)
    assert bench.container.messenger.queued(TRANSFER_QUEUE) == 1
    assert bench.container.messenger.queued_before(TRANSFER_QUEUE, CONTINUE) == 0  # nor does it go before what is new
    assert "nothing to do" in accept(bench.container, [sample()], {}, message_id="m-1", terms=Terms(eta=eta))
    bench.container.counters.send()
    assert [name for name in client.hkeys(keys.counters()) if LOST_MESSAGES.name in name] == []  # for none was


def test_a_job_waits_for_its_start_no_longer_than_its_caller_does(bench: Bench) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    body = sample(deadline=soon.isoformat())
    accept(bench.container, [body], {}, message_id="m-1", terms=Terms(eta=soon + timedelta(hours=1)))
    [job_id] = cast("Any", bench.container.jobs._redis).zrange(keys.jobs(), 0, -1)
    assert abs(bench.due_ms(bench.container.jobs.get(job_id)) - soon.timestamp() * 1000) < 2000


def test_a_request_for_later_is_started_by_a_message_without_a_time(bench: Bench) -> None:
    body, eta = sample(idempotency_key="order-1"), datetime.now(UTC) + timedelta(hours=1)
    accept(bench.container, [body], {}, message_id="m-1", terms=Terms(eta=eta))
    assert accept(bench.container, [body], {}, message_id="m-2").startswith("started job ")
    job = bench.container.jobs.get(derived_job_id("default", "order-1"))
    assert (job.state, job.waiting_for) == (JobState.UPLOADING, None)


def test_a_time_that_has_passed_is_none(bench: Bench) -> None:
    eta = datetime.now(UTC) - timedelta(minutes=1)
    assert accept(bench.container, [sample()], {}, message_id="m-1", terms=Terms(eta=eta)).startswith("started job ")


def test_a_request_that_would_expire_before_its_start_is_set_aside(bench: Bench) -> None:
    now = datetime.now(UTC)
    terms = Terms(eta=now + timedelta(hours=1), expires=now + timedelta(minutes=1))
    assert "before the job is to start at 20" in accept(bench.container, [sample()], {}, message_id="m-1", terms=terms)
    assert bench.container.jobs._redis.xlen(keys.dead_letters()) == 1
    assert bench.container.jobs._redis.zcard(keys.jobs()) == 0
