"""The messages of the HTTP API, as OpenAPI shows them."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
)

from finetune_queue.contract import Event, FineTuneRequest, JobState, Stage, WaitReason
from finetune_queue.contract.dataset_url import DATASET_SCHEMA, WHOLE_DATASET_URL, check_dataset, missing_part
from finetune_queue.contract.job import Progress
from finetune_queue.contract.request import LABEL_KEY, AccountName
from finetune_queue.contract.views import PublicJob
from finetune_queue.load import Load
from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE
from finetune_queue.sdk import Job, Waiting
from finetune_queue.store import CURSOR, PLACE


def _check_first(value: object) -> object:
    """Say what is wrong with a URL before its pattern refuses it, which gives no reasons."""
    if isinstance(value, str):
        check_dataset(value)
        if (missing := missing_part(value)) is not None:
            raise ValueError(missing)
    return value


DatasetUrl = Annotated[
    str,
    StringConstraints(pattern=WHOLE_DATASET_URL, max_length=2000),
    AfterValidator(check_dataset),
    BeforeValidator(_check_first),
]
LabelFilter = Annotated[str, StringConstraints(pattern=LABEL_KEY.removesuffix("$") + "=", max_length=320)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[!-~]([ -~]*[!-~])?$")]
Place = Annotated[str, StringConstraints(pattern=rf"^{PLACE}$")]
# Empty is what a client sends that has not seen an event yet.
OptionalPlace = Annotated[str, StringConstraints(pattern=rf"^({PLACE})?$")]
OptionalNumber = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,15})?$")]
Cursor = Annotated[str, StringConstraints(pattern=CURSOR)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class SubmitBody(FineTuneRequest):
    """A fine-tune to run. The dataset is a URL; a local ZIP goes to `/v1/datasets` first, which gives one."""

    dataset: DatasetUrl = Field(
        description="https:// URL of a public ZIP, a URL that /v1/datasets gave, or another that the workers can read; "
        "without a user name or password. The key of an object is written as it is, the rest percent-encoded.",
        json_schema_extra=DATASET_SCHEMA,
    )


class Links(_Model):
    """A job's links."""

    self: str
    events: str
    stream: str
    cancel: str
    retry: str
    access: str

    @classmethod
    def to(cls, job_id: str) -> "Links":
        """Return the links of a job."""
        base = f"/v1/jobs/{job_id}"
        return cls(self=base, **{name: f"{base}/{name}" for name in ("events", "stream", "cancel", "retry", "access")})


class WaitingView(_Model):
    """Why a job is not moving, how many are ahead of it and about how many seconds that takes, if known.
    ``submits_stopped``: the reason `spending` is the kill switch, and not the account's cap of submits for the day.
    ``unserved``: whatever the reason, no running worker has its account's key. ``no_worker``: none is running.
    ``pause_reason``: why the account is paused, if that holds the job back."""

    reason: WaitReason
    ahead: int
    estimate_seconds: float | None = None
    submits_stopped: bool = False
    unserved: bool = False
    no_worker: bool = False
    pause_reason: str | None = None


class JobView(PublicJob):
    """A job. What is not known yet, or does not apply, is left out."""

    links: Links
    waiting: WaitingView | None = None

    @classmethod
    def of(cls, job: Job, waiting: Waiting | None = None) -> "JobView":
        """Return a job as this API shows it."""
        shown = None if waiting is None else WaitingView(**waiting.as_dict())
        return cls(**job.as_dict(), links=Links.to(job.id), waiting=shown)


class SubmittedJob(JobView):
    """A job, and whether this request made it."""

    new: bool = Field(description="False if its idempotency key found a job from before.")

    @classmethod
    def by(cls, job: Job) -> "SubmittedJob":
        """Return the job of a submit."""
        return cls(**job.as_dict(), links=Links.to(job.id), new=job.new)


class JobList(_Model):
    """A page of jobs, newest first. ``next`` is the cursor of the page that follows; a page may be short before it."""

    jobs: list[JobView]
    next: str | None = None


class ListQuery(BaseModel):
    """Which jobs to list: those that match everything given."""

    model_config = ConfigDict(extra="forbid")

    state: JobState | None = Field(default=None, description="Only jobs in this state, by when they entered it.")
    account: AccountName | None = Field(default=None, description="Only jobs of this account.")
    label: list[LabelFilter] = Field(default=[], max_length=32, description="Only jobs with this label: `key=value`.")
    limit: int = Field(default=50, ge=1, le=200)
    cursor: Cursor | None = Field(default=None, description="`next` of the previous page.")

    @property
    def labels(self) -> dict[str, str] | None:
        """The labels that a job must have; None when no job can have all of them."""
        pairs = {(key, value) for key, _, value in (text.partition("=") for text in self.label)}
        return dict(pairs) if len(dict(pairs)) == len(pairs) else None


