"""The judge: reads a history and says what is wrong with it. Pure, and independent of how the service works.

It knows what was promised, what Segmind has, and what came out. Each function yields a sentence of evidence for each
thing that is wrong; without any the promise was kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from finetune_chaos.history import Event, History, SeenJob, SeenSink, SeenTraining
from finetune_queue.contract.job import TRANSITIONS, JobState

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"

_WITHIN = frozenset({"progress", "access"})
"""Kinds of events that tell of something within a state."""

_ENDS = frozenset({"succeeded", "failed", "cancelled"})


def kind_of(event: Event) -> str:
    """Return the kind of an event: io.finetunequeue.job.KIND.v1."""
    return str(event["type"]).split(".")[-2]


def paid_twice(history: History) -> Iterator[str]:
    """No job has two trainings, unless Segmind's first one failed and somebody asked for another.

    Jobs that share name and dataset are judged together, as only they themselves know whose training is whose.
    """
    paid: dict[str, list[SeenTraining]] = defaultdict(list)
    for training in history.trainings:
        paid[training.name].append(training)
    jobs: dict[str, list[SeenJob]] = defaultdict(list)
    for job in history.jobs.values():
        jobs[job.name].append(job)
    for name, trainings in paid.items():
        allowed = sum(1 + _failed_trainings(job) for job in jobs[name])
        if len(trainings) > allowed:
            ids = ", ".join(f"{each.finetune_id} ({each.status})" for each in trainings)
            who = ", ".join(job.job_id for job in jobs[name]) or "no job"
            yield f"{name}: {len(trainings)} trainings were paid, {allowed} may be: {ids}; jobs: {who}"
    for job_id, marked in _by_mark(history).items():
        allowed = 1 + _failed_trainings(history.jobs[job_id])
        if len(marked) > allowed:
            yield f"job {job_id}: {len(marked)} trainings bear its mark, {allowed} may: {', '.join(marked)}"
    owners = Counter(job.finetune_id for job in history.jobs.values() if job.finetune_id is not None)
    for finetune_id, count in owners.items():
        if count > 1:
            yield f"training {finetune_id} belongs to {count} jobs"


def _by_mark(history: History) -> Mapping[str, Sequence[str]]:
    """Return for each job the trainings whose dataset was uploaded under its id."""
    marked: dict[str, list[str]] = defaultdict(list)
    for training in history.trainings:
        for job_id in history.jobs:
            if job_id in training.dataset:
                marked[job_id].append(training.finetune_id)
    return marked


def _failed_trainings(job: SeenJob) -> int:
    """Return how many of the job's trainings failed at Segmind and were followed by another try."""
    steps = [event for event in job.events if kind_of(event) not in _WITHIN]
    return sum(_error_code(event) == "training_failed" for event in steps[:-1] if kind_of(event) == "failed")


def _error_code(event: Event) -> str:
    return str((event["data"].get("error") or {}).get("code", ""))


def lost(history: History) -> Iterator[str]:
    """Every job that a caller was given has ended, and every message that cannot become a job was set aside."""
    for promise in history.promises:
        job = history.jobs.get(promise.job_id)
        if job is None:
            yield f"job {promise.job_id} ({promise.name}) was promised and is not there"
        elif job.state not in _ENDS:
            yield f"job {job.job_id} ({job.name}) has not ended: {job.state} {job.error}"
        elif job.state == "failed" and not promise.left_alone:
            yield f"job {job.job_id} ({job.name}) failed when nothing went wrong any more: {job.error}"
        elif job.name != promise.name:
            yield f"job {job.job_id} was promised as {promise.name} and is {job.name}"
    for job_id in history.jobs.keys() - {promise.job_id for promise in history.promises}:
        yield f"job {job_id} ({history.jobs[job_id].name}) was not asked for by anybody"
    told = Counter(str(event["subject"]) for event in history.stream if kind_of(event) == "rejected")
    for message_id in history.poisoned:
        if message_id not in history.dead_letters:
            yield f"message {message_id} cannot become a job and is no dead letter"
        if not told[message_id]:
            yield f"no event tells of message {message_id}, which was rejected"


def events_wrong(history: History) -> Iterator[str]:
    """Each job's events are numbered without a gap, tell of allowed changes only, and end once for each run."""
    of_job: dict[str, list[Event]] = defaultdict(list)
    for event in history.stream:
        of_job[str(event["subject"])].append(event)
    for job in history.jobs.values():
        yield from (f"job {job.job_id}: {said}" for said in _own_events(job, history))
        if of_job[job.job_id] != list(job.events):
            yield f"job {job.job_id}: the stream tells {_ids(of_job[job.job_id])}, the job {_ids(job.events)}"
    for sink in history.sinks:
        yield from (f"sink {sink.name}: {said}" for said in _deliveries(sink, history))


