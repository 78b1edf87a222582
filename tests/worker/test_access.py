"""A model made public or private after its job has ended: one call within the budget, once it is confirmed."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from finetune_queue.contract import Access, EventType, JobError, JobRecord, JobState, Stage, Visibility, WaitReason
from finetune_queue.errors import NotPossibleError
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import AccountLimits, Budget, Change, JobNotFoundError, LiveWorker, Retention, keys
from finetune_queue.store.clock import server_ms
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.stages.access import change_access
from support.bench import Bench, sweep
from support.driver import Driver, Message
from support.until import until


@pytest.fixture
def trained(bench: Bench) -> JobRecord:
    """A job that was cancelled here while Segmind trains its model."""
    return ended(bench)


def ended(bench: Bench, **request: Any) -> JobRecord:
    job = bench.submitting(**request)
    bench.run(job)
    return bench.container.jobs.transition(bench.read(job), Change(), to=JobState.CANCELLED, waiting_for=None)


def public_at_segmind(bench: Bench, job: JobRecord) -> bool:
    [training] = [row for row in bench.sandbox.control.trainings() if row["finetune_id"] == job.finetune_id]
    return bool(training["public_model"])


def access_of(bench: Bench, job: JobRecord) -> Access:
    access = bench.read(job).access
    assert access is not None
    return access


def error_of(bench: Bench, job: JobRecord) -> JobError:
    error = access_of(bench, job).error
    assert error is not None
    return error


def told(bench: Bench, job: JobRecord) -> list[Any]:
    return [event.data["access"] for event in bench.container.jobs.events(job.id) if event.kind is EventType.ACCESS]


def calls(bench: Bench) -> int:
    return sum(bench.sandbox.control.report()["calls"].get("access", {}).values())


def left(bench: Bench) -> tuple[int, int]:
    client = bench.container.jobs._redis
    return client.zcard(keys.deadlines()), client.zcard(keys.room("default"))


def test_a_model_is_made_public_and_private_again(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    job = queue.get(trained.id).set_public(public=True)
    assert job.record.access == Access(wanted=Visibility.PUBLIC)
    assert job.done

    driver.step()

    assert public_at_segmind(bench, trained)
    assert bench.read(trained).access == Access(confirmed=Visibility.PUBLIC)
    queue.set_public(trained.id, public=False)
    driver.step()
    assert not public_at_segmind(bench, trained)
    said = [(access.get("wanted"), access.get("confirmed")) for access in told(bench, trained)]
    assert said == [("public", None), (None, "public"), ("private", "public"), (None, "private")]
    assert bench.read(trained).state is JobState.CANCELLED
    assert left(bench) == (0, 0)
    assert "nothing to do" in driver.deliver(Message(trained.id, access=True))
    assert calls(bench) == 2


def test_it_waits_for_a_slot_before_work_that_is_not_nearly_done(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    strict = LiveWorker("other:1", "0.1.0", ("default",), limits=(("default", AccountLimits(calls=1, window=60)),))
    bench.container.workers.seen(strict)
    bench.container.presence.announce()
    waiting = bench.submitting()
    assert "parked" in bench.run(waiting).sentence
    queue.set_public(trained.id, public=True)
    driver.step()

    seen = queue.get(trained.id)
    assert seen.record.waiting_for is WaitReason.API_SLOT
    found = queue.waiting(seen)
    assert found is not None
    assert (found.reason, found.ahead) == (WaitReason.API_SLOT, 0)
    assert calls(bench) == 0
    bench.container.jobs._redis.delete(keys.slots("default"))
    driver.step()
    assert bench.read(trained).access == Access(confirmed=Visibility.PUBLIC)
    assert bench.read(waiting).finetune_id is None


def test_a_pause_of_the_account_uses_no_attempt(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    bench.sandbox.control.add_fault(op="access", kind="rate_limited", retry_after=0.2)
    queue.set_public(trained.id, public=True)
    driver.step()
    assert bench.read(trained).waiting_for is WaitReason.PAUSED
    assert access_of(bench, trained).attempts == 0
    until(lambda: driver.step() >= 0 and not bench.read(trained).wants_access, seconds=30)
    assert public_at_segmind(bench, trained)


@pytest.mark.parametrize("no", [(403, "forbidden"), (404, "not_found")])
def test_a_clear_no_is_said_on_the_job_and_not_asked_again(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord, no: tuple[int, str]
) -> None:
    status, code = no
    bench.sandbox.control.add_fault(op="access", kind="http_error", status=status)
    queue.set_public(trained.id, public=True)

    driver.step()

    access, error = access_of(bench, trained), error_of(bench, trained)
    assert (access.wanted, access.confirmed, error.code, error.stage) == (None, None, code, "access")
    assert "`finetune access JOB`" in error.action
    assert (told(bench, trained)[-1]["error"]["code"], error.upstream_status) == (code, status)
    assert left(bench) == (0, 0)
    assert calls(bench) == 1


def test_what_nobody_expected_is_tried_a_few_times_and_then_given_up(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def broken(client: SegmindClient, finetune_id: str, *, public: bool) -> None:
        tried.append(public)
        raise OverflowError(finetune_id)

    monkeypatch.setattr(SegmindClient, "set_access", broken)
    queue.set_public(trained.id, public=True)
    driver.step()
    first = access_of(bench, trained)
    assert (bench.read(trained).waiting_for, first.wanted, first.attempts) == (WaitReason.BACKOFF, "public", 1)
    most = bench.container.settings.finetune_max_attempts
    for _ in range(most - 1):
        bench.container.jobs._redis.zadd(keys.deadlines(), {trained.id: 0})
        driver.step()
    error = error_of(bench, trained)
    assert (error.code, len(tried)) == ("internal_error", most)
    assert "`finetune access JOB`" in error.action


def test_a_worker_that_dies_with_it_leaves_it_to_another(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    queue.set_public(trained.id, public=True)
    bench.container.jobs.transition(bench.read(trained), Change(delay=0), owner="died")

    driver.step()

    assert public_at_segmind(bench, trained)
    assert bench.read(trained).takeovers == 0


def test_one_that_ends_its_workers_is_given_up_and_the_job_stays_as_it_ended(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    queue.set_public(trained.id, public=True)
    most = bench.container.settings.finetune_max_attempts
    bench.container.jobs.transition(bench.read(trained), Change(delay=0), owner="died", takeovers=most - 1)

    driver.step()

    job = bench.read(trained)
    assert (job.state, job.error, error_of(bench, trained).code) == (JobState.CANCELLED, None, "worker_lost")
    assert left(bench) == (0, 0)


def test_it_is_held_for_as_long_as_the_call_can_last(
    bench: Bench, queue: FineTuneQueue, trained: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float] = []

    def look(client: SegmindClient, finetune_id: str, *, public: bool) -> None:
        held.append((bench.due_ms(trained) - bench.read(trained).updated_ms) / 1000)

    monkeypatch.setattr(SegmindClient, "set_access", look)
    settings = bench.container.settings.model_copy(update={"finetune_lease": 0.1})
    queue.set_public(trained.id, public=True)
    Driver(replace(bench.container, settings=settings)).step()
    assert held[0] > bench.container.settings.segmind_call_timeout


def test_a_change_that_is_on_its_way_cannot_be_overtaken(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    queue.set_public(trained.id, public=True)
    held = bench.container.jobs.transition(bench.read(trained), Change(delay=60), owner="another")
    with pytest.raises(NotPossibleError, match="on its way"):
        queue.set_public(trained.id, public=False)
    assert "another worker" in change_access(bench.container, trained.id, "task-2")
    bench.container.jobs.transition(held, Change(delay=0), owner="")

    queue.set_public(trained.id, public=False)  # what only waits is replaced
    driver.step()

    assert not public_at_segmind(bench, trained)
    assert calls(bench) == 1


def test_a_worker_that_was_overtaken_while_it_took_its_slot_does_not_call(
    bench: Bench, queue: FineTuneQueue, trained: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, client = Budget.take, bench.container.jobs._redis

    def slowly(budget: Budget, *args: Any) -> Any:
        bench.container.jobs.transition(bench.read(trained), Change(delay=60), owner="another")
        return take(budget, *args)

    monkeypatch.setattr(Budget, "take", slowly)
    queue.set_public(trained.id, public=True)
    assert "went on without this worker" in change_access(bench.container, trained.id, "task-1")
    assert calls(bench) == 0
    window = bench.container.accounts.status("default").limits.window
    [*_, (_, free_ms)] = cast("list[tuple[str, float]]", client.zrange(keys.slots("default"), 0, -1, withscores=True))
    assert free_ms - server_ms(client) <= window * 1001 + 1, "its slot is not left to the time-out of a call"


def test_a_change_that_was_given_up_takes_no_effect_after_a_later_one(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_worker.stages.access.CALL_MARGIN", 0.5)
    # Silent for longer than the call is waited for, then done all the same.
    bench.sandbox.control.add_fault(op="access", kind="slow", seconds=1.8)
    queue.set_public(trained.id, public=True)
    driver.step()
    given_up = bench.read(trained)
    assert (given_up.waiting_for, access_of(bench, trained).attempts) == (WaitReason.PROVIDER, 0)

    queue.set_public(trained.id, public=False)
    until(lambda: driver.step() >= 0 and not bench.read(trained).wants_access, seconds=30)

    until(lambda: calls(bench) == 2, seconds=30)
    assert bench.read(trained).access == Access(confirmed=Visibility.PRIVATE)
    assert not public_at_segmind(bench, trained)
    assert left(bench) == (0, 0)


def test_it_needs_a_training_and_an_ended_job(bench: Bench, queue: FineTuneQueue) -> None:
    job = bench.submitting()
    with pytest.raises(NotPossibleError, match="no training at Segmind"):
        queue.set_public(job.id, public=True)
    bench.sandbox.control.change_settings(training_seconds=600)
    bench.run(job)
    with pytest.raises(NotPossibleError, match=r"is training\. .* once the job has ended"):
        queue.set_public(job.id, public=True)


def test_a_job_whose_deadline_passed_or_that_was_cancelled_on_request_is_changed_all_the_same(
    bench: Bench, queue: FineTuneQueue, driver: Driver
) -> None:
    job = ended(bench, deadline="2999-01-01T00:00:00Z")
    request = bench.read(job).request.model_copy(update={"deadline": datetime(2001, 1, 1, tzinfo=UTC)})
    client = bench.container.jobs._redis
    client.hset(keys.job(job.id), mapping={"request": request.model_dump_json(), "cancel_requested": "1"})
    client.hset(keys.account("default"), "paused_until", "99999999999999")
    queue.set_public(job.id, public=True)
    driver.step()
    assert left(bench) == (1, 1)  # parked, and not due again at once
    client.hdel(keys.account("default"), "paused_until")
    driver.step()
    assert public_at_segmind(bench, job)


def test_a_retry_goes_first_and_the_change_is_made_when_the_job_has_ended_again(
    bench: Bench, queue: FineTuneQueue, driver: Driver
) -> None:
    job = bench.submitting()
    bench.run(job)
    jobs = bench.container.jobs
    jobs.transition(bench.read(job), Change(), to=JobState.FAILED, failed_stage=Stage.POLL, waiting_for=None)
    queue.set_public(job.id, public=True)
    queue.retry(job.id)
    assert driver.until_ended(job.id, seconds=10).state is JobState.SUCCEEDED

    driver.step()

    assert bench.read(job).access == Access(confirmed=Visibility.PUBLIC)
    assert bench.read(job).state is JobState.SUCCEEDED
    assert left(bench) == (0, 0)


def failed_training(bench: Bench) -> JobRecord:
    bench.sandbox.control.change_settings(training_seconds=600)
    job: JobRecord = bench.submitting()
    bench.run(job)
    bench.sandbox.control.change_training(bench.finetune_id(job), fail="no faces found")
    sweep(bench.container, "default")
    return job


def test_what_is_said_of_a_model_does_not_outlive_it(bench: Bench, queue: FineTuneQueue, driver: Driver) -> None:
    job = failed_training(bench)
    queue.set_public(job.id, public=True)
    driver.step()
    assert bench.read(job).access == Access(confirmed=Visibility.PUBLIC)

    assert queue.retry(job.id).record.access is None  # it submits another training


def test_what_is_wanted_of_a_model_is_wanted_of_the_next_one(bench: Bench, queue: FineTuneQueue) -> None:
    job = failed_training(bench)
    queue.set_public(job.id, public=True)

    assert queue.retry(job.id).record.access == Access(wanted=Visibility.PUBLIC)


def test_a_job_is_kept_until_its_change_is_made(
    bench: Bench, queue: FineTuneQueue, driver: Driver, trained: JobRecord
) -> None:
    queue.set_public(trained.id, public=True)
    forgetful = Retention(bench.container.jobs._redis, -2)
    assert forgetful.forget_finished() == 0
    driver.step()
    assert forgetful.forget_finished() == 1
    assert "There is no job" in driver.deliver(Message(trained.id, access=True))
    with pytest.raises(JobNotFoundError):
        bench.read(trained)