REPEATABLE = frozenset({"label"})
"""The parameters of queries that may come more than once."""


class EventQuery(BaseModel):
    """Which of a job's events."""

    model_config = ConfigDict(extra="forbid")

    after: Count = Field(default=0, description="Only events with a higher number.")
    limit: int = Field(default=100, ge=1, le=1000)


class EventList(_Model):
    """Events (CloudEvents 1.0), oldest first. ``next`` is what to give as ``after`` for those that follow these."""

    events: list[Event]
    next: int


class FeedQuery(BaseModel):
    """Which events of all jobs."""

    model_config = ConfigDict(extra="forbid")

    after: Place = Field(default="0-0", description="Only events after this place in the stream.")
    limit: int = Field(default=100, ge=1, le=1000)


class FeedList(_Model):
    """Events of all jobs, oldest first. ``next`` is what to give as ``after`` for those that follow these."""

    events: list[Event]
    next: str


class Dataset(_Model):
    """A dataset in the staging store; ``dataset`` is the URL for a request."""

    dataset: str
    bytes: int
    sha256: str


class AccessBody(BaseModel):
    """Who may use the tuned model at Segmind."""

    model_config = ConfigDict(extra="forbid")

    public: StrictBool


class JobCard(_Model):
    """A job in a few words, for the board."""

    job_id: str
    name: str
    account: str
    state: JobState
    created_at: AwareDatetime
    seconds_in_state: float
    waiting_for: WaitReason | None = None
    provider_status: str | None = None
    progress: Progress | None = None
    error: str | None = None


class StateColumn(_Model):
    """The jobs in a state: how many, for how many seconds the oldest has been in it, and some of them."""

    state: JobState
    count: int
    oldest_seconds: float | None = None
    jobs: list[JobCard]


class InLine(_Model):
    """A job that waits for one of the account's calls, and what for: a stage, or `access`."""

    job_id: str
    what: Stage | Literal["access"]
    name: str


class AccountView(_Model):
    """An account's budget, and who waits for it. ``calls`` in any ``window_seconds``, ``used`` of them now. It is
    paused for ``paused_seconds``: at most, if one call tests just now whether Segmind is well again. So its submits."""

    name: str
    calls: int
    window_seconds: float
    used: int
    waiting: int
    trainings: int
    max_training: int | None = None
    submits_today: int
    max_submits_per_day: int | None = None
    stopped: bool
    paused_seconds: float
    submits_paused_seconds: float
    pause_reason: str
    line: list[InLine]


class SinkView(_Model):
    """Sinks that do not take their events: out of reach, or, with a ``refused_job``, one that refuses its event."""

    sink: str
    trouble_seconds: float
    waiting: int = Field(description="Jobs whose events wait for it, at least.")
    reason: str
    refused_job: str | None = None


class OverviewReply(_Model):
    """The whole queue at a glance."""

    at: AwareDatetime
    states: list[StateColumn]
    accounts: list[AccountView]
    sinks: list[SinkView] = Field(description="Those that do not take their events; empty if all is well.")
    queues: dict[str, int] = Field(description="Messages waiting in each Celery queue; empty if the broker is away.")
    dead_letters: int
    overdue_seconds: float = Field(description="By how much the oldest deadline has passed: 0 while a worker runs.")


class LoadView(_Model):
    """What one class of workers has to run."""

    queued: int = Field(description="Messages waiting in its queue, of all priorities.")
    running: int = Field(description="Running stages.")
    due: int = Field(description="Retries and starts due within the next few seconds.")
    total: int

    @classmethod
    def of(cls, load: Load) -> "LoadView":
        """Return a load as this API shows it."""
        return cls(queued=load.queued, running=load.running, due=load.due, total=load.total)


class LoadReply(_Model):
    """What there is to run now: ``short`` by workers of the queue `finetune`, ``transfers`` by `finetune.transfer`."""

    short: LoadView
    transfers: LoadView

    @classmethod
    def of(cls, loads: Mapping[str, Load]) -> "LoadReply":
        """Return the loads of both queues."""
        return cls(short=LoadView.of(loads[QUEUE]), transfers=LoadView.of(loads[TRANSFER_QUEUE]))