def _own_events(job: SeenJob, history: History) -> Iterator[str]:
    expected = [f"{job.job_id}-{number + 1}" for number in range(len(job.events))]
    if _ids(job.events) != expected:
        yield f"its events are {_ids(job.events)}"
    state: str | None = None
    opened_again = 0
    for event in job.events:
        data, kind = event["data"], kind_of(event)
        if kind in _WITHIN:
            if data["state"] != state:
                yield f"{event['id']} tells of {kind} in {data['state']}, but it was {state}"
            continue
        if data["previous_state"] != state or data["state"] != kind:
            yield f"{event['id']} tells of {data['previous_state']} to {data['state']} as {kind}, but it was {state}"
        if state is None:
            if kind != "accepted":
                yield f"its first event is {kind}"
        elif JobState(kind) not in TRANSITIONS[JobState(state)]:
            yield f"{event['id']} tells of {state} to {kind}, which cannot be"
        opened_again += state == "failed"
        state = kind
    if state != job.state:
        yield f"its last event tells of {state}, and it is {job.state}"
    asked = history.asked_to_retry.get(job.job_id, 0)
    if opened_again > asked:
        yield f"it went on after a failure {opened_again} times; {asked} were asked for"
    if job.state == "cancelled" and job.job_id not in history.asked_to_cancel:
        yield "it was cancelled, and nobody asked for it"


def _deliveries(sink: SeenSink, history: History) -> Iterator[str]:
    if sink.forged:
        yield f"{sink.forged} deliveries had no valid signature"
    got: dict[str, list[Event]] = defaultdict(list)
    for event in sink.got:
        got[str(event["subject"])].append(event)
    for job_id in sink.jobs & history.jobs.keys():
        wanted = [event for event in history.jobs[job_id].events if kind_of(event) in sink.kinds]
        first = list({event["id"]: event for event in got[job_id]}.values())  # a repeat may come late
        if first != wanted:
            yield f"job {job_id}: it got {_ids(first)}, it should have {_ids(wanted)}"
    for job_id in got.keys() - sink.jobs - set(history.poisoned):
        yield f"it got events of {job_id}, which it should not have"


def _ids(events: Sequence[Event]) -> list[str]:
    return [str(event["id"]) for event in events]


def files_wrong(history: History) -> Iterator[str]:
    """The weights of a succeeded job are those of its training, and no file is there that is not whole."""
    made = {training.finetune_id: training.sha256 for training in history.trainings}
    for job in history.jobs.values():
        if job.state != "succeeded":
            continue
        files = history.files.get(job.job_id, {})
        right = made.get(job.finetune_id or "")
        if files.get(WEIGHTS) != right or job.sha256 != right:
            yield (
                f"job {job.job_id}: its training's weights are {right}, its file is {files.get(WEIGHTS)}, "
                f"it says {job.sha256}"
            )
        manifest = history.manifests.get(job.job_id, {})
        if (manifest.get("weights") or {}).get("sha256") != right or manifest.get("finetune_id") != job.finetune_id:
            yield f"job {job.job_id}: its manifest tells of another training, or is not there"
    for folder, files in history.files.items():
        # A hidden name is what a killed worker was writing: not in place, so nobody takes it for weights.
        for name in files:
            if not name.startswith(".") and name not in {WEIGHTS, MANIFEST}:
                yield f"{folder}/{name} has no business there"
        if WEIGHTS in files and files[WEIGHTS] not in made.values():
            yield f"{folder}/{WEIGHTS} is no training's"


def access_wrong(history: History) -> Iterator[str]:
    """A model is as public as the job says that Segmind has confirmed."""
    public = {training.finetune_id: training.public for training in history.trainings}
    for job in history.jobs.values():
        if job.public is not None and job.public != public.get(job.finetune_id or ""):
            yield f"job {job.job_id}: it says public: {job.public}; Segmind: {public.get(job.finetune_id or '')}"


def limit_broken(history: History) -> Iterator[str]:
    """No window of an account holds more calls than its limit, and Segmind refused none for that."""
    for account in history.accounts:
        if account.most_in_window > account.limit:
            yield f"{account.name}: {account.most_in_window} calls in one window, {account.limit} are allowed"
        if account.refused:
            yield f"{account.name}: {account.refused} calls were refused for the limit"


def secrets_seen(history: History) -> Iterator[str]:
    """No secret is in a log, an event, a record, a message or what Flower shows."""
    yield from history.leaks


def told_wrong(history: History) -> Iterator[str]:
    """Callers got the answers that they should."""
    yield from history.answers


def ended(history: History) -> Iterator[str]:
    """No process ended that nobody ended, and each that was told to end did: a worker comes back from whatever happens
    to others, and hangs on nothing."""
    yield from history.ended


def crashes(history: History) -> Iterator[str]:
    """The service knows what to make of whatever happens: nothing comes to the last place that catches everything."""
    yield from history.crashes


def left_over(history: History) -> Iterator[str]:
    """Nothing of ended jobs waits in Redis."""
    yield from (f"{count} in {where}" for where, count in history.left_over.items() if count)


def not_fired(history: History) -> Iterator[str]:
    """Every kind of fault was there at least once."""
    yield from (f"{kind} never happened" for kind in history.expected_kinds if not history.fired.get(kind))


CHECKS: Mapping[str, Callable[[History], Iterator[str]]] = {
    "paid twice": paid_twice,
    "lost": lost,
    "events wrong": events_wrong,
    "files wrong": files_wrong,
    "access wrong": access_wrong,
    "limit broken": limit_broken,
    "secrets seen": secrets_seen,
    "callers told wrong": told_wrong,
    "processes ended or hung": ended,
    "crashes logged": crashes,
    "left over": left_over,
    "faults that never fired": not_fired,
}
"""Every promise, by its row in the table."""


def judge(history: History) -> dict[str, list[str]]:
    """Return the evidence against each promise; empty lists where it was kept."""
    return {name: list(check(history)) for name, check in CHECKS.items()}
