"""The job: one fine-tune from request to weights, its states, and which state may follow which."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from finetune_queue.contract.request import STORED, FineTuneRequest
from finetune_queue.redaction import redact_text


class JobState(StrEnum):
    """Where a job is. The diagram in docs/architecture.md is drawn from :data:`TRANSITIONS`."""

    ACCEPTED = "accepted"  # registered; nothing has been done
    UPLOADING = "uploading"  # the dataset is checked and put where Segmind can read it
    SUBMITTING = "submitting"  # the paid request: not sent yet, on its way, or its outcome being found out
    TRAINING = "training"  # Segmind has it
    DOWNLOADING = "downloading"  # the weights are fetched, verified and stored
    DEPLOYING = "deploying"  # weights stored; the request also waits for Segmind's inference
    NEEDS_ATTENTION = "needs_attention"  # a person must say whether the submit happened
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in _TERMINAL

    @property
    def sentence(self) -> str:
        """What is said of a job in this state: ``has failed``, ``is training``."""
        match self:
            case JobState.SUCCEEDED | JobState.FAILED:
                return f"has {self}"
            case JobState.CANCELLED:
                return "was cancelled"
            case JobState.NEEDS_ATTENTION:
                return "needs attention"
            case _:
                return f"is {self}"


_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})

_ENDS = frozenset({JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.ACCEPTED: _ENDS | {JobState.UPLOADING},
    JobState.UPLOADING: _ENDS | {JobState.SUBMITTING},
    JobState.SUBMITTING: _ENDS | {JobState.TRAINING, JobState.NEEDS_ATTENTION},
    JobState.NEEDS_ATTENTION: _ENDS | {JobState.SUBMITTING, JobState.TRAINING},
    JobState.TRAINING: _ENDS | {JobState.DOWNLOADING},
    JobState.DOWNLOADING: _ENDS | {JobState.DEPLOYING, JobState.SUCCEEDED},
    JobState.DEPLOYING: _ENDS | {JobState.SUCCEEDED},
    JobState.SUCCEEDED: frozenset(),
    # A retry resumes at the stage that failed.
    JobState.FAILED: frozenset(
        {JobState.UPLOADING, JobState.SUBMITTING, JobState.TRAINING, JobState.DOWNLOADING, JobState.DEPLOYING}
    ),
    JobState.CANCELLED: frozenset(),
}
"""Every change of state that is allowed; a job may also change within its state."""


class Stage(StrEnum):
    """The steps of the chain, in order; each is the Celery task ``finetune.<stage>``."""

    UPLOAD = "upload"
    SUBMIT = "submit"
    POLL = "poll"
    DOWNLOAD = "download"
    PUBLISH = "publish"

    def and_after(self) -> list["Stage"]:
        """Return this stage and those that follow it at once: a submitted job waits for its training, so that no chain
        goes on from there."""
        stages = list(Stage)
        last = Stage.SUBMIT if self in {Stage.UPLOAD, Stage.SUBMIT} else Stage.PUBLISH
        return stages[stages.index(self) : stages.index(last) + 1]

    @property
    def next_in_chain(self) -> "Stage | None":
        """The stage that follows this one at once; None for the last of its chain."""
        return next(iter(self.and_after()[1:]), None)


class WaitReason(StrEnum):
    """Why a live job is not moving."""

    API_SLOT = "api-slot"  # for a call within the account's rate limit
    TRANSFER = "transfer"  # for the account's share of the workers' transfers
    BACKOFF = "backoff"  # for the next try after an error
    PROVIDER = "provider"  # for Segmind
    SPENDING = "spending"  # for the account's submit cap or its kill switch
    TRAININGS = "trainings"  # for the account's cap on trainings in flight
    PAUSED = "paused"  # for the account's pause, or that of its submits
    START = "start"  # for the time that its message set, by Celery's eta or countdown
    WORKER = "worker"  # for a worker to pick it up; said of a job, and never stored in it


class Visibility(StrEnum):
    """Who may use a tuned model at Segmind."""

    PUBLIC = "public"
    PRIVATE = "private"


class JobError(BaseModel):
    """Why a job, or its latest try, did not succeed; made to be shown to a person and read by a program."""

    model_config = ConfigDict(frozen=True)

    code: str
    stage: str
    message: str
    action: str = ""
    retryable: bool = False
    upstream_status: int | None = Field(
        default=None, description="The HTTP status of Segmind's answer; null if the error did not come from one."
    )


RETRY_IS_USELESS: frozenset[tuple[str, str]] = frozenset(
    {
        (Stage.UPLOAD, "dataset_bad_address"),
        (Stage.SUBMIT, "request_rejected"),
        (Stage.SUBMIT, "request_too_large"),
    }
)
"""Stage and code of each error that is the request's own fault: a retry sends the same request. By the stage, too, as
the same code from a call of another stage says nothing of the request."""


class Weights(BaseModel):
    """The stored result."""

    model_config = ConfigDict(frozen=True)

    url: str
    manifest_url: str
    bytes: int
    sha256: str
    tensors: int


class Progress(BaseModel):
    """How far the running stage is, in bytes."""

    model_config = ConfigDict(frozen=True)

    done: int
    total: int | None = None


ACCESS = "access"
"""The ``stage`` of an error of a change of access, which is no stage: the job has ended."""


class Access(BaseModel):
    """What was asked for with ``set_public``, and what came of it (Fast Flux API, section 5)."""

    model_config = ConfigDict(frozen=True)

    wanted: Visibility | None = Field(default=None, description="Asked for, and neither confirmed nor refused yet.")
    confirmed: Visibility | None = Field(default=None, description="What Segmind last confirmed.")
    attempts: int = Field(default=0, description="How often the change has failed.")
    error: JobError | None = Field(default=None, description="Why the latest try did not succeed.")

    def granted(self) -> Self:
        """Return the access after Segmind has made the wanted change."""
        return type(self)(confirmed=self.wanted)

    def refused(self, error: JobError) -> Self:
        """Return the access after the wanted change was refused or given up."""
        return type(self)(confirmed=self.confirmed, error=error)


class JobRecord(BaseModel):
    """A job as stored. Times are milliseconds of the Redis server's clock; ``version`` counts its changes."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: JobState
    version: int = 0
    event_seq: int = 0
    request: FineTuneRequest
    digest: str | None = None  # of the request as it came, where a retry has changed it since
    created_ms: int = 0
    entered_ms: int = 0
    updated_ms: int = 0

    # who works on it, and why nobody does
    owner: str = ""  # the worker that holds it
    attempts: int = 0  # failures of this stage that count against FINETUNE_MAX_ATTEMPTS
    outages: int = 0  # in a row, of a store, the disk or its own API calls; they use up no attempt
    takeovers: int = 0  # workers in a row that stopped giving signs of life while they held it
    waiting_for: WaitReason | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    error: JobError | None = None
    failed_stage: Stage | None = None

    # upload
    dataset_report: dict[str, JsonValue] | None = None
    dataset_url: str | None = None
    # submit
    intent_ms: int | None = None  # when the paid request was going to be sent; None: it was not, and may be
    # while Segmind is searched for the training of a submit whose answer was lost
    looks: int = 0  # complete lists that did not show it
    candidates: list[str] = Field(default_factory=list)  # trainings that may be it, still to be examined
    ruled_out: list[str] = Field(default_factory=list)  # trainings that are certainly not it
    # trainings that were examined and are probably another job's -> creation time (ms) if nothing but that time speaks
    # against this job, else None
    aside: dict[str, int | None] = Field(default_factory=dict)
    adopting: str | None = None  # the training that a person named as the job's, until a worker has looked at it
    evidence: list[str] = Field(default_factory=list)
    # poll
    finetune_id: str | None = None
    submitted_ms: int | None = None
    provider_status: str | None = None
    weights_url: str | None = None
    slug: str | None = None
    wants_details: bool = False  # the list said too little, so the training's details are to be asked for
    deployed: bool = False
    # download
    weights_private: bool = False  # their URL was refused, so a link to them is to be asked for
    weights: Weights | None = None
    # after its end
    access: Access | None = None
    access_settles_ms: int | None = None  # from when on an earlier change without an answer can no longer take effect
    # the trace that the job belongs to (https://www.w3.org/TR/trace-context), where somebody traces it
    traceparent: str | None = None

    @classmethod
    def from_hash(cls, job_id: str, fields: Mapping[str, str]) -> Self:
        """Read a job from its Redis hash. Its values are text, or JSON where the field is not a plain value; the id
        is only in the hash's key."""
        read = {name: _decode(name, value) for name, value in fields.items()}
        return cls.model_validate({**read, "id": job_id}, context=STORED)

    @property
    def account(self) -> str:
        """The account that pays for it."""
        return self.request.account

    @property
    def tracked(self) -> bool:
        """Whether Segmind works on it, or may be working on it: a submit was meant to be sent."""
        if self.state in {JobState.SUBMITTING, JobState.NEEDS_ATTENTION}:
            return self.intent_ms is not None
        # Once it is deployed, a sweep has nothing to add, and its write would overtake the worker that publishes it.
        return self.state is JobState.TRAINING or (self.state is JobState.DEPLOYING and not self.deployed)

    @property
    def wants_access(self) -> bool:
        """Whether it has ended and a change of its model's access is still to be made."""
        return self.state.terminal and self.access is not None and self.access.wanted is not None

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for it: it has ended, and no change of access was asked for."""
        return self.state.terminal and not self.wants_access

    @property
    def stage(self) -> Stage:
        """The stage that has to act next."""
        match self.state:
            case JobState.ACCEPTED | JobState.UPLOADING:
                return Stage.UPLOAD
            case JobState.SUBMITTING | JobState.NEEDS_ATTENTION:
                return Stage.SUBMIT
            case JobState.TRAINING:
                return Stage.POLL
            case JobState.DEPLOYING if not self.deployed:
                return Stage.POLL
            case JobState.DOWNLOADING if self.weights is None:
                return Stage.DOWNLOAD
            case _:
                return Stage.PUBLISH

    def with_evidence(self, said: str) -> list[str]:
        """Return the evidence with one more sentence; what is repeated is said once, and only the latest is kept."""
        if self.evidence and self.evidence[-1] == said:
            return self.evidence
        return [*self.evidence, said][-_MOST_EVIDENCE:]

    def public(self) -> dict[str, Any]:
        """Return the job as shown to callers: no bookkeeping of the workers, times in ISO 8601."""
        body = self.model_dump(mode="json", exclude=_INTERNAL, exclude_none=True)
        # A sink's URL may hold a password, or an unguessable path.
        body["request"]["reply_to"] = [sink.shown for sink in self.request.sinks]
        # A signed link opens the file to all who see it.
        body["request"]["dataset"] = redact_text(self.request.dataset)
        body |= {name: redact_text(body[name]) for name in ("dataset_url", "weights_url") if name in body}
        first = {"job_id": self.id, "state": str(self.state), "account": self.account}
        times = {"created_at": iso_time(self.created_ms), "updated_at": iso_time(self.updated_ms)}
        return first | body | times


RELEASED: Mapping[str, Any] = {"owner": "", "progress": None, "waiting_for": None}
"""The changes to a job that its worker lets go of; ``waiting_for`` is set anew where it waits for something."""

MOVED_ON: Mapping[str, Any] = {
    **RELEASED,
    "attempts": 0,
    "outages": 0,
    "takeovers": 0,
    "error": None,
}
"""The changes to a job that goes on to its next step: what counted tries at the last one starts anew."""

FOUND: Mapping[str, Any] = {"looks": 0, "candidates": [], "aside": {}, "adopting": None}
"""The changes to a job whose training is not searched for any more."""

UNSENT: Mapping[str, Any] = {**FOUND, "intent_ms": None}
"""The changes to a job whose submit did not happen, so that it may be sent. ``ruled_out`` is kept."""

_INTERNAL = {
    *("id", "version", "event_seq", "digest", "owner", "created_ms", "entered_ms", "updated_ms", "intent_ms", "looks"),
    *("wants_details", "submitted_ms", "candidates", "ruled_out", "deployed", "weights_private", "takeovers"),
    *("access_settles_ms", "adopting", "aside", "outages"),
}
_MOST_EVIDENCE = 20
_JSON_FIELDS = frozenset(
    {
        *("request", "progress", "error", "dataset_report", "evidence", "weights", "candidates", "ruled_out", "aside"),
        "access",
    }
)


def encode_field(value: object) -> str:
    """Return the text that the job's hash holds for ``value``."""
    match value:
        case bool():
            return "1" if value else "0"
        case BaseModel():
            return value.model_dump_json(exclude_none=True)  # None is the default of each field that may be None
        case dict() | list():
            return json.dumps(value, separators=(",", ":"))
        case _:
            return str(value)


def _decode(name: str, value: str) -> Any:
    try:
        return json.loads(value) if name in _JSON_FIELDS else value
    except ValueError:
        return value  # which the model refuses, as it does all that only a newer version can read


def iso_time(milliseconds: int) -> str:
    """Return a time of the Redis server's clock as ISO 8601 in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
