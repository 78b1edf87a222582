"""What docs/sdk.md says of the SDK: light, typed, safe in threads, patient through restarts; and its examples."""

import re
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import finetune_queue
from finetune_queue import (
    Event,
    FineTuneQueue,
    FineTuneRequest,
    IdempotencyConflictError,
    InvalidRequestError,
    Job,
    Settings,
    Submission,
    Waiting,
    WaitTimeoutError,
    errors,
)
from finetune_queue.contract import JobRecord, JobState, WaitReason, derived_job_id
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, Messenger, producer_app
from finetune_queue.sdk import submitting
from finetune_queue.store import connect
from support.cli import Worker
from support.images import make_dataset_folder
from support.samples import sample, sample_request
from support.until import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sdk.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
NEVER = {
    *(
        "finetune_worker",
        "segmind_sandbox",
        "fastapi",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "flower",
        "tornado",
    ),
    *("requests", "urllib3", "httpx", "fsspec", "PIL", "typer"),
}
"""What submitting the URL of a dataset has no use for. (rich is loaded by structlog, where it is installed.)"""

AT_FIRST_SUBMIT = {"celery", "kombu"}


def imported_by(code: str, redis_url: str) -> set[str]:
    """Run ``code`` in a fresh interpreter and return the top-level packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        env={"FINETUNE_REDIS_URL": redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_it_imports_no_more_than_it_uses(redis_url: str) -> None:
    reading = "from finetune_queue import FineTuneQueue\nqueue = FineTuneQueue.from_env()\nlist(queue.list())"
    submitting = f"{reading}\nqueue.submit({sample()!r})\nlist(queue.submit_many([{sample()!r}]))"
    assert imported_by("import finetune_queue", redis_url) & (NEVER | AT_FIRST_SUBMIT | {"pydantic", "redis"}) == set()
    assert imported_by(reading, redis_url) & (NEVER | AT_FIRST_SUBMIT) == set()
    assert imported_by(submitting, redis_url) & (NEVER | AT_FIRST_SUBMIT) == AT_FIRST_SUBMIT


def test_the_wheel_says_that_it_is_typed_and_has_the_scripts(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"finetune_queue/py.typed", "finetune_queue/store/lua/transition.lua"} <= names


def test_every_public_name_is_there() -> None:
    assert [name for name in finetune_queue.__all__ if getattr(finetune_queue, name).__name__ != name] == []


def test_every_error_is_told_of() -> None:
    kinds = {kind.__name__ for kind in vars(errors).values() if isinstance(kind, type)}
    assert kinds == set(re.findall(r"\w+Error", errors.__doc__ or ""))
    # Dead letters are an operator's, who has the command line.
    assert kinds - {"UnknownLetterError"} <= set(finetune_queue.__all__)
    assert kinds - {"UnknownLetterError"} <= set(re.findall(r"`(\w+Error)`", PAGE))


@pytest.mark.parametrize("kind", [FineTuneQueue, Job, Submission, Waiting])
def test_the_page_names_all_that_a_caller_can_use(kind: type) -> None:
    assert [name for name in dir(kind) if not name.startswith("_") and not re.search(rf"\b{name}\b", PAGE)] == []
    assert [reason for reason in WaitReason if f"`{reason}`" not in PAGE] == []


def test_the_page_names_attributes_that_a_record_has() -> None:
    table = PAGE.partition("| attribute | what it is |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {"created_ms", "weights", "error"} <= named <= {*JobRecord.model_fields, "account"}


def test_threads_share_one_queue(queue: FineTuneQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Barrier(8)
    made: list[Settings] = []

    def noted(given: Settings) -> Any:
        made.append(given)
        return producer_app(given)

    monkeypatch.setattr(submitting, "producer_app", noted)

    def work(thread: int) -> list[str]:
        begin.wait(timeout=30)  # so that all of them find it unused
        own = [queue.submit(sample(name=f"{thread}-{number}")).id for number in range(5)]
        many = queue.submit_many(sample(name=f"{thread}-many-{number}") for number in range(5))
        shared = queue.submit(sample(), idempotency_key="shared").id
        return [*own, *(each.job.id for each in many if each.job is not None), shared]

    with ThreadPoolExecutor(8) as pool:
        found = [job_id for ids in pool.map(work, range(8)) for job_id in ids]

    assert made == [settings]
    assert len(found) == 8 * 11
    assert len(set(found)) == sum(queue.counts().values()) == 8 * 10 + 1
    assert Messenger(producer_app(settings)).queued(QUEUE) == 8 * 10 + 1


@pytest.mark.parametrize("key", [5, "", "k" * 256])
@pytest.mark.parametrize("request_", [sample(), sample_request()], ids=["mapping", "model"])
def test_a_key_that_no_request_may_have_makes_no_job(queue: FineTuneQueue, request_: Any, key: Any) -> None:
    with pytest.raises(errors.InvalidRequestError, match="idempotency_key: "):
        queue.submit(request_, idempotency_key=key)
    assert sum(queue.counts().values()) == 0


@pytest.mark.parametrize("make", [sample, sample_request], ids=["mapping", "model"])
def test_a_call_with_another_key_than_its_request_makes_no_job(queue: FineTuneQueue, make: Any) -> None:
    with pytest.raises(errors.InvalidRequestError, match="idempotency_key: the request has another one than the call"):
        queue.submit(make(idempotency_key="a"), idempotency_key="b")
    assert sum(queue.counts().values()) == 0
    assert queue.submit(make(idempotency_key="a"), idempotency_key="a").id == derived_job_id("default", "a")


PASSED = "2026-01-31T18:00:00+01:00"


@pytest.mark.parametrize("key", [None, "order-4711"])
def test_a_deadline_that_has_passed_makes_no_job_and_stages_nothing(
    queue: FineTuneQueue, tmp_path: Path, key: str | None
) -> None:
    local = str(make_dataset_folder(tmp_path / "photos"))
    with pytest.raises(InvalidRequestError, match=r"deadline: 2026-01-31T17:00:00\+00:00 has already passed"):
        queue.submit(sample(deadline=PASSED, dataset=local), idempotency_key=key)
    assert not (tmp_path / "staging").exists()
    [first, second] = queue.submit_many([sample(deadline=PASSED), sample(name="b")], batch="x" if key else None)
    assert isinstance(first.error, InvalidRequestError)
    assert [job.id for job in queue.list()] == [second.job.id if second.job else None]


def test_a_repeat_finds_its_job_when_the_deadline_has_passed_since(queue: FineTuneQueue) -> None:
    def registered(request: FineTuneRequest) -> str:
        assert request.idempotency_key is not None
        return queue._jobs.register(derived_job_id("default", request.idempotency_key), request, delay=1)[0].id

    alone = registered(sample_request(deadline=PASSED, idempotency_key="order-4711"))
    assert queue.submit(sample(deadline=PASSED), idempotency_key="order-4711").id == alone
    digest = sample_request(deadline=PASSED, name="b").digest()
    of_batch = registered(sample_request(deadline=PASSED, name="b", idempotency_key=f"faces:{digest}"))
    [found] = queue.submit_many([sample(deadline=PASSED, name="b")], batch="faces")
    assert found.job is not None
    assert (found.job.id, found.new) == (of_batch, False)
    with pytest.raises(IdempotencyConflictError):
        queue.submit(sample(deadline=PASSED, name="c"), idempotency_key="order-4711")


def test_a_state_may_be_named_and_one_that_does_not_exist_is_refused(queue: FineTuneQueue) -> None:
    job = queue.submit(sample(deadline=datetime(2100, 1, 1, tzinfo=UTC)), idempotency_key="order-4711")
    assert [each.id for each in queue.list(state="accepted")] == [job.id]
    assert list(queue.list(state="failed")) == []
    with pytest.raises(errors.UnknownStateError, match=r"no state 'lost'\. Known: accepted, uploading"):
        list(queue.list(state="lost"))
    for state in JobState:
        assert f"`{state}`" in PAGE


@pytest.mark.parametrize("job_id", [5, None, b"x"])
def test_what_is_no_text_is_the_id_of_no_job(queue: FineTuneQueue, job_id: Any) -> None:
    with pytest.raises(
        errors.UnknownJobError, match=f"A job's id is a text like .*, not of the type {type(job_id).__name__}"
    ):
        queue.get(job_id)


def test_a_label_that_no_job_can_have_is_not_looked_for(queue: FineTuneQueue) -> None:
    with pytest.raises(ValueError, match=r"a key should be letters, digits .* \(not 'a b'\)"):
        list(queue.list(labels={"a b": "x"}))
    assert list(queue.list(labels={"a/b": "x y"})) == []


def test_a_wait_goes_on_through_a_restart_of_redis(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server, FineTuneQueue(Settings(finetune_redis_url=server.url)) as queue:
        job = queue.submit(sample())
        events: list[Event] = []
        with ThreadPoolExecutor(1) as pool, connect(server.url) as client:
            waiting = pool.submit(job.wait, 60, events.append)
            until(lambda: len(events) == 1, seconds=20)
            client.waitaof(1, 0, 5000)  # a busy disk would lose the job with the server
            server.kill()
            with pytest.raises(
                WaitTimeoutError, match=r"was still accepted after 0 s\. It goes on\. It has not been seen since"
            ):
                job.wait(0)
            assert not waiting.done()
            server.start()
            worker = Worker(client)
            worker.bring(worker.store.get(job.id), JobState.SUCCEEDED)
            ended = waiting.result(timeout=60)
    assert ended.state is JobState.SUCCEEDED
    assert [event.id for event in events] == [f"{job.id}-{number}" for number in range(1, 7)]


def test_a_wait_does_not_say_that_a_job_goes_on_that_needs_a_person(queue: FineTuneQueue, worker: Worker) -> None:
    job = queue.submit(sample())
    worker.move(worker.bring(worker.store.get(job.id), JobState.SUBMITTING), JobState.NEEDS_ATTENTION, intent_ms=1)
    with pytest.raises(WaitTimeoutError, match=r"was still needs_attention after 0 s\. It waits for a person\.$"):
        job.wait(0)


@pytest.mark.parametrize(("number", "jobs"), [(0, 1), (1, 1000), (2, 3)], ids=["one", "many", "async"])
def test_the_examples_of_the_page_run(redis_url: str, worker: Worker, number: int, jobs: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", EXAMPLES[number]],
        env={"FINETUNE_REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:

        def work() -> bool:
            if jobs < 10:  # the example waits for them
                for job in worker.newest(JobState.ACCEPTED):
                    worker.bring(job, JobState.SUCCEEDED)
            return program.poll() is not None

        until(work, seconds=60)
        assert program.stdout is not None
        shown = program.stdout.read()
        assert sum(worker.store.counts().values()) == jobs
    assert program.returncode == 0
    assert shown.count("succeeded") == (0 if jobs > 3 else jobs)


def test_the_page_has_no_other_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("words", [{}, {"adopt": "ft-1", "resubmit": True}, {"adopt": ""}, {"adopt": " "}])
def test_a_word_on_a_submit_that_says_nothing_or_both_changes_nothing(
    queue: FineTuneQueue, worker: Worker, words: dict[str, Any]
) -> None:
    job = queue.submit(sample())
    record = worker.bring(worker.store.get(job.id), JobState.SUBMITTING)
    record = worker.move(record, JobState.NEEDS_ATTENTION, intent_ms=1)
    with pytest.raises(ValueError, match="adopt"):
        job.resolve(**words)
    assert worker.store.get(job.id) == record
