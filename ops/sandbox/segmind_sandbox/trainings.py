"""Trainings: what a submit starts, and how it moves through the documented statuses.

A job's status follows from a clock when it is read, so ten thousand jobs cost nothing while nobody looks. One
scheduler task calls ``on_status`` when a job reaches a status that webhooks tell of.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from segmind_sandbox.faults import AnyFault, FailDeploy, FailTraining, Hidden, Hold, ListLag, UnknownStatus
from segmind_sandbox.models import Submit

STATUSES = (
    "REQUESTED",
    "DATA_PROCESSING",
    "TRAINING_INITIATED",
    "TRAINING_COMPLETED",
    "INFERENCE_QUEUED",
    "DEPLOYING",
    "AVAILABLE",
)
FAILED = "FAILED"
_PROCESSING, _INITIATED, _COMPLETED, _DEPLOYING = 1, 2, 3, 5
NOTIFIED = (3, 4, 6)  # TRAINING_COMPLETED, INFERENCE_QUEUED, AVAILABLE (Fast Flux API, Webhooks)
_BUCKET = "segmind-finetune-sandbox"


@dataclass(slots=True, eq=False)
class Training:
    """One job. Times are seconds of the book's monotonic clock."""

    account: str
    request: Submit
    base_url: str
    created: float
    training_seconds: float
    deploy_seconds: float
    weights_bytes: int
    list_url: bool  # list shows the weights' URL, too
    private_weights: bool  # they need a signed link
    visible_at: float  # from when on list shows the job
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    finetune_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    model_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    origin: float = 0.0  # what its statuses are timed from: `created`, moved by a hold, a slow dataset or `finish`
    dataset_read: bool = False
    public: bool = False
    hidden: bool = False  # list never shows it
    held_at: float | None = None  # since when its clock stands still; None: it runs
    hold_in_training: bool = False  # it stays in TRAINING_INITIATED
    word: str | None = None  # shown in place of TRAINING_INITIATED
    fails_with: str | None = None  # the error that it will fail with
    error_message: str | None = None  # the error that it has failed with
    failed_at: float | None = None
    undeployed: FailDeploy | None = None  # it is never deployed
    weights_version: int = 0
    told: set[int] = field(default_factory=set)  # indices of the statuses that the webhook was told of
    _item: tuple[object, str] | None = None  # what `list_item` gave last, and what that depends on

    def __post_init__(self) -> None:
        self.origin = self.created
        self.public = self.request.segmind_public

    @property
    def slug(self) -> str:
        """The deployed model's name in inference URLs."""
        words = "".join(char if char.isascii() and char.isalnum() else "-" for char in self.request.name.lower())
        return f"{words}-{self.model_id[:8]}"

    @property
    def weights_url(self) -> str:
        """Where the weights lie once the training is completed."""
        return f"{self.base_url}/gcs/{_BUCKET}/{self.model_id}.safetensors"

    @property
    def inference_url(self) -> str:
        """Where the deployed model would answer."""
        return f"{self.base_url}/v1/{self.slug}"

    def milestone(self, index: int) -> float:
        """Seconds from the origin at which the status of that index is reached."""
        training, deploy = self.training_seconds, self.deploy_seconds
        return (0.0, 0.05 * training, 0.2 * training, training,
                training + 0.2 * deploy, training + 0.5 * deploy, training + deploy)[index]  # fmt: skip

    def elapsed(self, now: float) -> float:
        """Seconds since the origin, by the job's own clock: a hold stops it."""
        return (now if self.held_at is None else self.held_at) - self.origin

    @property
    def last(self) -> int:
        """The index of the last status that the job can reach."""
        return len(STATUSES) - 1 if self.undeployed is None else _DEPLOYING

    def stage(self, now: float) -> int:
        """The index of the status in STATUSES, failures aside."""
        elapsed = self.elapsed(now)
        last = self.last
        if not self.dataset_read:
            last = _PROCESSING
        elif self.hold_in_training:
            last = _INITIATED
        return next((index for index in range(last, 0, -1) if elapsed >= self.milestone(index)), 0)

    def status(self, now: float) -> str:
        """What the API says now; notices a planned failure whose time has come."""
        if self.error_message is not None:
            return FAILED
        stage = self.stage(now)
        fails_after = 0.6 * self.training_seconds
        if self.fails_with is not None and stage >= _INITIATED and self.elapsed(now) >= fails_after:
            self.fail(self.fails_with, self.origin + fails_after)
            return FAILED
        if self.word is not None and stage == _INITIATED:
            return self.word
        if self.undeployed is not None and stage == _DEPLOYING:
            return self.undeployed.word
        return STATUSES[stage]

    def said(self, now: float) -> str | None:
        """The ``error_message`` that belongs to the status."""
        if self.undeployed is not None and self.status(now) == self.undeployed.word:
            return self.undeployed.message
        return self.error_message

    def fail(self, message: str, at: float) -> None:
        """Let the job be failed from then on, with this error in place of an earlier one."""
        self.error_message = message
        self.failed_at = at if self.failed_at is None else self.failed_at

    def has_weights(self, now: float) -> bool:
        """Whether the weights can be downloaded."""
        self.status(now)  # notices a failure
        return self.error_message is None and self.stage(now) >= _COMPLETED

    def dataset_was_read(self, now: float) -> None:
        """Let the job go on; if its data took longer than planned, everything after it moves."""
        if self.dataset_read:  # by finish
            return
        self.dataset_read = True
        self.origin += max(0.0, self.elapsed(now) - self.milestone(_INITIATED))

    def hold(self, now: float) -> None:
        """Stop the job's clock."""
        self.held_at = now if self.held_at is None else self.held_at

    def release(self, now: float) -> None:
        """Let a held job go on from where it was."""
        if self.hold_in_training:
            self.hold_in_training = False
            self.origin = max(self.origin, now - self.training_seconds)
        if self.held_at is not None:
            self.origin += now - self.held_at
            self.held_at = None

    def finish(self, now: float) -> None:
        """Move the job to AVAILABLE at once, unless it has failed."""
        self.held_at, self.hold_in_training, self.dataset_read = None, False, True
        self.fails_with, self.undeployed = None, None
        self.origin = now - self.milestone(len(STATUSES) - 1)

    def apply(self, fate: AnyFault) -> None:
        """Take on what a fault decided for this job at its submit."""
        match fate:
            case FailTraining():
                self.fails_with = fate.message
            case FailDeploy():
                self.undeployed = fate
            case UnknownStatus():
                self.word = fate.word
            case ListLag():
                self.visible_at = self.created + fate.seconds
            case Hidden():
                self.hidden = True
            case Hold():
                self.hold_in_training = True
            case _:
                raise TypeError(f"{fate.kind} is no fate of a training")

    def updated_at(self, now: float) -> datetime:
        """When the present status began."""
        since = self.origin + self.milestone(self.stage(now)) if self.failed_at is None else self.failed_at
        return self.created_at + timedelta(seconds=since - self.created)

    def details(self, now: float) -> dict[str, Any]:
        """The object under "finetune" (Fast Flux API, section 2)."""
        return {
            "id": self.id,
            "finetune_id": self.finetune_id,
            "name": self.request.name,
            "data_source_path": self.request.data_source_path,
            "instance_prompt": self.request.instance_prompt,
            "status": self.status(now),
            "source_type": "AWS_S3",
            "base_model": self.request.base_model,
            "slug": self.slug,
            "public_model": self.public,
            "error_message": self.said(now),
            "cloud_storage_url": self.weights_url if self.has_weights(now) else None,
            "created_ts": _timestamp(self.created_at),
            "updated_ts": _timestamp(self.updated_at(now)),
        }

    def list_item(self, now: float) -> str:
        """One element of the list (section 3) as JSON; kept until something in it changes."""
        status = self.status(now)
        carries = self.list_url and self.has_weights(now)
        state = (status, self.public, self.said(now), carries)
        if self._item is None or self._item[0] != state:
            item = {
                "id": self.id,
                "data_source_path": self.request.data_source_path,
                "name": self.request.name,
                "status": status,
                "error_message": self.said(now),
                "segmind_model_path": None,
                "advance_parameters": self.request.parameters(),
                "segmind_public_model": self.public,
                "train_type": "LORA",
                "source_type": "AWS_S3",
                "base_model": self.request.base_model,
                "theme": self.request.theme,
                "cloud_storage_url": self.weights_url if carries else None,
                "finetune_id": self.finetune_id,
                "model_information": {},
            }
            self._item = (state, json.dumps(item))
        return self._item[1]


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class TrainingBook:
    """All jobs of all accounts."""

    def __init__(self, clock: Callable[[], float], on_status: Callable[[Training, str], None]) -> None:
        self._clock = clock
        self._on_status = on_status
        self._by_finetune_id: dict[str, Training] = {}
        self._by_model_id: dict[str, Training] = {}
        self._by_account: dict[str, list[Training]] = {}
        self._due: list[tuple[float, int, Training, int]] = []
        self._numbers = itertools.count()
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Training]:
        return iter(self._by_finetune_id.values())

    def add(self, training: Training) -> None:
        """Take in a new job."""
        self._by_finetune_id[training.finetune_id] = training
        self._by_model_id[training.model_id] = training
        self._by_account.setdefault(training.account, []).append(training)

    def get(self, finetune_id: str, account: str | None = None) -> Training | None:
        """The job with that finetune_id, if it is of that account (or of any)."""
        training = self._by_finetune_id.get(finetune_id)
        return training if training is not None and account in {None, training.account} else None

    def of_model(self, model_id: str) -> Training | None:
        """The job that made these weights."""
        return self._by_model_id.get(model_id)

    def of_account(self, account: str) -> list[Training]:
        """An account's jobs, oldest first."""
        return self._by_account.get(account, [])

    def listed(self, account: str, now: float) -> list[Training]:
        """The jobs that list shows, newest first."""
        return [job for job in reversed(self.of_account(account)) if not job.hidden and now >= job.visible_at]

    def clear(self) -> None:
        """Forget all jobs."""
        self._by_finetune_id.clear()
        self._by_model_id.clear()
        self._by_account.clear()
        self._due.clear()

    def schedule(self, training: Training) -> None:
        """Tell of the job's statuses as it reaches them; to be called again when its times have moved."""
        for stage in NOTIFIED:
            if stage not in training.told:
                self._push(training, stage)
        self._changed.set()

    def _push(self, training: Training, stage: int) -> None:
        heapq.heappush(self._due, (training.origin + training.milestone(stage), next(self._numbers), training, stage))

    async def run(self) -> None:
        """Tell of statuses as they are reached, until cancelled."""
        while True:
            self._changed.clear()
            wait = self._due[0][0] - self._clock() if self._due else None
            if wait is None or wait > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                continue
            _, _, training, stage = heapq.heappop(self._due)
            self._reach(training, stage)

    def _reach(self, training: Training, stage: int) -> None:
        now = self._clock()
        held = training.held_at is not None or training.hold_in_training
        if stage in training.told or stage > training.last or held or training.status(now) == FAILED:
            return
        if training.stage(now) >= stage:
            training.told.add(stage)
            self._on_status(training, STATUSES[stage])
        elif training.dataset_read:  # until then its times stand still: it would be due again at once, for ever
            self._push(training, stage)
