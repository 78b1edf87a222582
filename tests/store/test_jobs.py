"""The job store: one script changes a job, all or nothing, from the version in hand."""

from typing import Any

import pytest

from finetune_queue.contract import FOUND, MOVED_ON, TRANSITIONS, Event, EventType, JobState, new_job_id
from finetune_queue.store import (
    Change,
    ConflictError,
    DeadLetters,
    Deadlines,
    IdempotencyError,
    JobNotFoundError,
    JobStore,
    Outbox,
    OwnedElsewhereError,
    RawMessage,
    Rejections,
    Retention,
    TaskCall,
    keys,
    transfers_of,
)
from support.samples import sample_request


def test_a_registered_job_has_a_deadline_an_event_and_its_place_in_the_lists(jobs: JobStore, client: Any) -> None:
    job, new = jobs.register(new_job_id(), sample_request(labels={"team": "a"}), delay=15)

    assert new
    assert jobs.get(job.id) == job
    assert client.zscore(keys.deadlines(), job.id) is not None
    assert client.zrange(keys.jobs(), 0, -1) == [job.id]
    assert jobs.counts()[JobState.ACCEPTED] == 1
    [event] = jobs.events(job.id)
    assert (event.id, event.kind, event.subject) == (f"{job.id}-1", EventType.ACCEPTED, job.id)
    assert event.data["labels"] == {"team": "a"}


def test_the_stream_holds_the_same_event_as_the_job(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)

    [(_, fields)] = client.xrange(keys.events())
    assert [Event.model_validate_json(fields["event"])] == jobs.events(job.id)


def test_registering_twice_gives_the_same_job(jobs: JobStore) -> None:
    job_id = new_job_id()
    first, _ = jobs.register(job_id, sample_request(), delay=15)
    second, new = jobs.register(job_id, sample_request(), delay=15)

    assert (second, new) == (first, False)
    assert len(jobs.events(job_id)) == 1


def test_the_same_key_with_another_request_is_refused(jobs: JobStore) -> None:
    job_id = new_job_id()
    jobs.register(job_id, sample_request(), delay=15)

    with pytest.raises(IdempotencyError, match=job_id):
        jobs.register(job_id, sample_request(trigger_word="2MAN"), delay=15)


def test_a_write_from_an_old_version_is_refused_and_changes_nothing(jobs: JobStore, client: Any) -> None:
    old, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    new = jobs.transition(old, Change(delay=15), to=JobState.UPLOADING)
    before = client.hgetall(keys.job(old.id)), client.zscore(keys.deadlines(), old.id), jobs.events(old.id)

    with pytest.raises(ConflictError):
        jobs.transition(old, Change(own="ft-1"), to=JobState.CANCELLED, finetune_id="ft-1")

    assert before == (client.hgetall(keys.job(old.id)), client.zscore(keys.deadlines(), old.id), jobs.events(old.id))
    assert client.hlen(keys.owners()) == 0
    assert jobs.get(old.id) == new


def test_a_training_belongs_to_one_job(jobs: JobStore) -> None:
    first, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    second, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    jobs.transition(first, Change(delay=15, own="ft-1"), finetune_id="ft-1")

    with pytest.raises(OwnedElsewhereError) as caught:
        jobs.transition(second, Change(delay=15, own="ft-1"), finetune_id="ft-1")

    assert caught.value.owner == first.id
    assert jobs.get(second.id) == second


def test_what_the_writer_knows_is_what_is_stored(jobs: JobStore) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = jobs.transition(job, Change(delay=15), evidence=["one"], attempts=2, waiting_for="backoff")
    assert jobs.get(job.id) == job

    job = jobs.transition(job, Change(delay=15), to=JobState.UPLOADING, waiting_for=None, attempts=0)
    assert jobs.get(job.id) == job
    assert job.waiting_for is None


