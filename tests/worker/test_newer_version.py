"""Jobs that a newer version of the worker wrote, as a rolling upgrade leaves them in front of an older one."""

import pytest

from finetune_queue.contract import JobRecord, JobState
from finetune_queue.store import Change, Retention, UnreadableJobError, keys
from support.bench import Bench
from support.driver import Driver, Message

TOO_NEW = [
    ("state", "grading"),
    ("waiting_for", "grader"),
    ("request", '{"name": "x", "grade": "A"}'),
    ("progress", "half of it"),
]
"""A state, a reason to wait and a field of the request that this version does not know; a text where it has JSON."""


def write(bench: Bench, job: JobRecord, field: str, value: str) -> None:
    bench.container.jobs._redis.hset(keys.job(job.id), field, value)


def test_a_field_that_is_not_known_is_kept_and_does_not_matter(bench: Bench, driver: Driver) -> None:
    job = bench.submitting()
    write(bench, job, "grade", "A")
    driver.run_stage(job.stage, job.id)
    assert bench.read(job).state is JobState.TRAINING
    assert bench.container.jobs._redis.hget(keys.job(job.id), "grade") == "A"


@pytest.mark.parametrize(("field", "value"), TOO_NEW)
def test_what_cannot_be_read_is_left_alone(bench: Bench, driver: Driver, field: str, value: str) -> None:
    job, other = bench.submitting(), bench.job()
    write(bench, job, field, value)
    client = bench.container.jobs._redis
    before = client.hgetall(keys.job(job.id))
    client.zadd(keys.deadlines(), {job.id: 0, other.id: 0})

    driver.dispatcher.step()  # takes both at once
    assert [message.subject for message in driver.post.messages] == [other.id]
    for message in (Message(job.id), Message(job.id, access=True), Message(job.id, (job.stage,))):
        assert driver.deliver(message).startswith(f"nothing to do: Job {job.id} was written by another version")

    assert client.hgetall(keys.job(job.id)) == before
    assert bench.due_ms(job) > 0  # a newer worker's turn comes
    assert client.xlen(keys.dead_letters()) == 0
    assert bench.submits() == 0
    with pytest.raises(UnreadableJobError, match=field):
        bench.read(job)


def test_what_came_in_of_its_weights_is_kept(bench: Bench) -> None:
    job = bench.submitting()
    part = bench.container.work_folder.part_of(job.id)
    part.write_bytes(b"half of it")
    write(bench, job, "state", "grading")
    assert bench.container.work_folder.clean() == 0
    part.unlink()


@pytest.mark.parametrize("ruled_out", ["those of another form", "7", "[null]"])
def test_an_ended_one_goes_after_its_time_and_keeps_no_other_from_it(bench: Bench, ruled_out: str) -> None:
    client = bench.container.jobs._redis
    ended = [bench.job(), bench.job()]
    for job in ended:
        owner = bench.container.jobs.transition(job, Change(delay=15, own=f"ft-{job.id}"), finetune_id=f"ft-{job.id}")
        bench.container.jobs.transition(owner, Change(), to=JobState.CANCELLED)
    write(bench, ended[0], *TOO_NEW[2])
    write(bench, ended[1], "ruled_out", ruled_out)
    retention = Retention(client, -2)
    assert [retention.forget_finished(limit=1), retention.forget_finished(limit=1)] == [1, 1]
    assert [client.exists(keys.job(job.id)) for job in ended] == [0, 0]
    assert client.hgetall(keys.owners()) == {}


def test_registering_it_again_does_not_make_it_anew(bench: Bench) -> None:
    job = bench.job()
    write(bench, job, "state", "grading")
    with pytest.raises(UnreadableJobError):
        bench.container.jobs.register(job.id, job.request, delay=60)


def test_what_was_left_alone_goes_on_once_it_can_be_read(bench: Bench, driver: Driver) -> None:
    job = bench.submitting()
    write(bench, job, "waiting_for", "grader")
    driver.deliver(Message(job.id, (job.stage,)))
    bench.container.jobs._redis.hdel(keys.job(job.id), "waiting_for")  # as the newer worker does when it goes on
    driver.deliver(Message(job.id, (job.stage,)))
    assert bench.read(job).state is JobState.TRAINING
    assert bench.submits() == 1
