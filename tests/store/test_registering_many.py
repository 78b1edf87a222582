"""Many jobs registered in one round trip: each gets an answer of its own, whatever became of the others."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.client import Pipeline

from finetune_queue.contract import JobState, new_job_id
from finetune_queue.store import Change, IdempotencyError, JobStore, Retention, connect, keys
from support.samples import sample_request

Act = Callable[[], object]


@pytest.fixture
def between_looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Act], None]:
    """Let something happen between the store's next round trip and the one after it."""
    execute = Pipeline.execute

    def arrange(act: Act) -> None:
        trips = iter([lambda: None, act])

        def watched(pipe: Pipeline, *args: Any, **kwargs: Any) -> Any:
            acting = next(trips, None)
            if acting is not None:
                with monkeypatch.context() as quiet:  # what happens makes round trips of its own
                    quiet.setattr(Pipeline, "execute", execute)
                    acting()
            return execute(pipe, *args, **kwargs)

        monkeypatch.setattr(Pipeline, "execute", watched)

    return arrange


def test_new_known_and_conflicting_jobs_are_told_in_their_order(jobs: JobStore) -> None:
    known, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    known = jobs.transition(known, Change(delay=15), to=JobState.UPLOADING)
    fresh = [new_job_id(), new_job_id()]

    first, again, conflict, last, twice = jobs.register_many(
        [
            (fresh[0], sample_request(name="first")),
            (known.id, sample_request()),
            (known.id, sample_request(name="another")),
            (fresh[1], sample_request(name="last")),
            (fresh[0], sample_request(name="first")),
        ],
        delay=15,
    )

    assert first == (jobs.get(fresh[0]), True)
    assert again == (known, False)
    assert isinstance(conflict, IdempotencyError)
    assert known.id in str(conflict)
    assert last == (jobs.get(fresh[1]), True)
    assert twice == (jobs.get(fresh[0]), False)
    assert {job_id: len(jobs.events(job_id)) for job_id in fresh} == dict.fromkeys(fresh, 1)
    assert jobs.counts()[JobState.ACCEPTED] == 2
    assert jobs.register_many([], delay=15) == []


def test_an_answer_that_is_an_error_hides_no_other(jobs: JobStore, client: Any) -> None:
    ids = [new_job_id() for _ in range(3)]
    client.set(keys.job(ids[1]), "not a hash")  # which makes its script fail, and no other

    before, broken, after = jobs.register_many([(job_id, sample_request()) for job_id in ids], delay=15)

    assert before == (jobs.get(ids[0]), True)
    assert isinstance(broken, redis.ResponseError)
    assert after == (jobs.get(ids[2]), True)
    assert client.zrange(keys.jobs(), 0, -1) == sorted([ids[0], ids[2]])


def test_without_a_server_every_job_says_so() -> None:
    with connect("redis://127.0.0.1:1/0") as nowhere:
        outcomes = JobStore(nowhere).register_many([(new_job_id(), sample_request())] * 2, delay=15)
    assert [type(outcome) for outcome in outcomes] == [redis.ConnectionError] * 2


def test_a_known_job_that_cannot_be_read_hides_no_new_one(jobs: JobStore, client: Any, between_looks: Any) -> None:
    known, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    fresh = new_job_id()
    between_looks(lambda: client.set(keys.job(known.id), "not a hash"))
    new, unread = jobs.register_many([(fresh, sample_request()), (known.id, sample_request())], delay=15)
    assert new == (jobs.get(fresh), True)
    assert isinstance(unread, redis.ResponseError)


def test_a_job_forgotten_between_two_looks_is_new(jobs: JobStore, client: Any, between_looks: Any) -> None:
    ended, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    jobs.transition(ended, Change(), to=JobState.CANCELLED)
    between_looks(lambda: Retention(client, -2).forget_finished())
    wanted = [(ended.id, sample_request()), (new_job_id(), sample_request())]
    outcome, _ = jobs.register_many(wanted, delay=15)
    assert outcome == (jobs.get(ended.id), True)
    assert jobs.get(ended.id).state is JobState.ACCEPTED
