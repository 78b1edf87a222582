"""A worker without Celery: messages in a list, the dispatcher and the stages one after the other in one thread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.messaging import CALL, CONTINUE
from finetune_worker.container import Container
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.intake import accept
from finetune_worker.stages.access import change_access
from finetune_worker.stages.conclude import StageResult
from finetune_worker.stages.runner import run_stage
from finetune_worker.stages.sweep import sweep_if_due
from finetune_worker.stages.upload import presign
from finetune_worker.tasks import STAGES


@dataclass(frozen=True)
class Message:
    """What a queue would hold: a request to run, the rest of a job's chain, a sweep or a change of access."""

    subject: str
    stages: tuple[Stage, ...] = ()
    presign: bool = False
    sweep: bool = False
    access: bool = False


@dataclass
class Post:
    """In place of the messenger: keeps what is sent, for a test to deliver, repeat or lose."""

    messages: list[Message] = field(default_factory=list)

    def run(self, job: JobRecord) -> None:
        self.messages.append(Message(job.id))

    def start_many(self, jobs: Sequence[JobRecord]) -> None:
        for job in jobs:
            self.start(job.id, job.stage.and_after())

    def start(self, job_id: str, stages: Sequence[Stage], *, priority: int = CONTINUE) -> None:
        presign = priority == CALL and stages[0] is Stage.UPLOAD
        self.messages.append(Message(job_id, tuple(stages), presign=presign))

    def sweep(self, account: str) -> None:
        self.messages.append(Message(account, sweep=True))

    def access(self, job_id: str, *, priority: int = CONTINUE) -> None:
        self.messages.append(Message(job_id, access=True))

    def queued(self, queue: str) -> int:
        return len(self.messages)

    def queued_before(self, queue: str, priority: int) -> int:
        return len(self.messages)


class WatchedPost(Post):
    """Tells ``reach`` of every message before it is sent: sending one is a call, too."""

    def __init__(self, reach: Callable[[str], None]) -> None:
        super().__init__()
        self._reach = reach

    def run(self, job: JobRecord) -> None:
        self._reach("message run")
        super().run(job)

    def start(self, job_id: str, stages: Sequence[Stage], *, priority: int = CONTINUE) -> None:
        self._reach("message chain")
        super().start(job_id, stages, priority=priority)

    def sweep(self, account: str) -> None:
        self._reach("message sweep")
        super().sweep(account)

    def access(self, job_id: str, *, priority: int = CONTINUE) -> None:
        self._reach("message access")
        super().access(job_id, priority=priority)


class Driver:
    """Does what a worker does, in this thread."""

    def __init__(self, container: Container, *, post: Post | None = None, name: str = "driver") -> None:
        self.post = post or Post()
        self.container = replace(container, messenger=self.post)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(self.container)
        self._name = name

    def deliver(self, message: Message) -> str:
        """Do what a message asks for, and return the last sentence of it."""
        if message.sweep:
            return sweep_if_due(self.container, message.subject)
        if message.access:
            return change_access(self.container, message.subject, self._name)
        if not message.stages:
            return accept(self.container, [message.subject], {}, message_id=message.subject)
        sentence = ""
        if message.presign:
            result = self.run_presign(message.subject)
            if not result.proceed:
                return result.sentence
        for stage in message.stages:
            result = self.run_stage(stage, message.subject)
            sentence = result.sentence
            if not result.proceed:
                break
        return sentence

    def run_presign(self, job_id: str) -> StageResult:
        """Ask for a job's upload URL, as the task of its own does."""
        return run_stage(self.container, Stage.UPLOAD, presign, job_id, self._name)

    def run_stage(self, stage: Stage, job_id: str) -> StageResult:
        """Run one stage, as its task does."""
        return run_stage(self.container, stage, STAGES[stage], job_id, self._name)

    def step(self) -> float:
        """Start what can start and do all of it; returns the seconds until there may be more."""
        wait = self.dispatcher.step()
        while self.post.messages:
            self.deliver(self.post.messages.pop(0))
            wait = 0.0
        return wait

    def until_ended(self, job_id: str, *, seconds: float) -> JobRecord:
        """Work until the job has ended or needs a person; fail if it has not within ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            job = self.container.jobs.get(job_id)
            if job.state.terminal or job.state is JobState.NEEDS_ATTENTION:
                return job
            if time.monotonic() > end:
                message = f"not ended within {seconds} s: {job!r}"
                raise AssertionError(message)
            self.dispatcher.sleep(min(self.step(), 0.05))
