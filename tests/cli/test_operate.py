"""What an operator decides by command: resolve, and dead letters."""

import base64
import json
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobState, WaitReason
from finetune_queue.messaging import ACCEPT, QUEUE, RUN
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    Change,
    DeadLetter,
    LostDelivery,
    RawMessage,
    TaskCall,
    keys,
)
from support.cli import Run, Worker
from support.full import full


def needs_attention(worker: Worker, **fields: Any) -> Any:
    job = worker.bring(worker.accept(), JobState.SUBMITTING)
    return worker.move(job, JobState.NEEDS_ATTENTION, intent_ms=1_000, evidence=["nobody knows"], **fields)


def queued(client: redis.Redis) -> list[Any]:
    """The messages in the queue of requests, whatever their priority."""
    rows: list[Any] = []
    for key in client.scan_iter(f"*{QUEUE}*", _type="list"):
        rows += [json.loads(row) for row in client.lrange(key, 0, -1)]
    return rows


def test_resolve_names_a_training(run: Run, worker: Worker) -> None:
    job = needs_attention(worker)
    said = run("resolve", job.id, "--adopt", " ft-7 ")  # as it may be pasted
    assert said.code == 0
    assert f"A worker looks at training ft-7; if it can be job {job.id}'s, the job goes on with it." in said.out
    job = worker.store.get(job.id)
    assert (job.state, job.adopting, job.intent_ms) == (JobState.SUBMITTING, "ft-7", 1_000)
    assert job.evidence == ["nobody knows", "training ft-7 was named by hand"]


def test_resolve_submits_again(run: Run, worker: Worker, client: redis.Redis) -> None:
    job = needs_attention(worker)
    assert run("resolve", job.id, "--resubmit", "--json").json["state"] == "submitting"
    job = worker.store.get(job.id)
    assert (job.state, job.intent_ms, job.tracked) == (JobState.SUBMITTING, None, False)
    assert client.zcard(keys.tracked("default")) == 0


def test_a_training_of_another_job_cannot_be_adopted(run: Run, worker: Worker) -> None:
    owner = needs_attention(worker)
    worker.store.transition(owner, Change(delay=60, own="ft-7"), to=JobState.TRAINING, finetune_id="ft-7")
    job = needs_attention(worker)
    said = run("resolve", job.id, "--adopt", "ft-7")
    assert said.code == 7
    assert "belongs to job" in said.err
    assert worker.store.get(job.id) == job


def test_only_a_job_that_needs_attention_is_resolved(run: Run, worker: Worker) -> None:
    job = worker.accept()
    said = run("resolve", job.id, "--resubmit")
    assert said.code == 7
    assert "is accepted" in said.err


def test_a_job_that_is_to_be_submitted_may_be_given_a_training_first(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.SUBMITTING)
    job = worker.park(job, WaitReason.API_SLOT, score=1.0)
    assert run("resolve", job.id, "--resubmit").code == 7
    assert run("resolve", job.id, "--adopt", "ft-7").code == 0
    job = worker.store.get(job.id)
    assert (job.state, job.adopting, job.waiting_for) == (JobState.SUBMITTING, "ft-7", None)


def test_a_job_that_a_worker_may_just_be_submitting_is_not_given_another_training(run: Run, worker: Worker) -> None:
    job = worker.note(worker.bring(worker.accept(), JobState.SUBMITTING), owner="task-1")
    said = run("resolve", job.id, "--adopt", "ft-7")
    assert said.code == 7
    assert "A worker has job" in said.err
    assert worker.store.get(job.id) == job


@pytest.mark.parametrize("options", [(), ("--adopt", "ft-1", "--resubmit")])
def test_resolve_wants_one_of_two(run: Run, worker: Worker, options: tuple[str, ...]) -> None:
    said = run("resolve", needs_attention(worker).id, *options)
    assert said.code == 2
    assert "--adopt ID or --resubmit" in said.err


@pytest.mark.parametrize("nothing", ["", " "])
def test_a_training_without_a_name_is_not_adopted(run: Run, worker: Worker, nothing: str) -> None:
    job = needs_attention(worker)
    said = run("resolve", job.id, "--adopt", nothing)
    assert said.code == 2
    assert "The ID of --adopt is empty" in said.err
    assert worker.store.get(job.id) == job


def test_dead_letters_are_listed_newest_first_and_without_secrets(run: Run, worker: Worker) -> None:
    assert run("dead", "list").err == "Nothing was set aside.\n"
    url = "https://me:hidden-pw@bucket.example/x.zip?X-Amz-Signature=0123456789abcdef0123456789abcdef"
    worker.rejections.add("m-1", TaskCall([{"dataset": url}], {}), "no job", ["name: is required"])
    worker.rejections.add("m-2", RawMessage(b"\xff", {"id": "m-2"}, "application/json", "utf-8"), "decode_error", [])

    newest, older = run("dead", "list", "--json").json

    assert (newest["message_id"], older["message_id"]) == ("m-2", "m-1")
    assert older["problems"] == ["name: is required"]
    assert "0123456789abcdef" not in older["body"]
    assert "hidden-pw" not in older["body"]
    assert "name: is required" in run("dead", "list").out