def test_a_field_with_its_default_takes_no_room(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = jobs.transition(job, Change(delay=15), owner="w", attempts=2, looks=1, candidates=["a"], aside={"b": None})
    stored = client.hkeys(keys.job(job.id))
    job = jobs.transition(job, Change(delay=15), **MOVED_ON, **FOUND)

    assert jobs.get(job.id) == job
    assert (job.attempts, job.looks, job.candidates, job.aside) == (0, 0, [], {})
    gone = set(stored) - set(client.hkeys(keys.job(job.id)))
    assert gone == {"owner", "attempts", "looks", "candidates", "aside"}


def test_an_ended_job_leaves_the_deadlines_and_the_room(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = jobs.transition(job, Change(delay=15, room_score=1.0))
    assert client.zcard(keys.room("default")) == 1

    jobs.transition(job, Change(), to=JobState.CANCELLED)

    assert client.zcard(keys.room("default")) == 0
    assert client.zcard(keys.deadlines()) == 0


def test_an_ended_job_leaves_the_room_for_transfers_too(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    job = jobs.transition(job, Change(delay=60, room_score=1.0, for_transfer=True))
    room = keys.room(transfers_of(job.account))
    assert client.zcard(room) == 1
    jobs.transition(job, Change(), to=JobState.CANCELLED)
    assert client.zcard(room) == 0


def test_the_end_of_a_training_wakes_a_dispatcher_for_who_waits_behind_its_cap(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    for state in (JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING):
        job = jobs.transition(job, Change(delay=60), to=state)
    waits, _ = jobs.register(new_job_id(), sample_request(), delay=30)
    jobs.transition(waits, Change(delay=30, room_score=1.0))
    client.delete(keys.wake())
    jobs.transition(job, Change(delay=60), to=JobState.DOWNLOADING)
    assert client.llen(keys.wake()) == 1


@pytest.mark.parametrize("source", JobState)
def test_only_the_table_s_changes_of_state_are_made(jobs: JobStore, source: JobState) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = job.model_copy(update={"state": source})
    for target in set(JobState) - TRANSITIONS[source]:
        with pytest.raises(ValueError, match="cannot go"):
            jobs.transition(job, Change(delay=1), to=target)


def test_a_live_job_cannot_lose_its_deadline(jobs: JobStore) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    with pytest.raises(ValueError, match="deadline"):
        jobs.transition(job, Change(), to=JobState.UPLOADING)


def test_only_a_durable_write_waits_for_the_log(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    client.config_resetstat()
    job = jobs.transition(job, Change(delay=15))
    assert "cmdstat_waitaof" not in client.info("commandstats")
    job = jobs.transition(job, Change(delay=15), durable_within=5.0, attempts=1)
    assert client.info("commandstats")["cmdstat_waitaof"]["calls"] == 1
    assert jobs.get(job.id) == job


def test_due_jobs_are_taken_by_one_taker_only(jobs: JobStore, deadlines: Deadlines) -> None:
    due = {jobs.register(new_job_id(), sample_request(), delay=0)[0].id for _ in range(3)}
    later, _ = jobs.register(new_job_id(), sample_request(), delay=60)

    taken, wait = deadlines.due(10, handover=30)

    assert set(taken) == due
    assert taken == {job_id: jobs.get(job_id).updated_ms for job_id in due}
    assert wait is not None
    assert 25 < wait <= 30
    assert deadlines.due(10, handover=30)[0] == {}
    assert later.id not in taken


def test_an_earlier_deadline_wakes_a_sleeper_and_a_later_one_does_not(jobs: JobStore, client: Any) -> None:
    first, _ = jobs.register(new_job_id(), sample_request(), delay=30)
    assert client.llen(keys.wake()) == 1
    client.delete(keys.wake())

    jobs.register(new_job_id(), sample_request(), delay=60)
    assert client.llen(keys.wake()) == 0

    jobs.transition(first, Change(delay=1))
    assert client.llen(keys.wake()) == 1


def test_putting_off_does_not_revive_an_ended_job(jobs: JobStore, deadlines: Deadlines, client: Any) -> None:
    live, _ = jobs.register(new_job_id(), sample_request(), delay=1)
    ended, _ = jobs.register(new_job_id(), sample_request(), delay=1)
    ended = jobs.transition(ended, Change(), to=JobState.CANCELLED)

    assert deadlines.put_off([(live, 100.0), (ended, 100.0)]) == 1

    assert client.zrange(keys.deadlines(), 0, -1) == [live.id]
    assert deadlines.due(10, handover=1)[0] == {}


def test_putting_off_leaves_a_job_that_changed_to_its_own_deadline(jobs: JobStore, deadlines: Deadlines) -> None:
    seen, _ = jobs.register(new_job_id(), sample_request(), delay=60)
    jobs.transition(seen, Change(delay=0), owner="task-1")

    assert deadlines.put_off([(seen, 100.0)]) == 0
    assert list(deadlines.due(10, handover=1)[0]) == [seen.id]


def test_a_held_job_with_a_cancel_is_due_as_soon_as_it_is_let_go(jobs: JobStore, client: Any) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    job = jobs.transition(job, Change(delay=15), owner="task-1")
    assert jobs.request_cancel(job.id)

    job = jobs.transition(job, Change(delay=3600, room_score=1.0), owner="", waiting_for="api-slot")

    assert client.zcard(keys.room("default")) == 0
    assert client.zscore(keys.deadlines(), job.id) == job.updated_ms
    jobs.transition(job, Change(delay=15), owner="")  # what the dispatcher does next keeps its own delay
    assert client.zscore(keys.deadlines(), job.id) > job.updated_ms


def test_a_cancel_of_a_held_job_asks_its_holder_without_fencing_it(jobs: JobStore) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    assert not jobs.request_cancel(job.id)

    job = jobs.transition(job, Change(delay=15), owner="task-1")
    assert jobs.request_cancel(job.id)
    assert jobs.get(job.id).cancel_requested
    jobs.transition(job, Change(delay=15), attempts=1)  # the holder can still write

    with pytest.raises(JobNotFoundError):
        jobs.request_cancel(new_job_id())


def test_finished_jobs_are_forgotten_after_their_time_and_live_ones_never(client: Any) -> None:
    jobs = JobStore(client)
    live, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    ended, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    ended = jobs.transition(ended, Change(delay=15, own="ft-0"), finetune_id="ft-0")
    ended = jobs.transition(ended, Change(delay=15, own="ft-1"), finetune_id="ft-1", ruled_out=["ft-0", "another's"])
    jobs.transition(ended, Change(), to=JobState.CANCELLED)
    client.hset(keys.owners(), "another's", live.id)

    # The server's millisecond may be the one in which the job ended.
    assert Retention(client, 0).forget_finished() + Retention(client, -2).forget_finished() == 1

    with pytest.raises(JobNotFoundError):
        jobs.get(ended.id)
    assert jobs.events(ended.id) == []
    assert client.hgetall(keys.owners()) == {"another's": live.id}
    assert client.zrange(keys.jobs(), 0, -1) == [live.id]


def test_jobs_that_have_to_stay_do_not_keep_later_ones_from_going(client: Any) -> None:
    jobs = JobStore(client)
    made = jobs.register_many([(new_job_id(), sample_request()) for _ in range(201)], delay=15)
    ids = []
    for found in made:
        assert isinstance(found, tuple)
        ids.append(jobs.transition(found[0], Change(), to=JobState.CANCELLED).id)
    client.zadd(keys.state(JobState.CANCELLED), {job_id: at for at, job_id in enumerate(ids)})
    client.zadd(keys.outbox(), dict.fromkeys(ids[:200], 0))  # their sinks lack events

    retention = Retention(client, -2)
    assert [retention.forget_finished(), retention.forget_finished()] == [0, 1]
    assert client.zrange(keys.state(JobState.CANCELLED), 0, -1) == ids[:200]

    client.delete(keys.outbox())
    assert retention.forget_finished() == 200  # it begins anew


def test_old_events_and_dead_letters_go_after_the_same_time(client: Any) -> None:
    rejections = Rejections(client, Outbox(client))
    for number in range(300):  # the server drops whole blocks of a stream, of a hundred entries
        rejections.add(f"m-{number}", TaskCall([], {}), "unreadable", [])
    assert Retention(client, 60).forget_finished() == 0
    assert client.xlen(keys.dead_letters()) == client.xlen(keys.events()) == 300
    Retention(client, -2).forget_finished()
    assert client.xlen(keys.dead_letters()) <= 100
    assert client.xlen(keys.events()) <= 100


def test_a_rejected_message_is_kept_with_its_body_and_told_of(client: Any) -> None:
    body = b'{"name": \xff'
    message = RawMessage(body, {"id": "m-1"}, "application/json", "utf-8")
    Rejections(client, Outbox(client)).add("m-1", message, "unreadable", ["it is not JSON"])

    [letter] = DeadLetters(client).newest(10)
    assert (letter.message_id, letter.body, letter.problems) == ("m-1", '{"name": \\xff', ["it is not JSON"])
    assert isinstance(letter.content, RawMessage)
    assert letter.content.body == body
    [(_, fields)] = client.xrange(keys.events())
    assert Event.model_validate_json(fields["event"]).kind is EventType.REJECTED


def test_an_ended_job_gets_no_deadline(jobs: JobStore) -> None:
    job, _ = jobs.register(new_job_id(), sample_request(), delay=15)
    with pytest.raises(ValueError, match="waits for nothing"):
        jobs.transition(job, Change(delay=1), to=JobState.CANCELLED)