def test_a_request_is_sent_again_under_its_id(run: Run, worker: Worker, client: redis.Redis) -> None:
    worker.rejections.add("m-1", TaskCall([{"name": "x"}], {}), "no job", [])
    [letter] = run("dead", "list", "--json").json

    assert run("dead", "replay", letter["id"]).code == 0

    [message] = queued(client)
    assert (message["headers"]["id"], message["headers"]["task"]) == ("m-1", RUN)
    assert run("dead", "list", "--json").json == []
    assert run("dead", "replay", letter["id"]).code == 3
    for wrong in ("xyz", letter["id"].partition("-")[0], "+"):
        assert f"There is no dead letter {wrong}." in run("dead", "replay", wrong).err


def test_a_letter_that_is_gone_stops_none_of_the_others(run: Run, worker: Worker, client: redis.Redis) -> None:
    for number in (1, 2):
        worker.rejections.add(f"m-{number}", TaskCall([{"name": "x"}], {}), "no job", [])
    newest, oldest = (letter["id"] for letter in run("dead", "list", "--json").json)
    run("dead", "replay", oldest)

    said = run("dead", "replay", oldest, newest)

    assert (said.code, f"There is no dead letter {oldest}." in said.err) == (3, True)
    assert f"{newest} was sent again" in said.out
    assert sorted(message["headers"]["id"] for message in queued(client)) == ["m-1", "m-2"]


def test_what_celery_could_not_read_is_sent_again_byte_for_byte(run: Run, worker: Worker, client: redis.Redis) -> None:
    body = b"\xff{ not json"
    headers = {"id": "m-1", "task": "finetune.of_tomorrow"}
    worker.rejections.add("m-1", RawMessage(body, headers, "application/json", "binary"), "unknown_task", [])
    [letter] = run("dead", "list", "--json").json

    run("dead", "replay", letter["id"], "--json")

    [message] = queued(client)
    assert message["headers"] == headers
    assert (message["content-type"], message["content-encoding"]) == ("application/json", "binary")
    assert base64.b64decode(message["body"]) == body
    assert message["properties"]["priority"] == ACCEPT  # it goes before nothing that a call slot waits for


def test_events_that_a_sink_did_not_take_are_sent_to_it_again(run: Run, client: redis.Redis) -> None:
    event = {"id": "job-1-6", "type": "io.finetunequeue.job.succeeded.v1"}
    lost = LostDelivery("job-1", "https://a.example/hook", "https://user:secret@a.example/hook", [json.dumps(event)])
    letter = DeadLetter("job-1-6", "the events were not delivered", [], lost)
    place: Any = client.xadd(keys.dead_letters(), letter.fields())  # type: ignore[arg-type]
    said = run("dead", "list")
    assert "1 event of job job-1 for https://a.example/hook" in said.out
    assert "secret" not in said.out + run("dead", "list", "--json").out

    with full(client):
        refused = run("dead", "replay", place)
    assert (refused.code, "The queue's Redis is full (maxmemory)" in refused.err) == (4, True)
    run("dead", "replay", place)

    subjects: Any = client.zrange(keys.outbox(), 0, -1)
    [subject] = subjects
    assert client.lrange(keys.job_events(subject), 0, -1) == [json.dumps(event, separators=(",", ":"))]
    assert client.hget(keys.job_sinks(subject), "only") == lost.sink_url


@pytest.mark.parametrize("said", [": FINETUNE_REPLY_TO does not let a request name this sink.", " answered 410."])
def test_the_sink_of_lost_events_is_said_once(run: Run, client: redis.Redis, said: str) -> None:
    sink = "https://a.example/hook"
    lost = LostDelivery("job-1", sink, sink, [json.dumps({"id": "job-1-6"})])
    letter = DeadLetter("job-1-6", "the events were not delivered", [f"{sink}{said}"], lost)
    client.xadd(keys.dead_letters(), letter.fields())  # type: ignore[arg-type]
    line = run("dead", "list").out
    assert f"for {sink}: the events were not delivered; {said.lstrip(': ')}" in line
    assert run("dead", "list", "--json").json[0]["problems"] == [f"{sink}{said}"]


def test_an_account_s_submits_are_stopped_and_let_go_on(run: Run, worker: Worker, client: redis.Redis) -> None:
    worker.accept()
    Accounts(client).configure("default", AccountLimits(calls=5, window=60.0))
    assert "submits are stopped" in run("account", "stop").out
    assert "submits are stopped" in run("doctor").out
    assert run("account", "resume", "default", "--json").json == {"account": "default", "submits_stopped": False}
    assert "submits are stopped" not in run("doctor").out


def test_an_unknown_account_cannot_be_stopped(run: Run, queue_url: str) -> None:
    said = run("account", "stop", "nobody")
    assert said.code == 3
    assert "nobody" in said.err
