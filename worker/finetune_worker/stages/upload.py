"""Upload: the dataset is checked before it costs money, and put where Segmind reads it (Fast Flux API, section 4)."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from finetune_queue.contract import JobError, JobState, Stage
from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.report import DatasetReport
from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.sources import PublicArchive, resolve_dataset
from finetune_queue.store import TRANSFERRED_BYTES, CallClass
from finetune_worker.container import Container
from finetune_worker.segmind.models import PresignedUpload
from finetune_worker.stages.calls import ask, longest_call
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.errors import from_dataset, from_transfer
from finetune_worker.stages.outcome import Done, Fail, Outcome, Retry, after_error, after_transfer
from finetune_worker.stages.shares import transfer_share
from finetune_worker.stages.whose import upload_name
from finetune_worker.transfer.errors import NeedNewUrl, TransferError
from finetune_worker.transfer.put import upload_presigned

log = structlog.get_logger(__name__)

URL_MARGIN = timedelta(seconds=60)
"""How long a presigned URL must still be valid to be worth an upload."""

KEPT_AT_LEAST = timedelta(minutes=5)
"""How long to keep a presigned URL that does not say when it ends, or that ends sooner, perhaps by this machine's wrong
clock. One that the storage refuses is dropped."""


def upload(container: Container, claim: Claim) -> Outcome:
    """Check the job's dataset and make it readable for Segmind."""
    if claim.job.dataset_url is not None:
        return Done("the dataset was already in place", to=JobState.SUBMITTING)
    container.segmind(claim.job.account)  # without its key, nobody's host is asked for anything
    refusal = next(filter(None, map(container.sinks.refusal, claim.job.request.sinks)), None)
    if refusal is not None:
        return Fail(_unreachable_sink(refusal))
    upload_to = None
    if claim.job.dataset_report is not None:
        # Checked before, so the URL is all that it lacks. It is asked for before a share of the transfers is taken: the
        # job may have been given a call slot, which would lapse while it waits for the share.
        found = _upload_url(container, claim)
        if not isinstance(found, PresignedUpload):
            return found
        upload_to = found
    with (
        transfer_share(container, claim, CallClass.PREPARE),
        container.work_folder.scratch() as scratch,
    ):
        try:
            return _prepare(container, claim, Path(scratch), upload_to)
        except DatasetError as error:
            return after_error(from_dataset(error, Stage.UPLOAD))


def presign(container: Container, claim: Claim) -> Outcome:
    """Ask for the upload URL of a job that was given a call slot for it; its upload has a message of its own."""
    found = _upload_url(container, claim)
    if not isinstance(found, PresignedUpload):
        return found
    # To have the URL is no step further: what is counted of uploads that failed stays. Outages are over with a call
    # that went well, and so is the error that the last of them left.
    job = claim.job
    as_before = {"attempts": job.attempts, "takeovers": job.takeovers, "error": None if job.outages else job.error}
    return Done("has its upload URL", fields=as_before)


def _unreachable_sink(refusal: str) -> JobError:
    """The error if a sink of the request cannot be served: its result would reach nobody, so no training is paid."""
    return JobError(
        code="reply_to_refused",
        stage=Stage.UPLOAD,
        message=f"The request's reply_to cannot be served: {refusal}",
        action="Name another sink and submit again, or ask whoever runs the service to allow this one.",
    )


def _prepare(container: Container, claim: Claim, scratch: Path, upload_to: PresignedUpload | None) -> Outcome:
    request, settings = claim.job.request, container.settings
    if not request.dataset.startswith(("/", "file:")):
        claim.hold(container.store_silence)
    found = resolve_dataset(
        request.dataset,
        roots=container.dataset_roots,
        buckets=[*settings.finetune_dataset_buckets, settings.finetune_staging_url],
        scratch=scratch,
        policy=AddressPolicy(
            only_hosts=frozenset(settings.finetune_dataset_hosts), allow_loopback=settings.segmind_is_loopback
        ),
        fetch_public=request.fetch_dataset,
        on_progress=claim.progress,
    )
    if isinstance(found, PublicArchive):
        return Done(
            f"Segmind reads the public dataset itself ({found.size:,} bytes)",
            to=JobState.SUBMITTING,
            fields={"dataset_url": found.url},
        )
    report = _checked(claim, found.path, hold=longest_call(container))
    if not report.ok:
        return Fail(_rejected(report))
    target = upload_to or _upload_url(container, claim)
    if not isinstance(target, PresignedUpload):
        return target
    return _put(container, claim, found.path, target, report)


def _put(container: Container, claim: Claim, path: Path, upload_to: PresignedUpload, report: DatasetReport) -> Outcome:
    try:
        size = upload_presigned(
            upload_to,
            path,
            sha256=report.sha256,
            limits=container.transfer_limits,
            on_progress=claim.progress,
            allow_loopback=container.settings.segmind_is_loopback,
        )
    except NeedNewUrl as error:
        container.jobs.drop_upload_url(claim.job.id)
        # At once, as it may have ended while the job waited; a new one that is refused, too, needs somebody's help.
        return Retry(from_transfer(error, Stage.UPLOAD), after=None if claim.job.attempts else 0.0)
    except TransferError as error:
        return after_transfer(error, Stage.UPLOAD)
    container.jobs.drop_upload_url(claim.job.id)
    container.counters.add(TRANSFERRED_BYTES, "upload", by=size)
    return Done(
        f"uploaded {report.images} images ({size:,} bytes)",
        to=JobState.SUBMITTING,
        fields={"dataset_url": upload_to.s3_url},
    )


def _checked(claim: Claim, path: Path, *, hold: float) -> DatasetReport:
    """Return the report of the dataset's check: the stored one if the file is the same, else a new one. With a new one
    the job is held for ``hold`` seconds, for the API call that comes next."""
    request = claim.job.request
    if claim.job.dataset_report is not None:
        known = DatasetReport.model_validate(claim.job.dataset_report)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == known.sha256:
                return known
        log.warning("dataset_changed", was=known.sha256)
    report = check_archive(
        path,
        trigger_word=request.trigger_word,
        instance_prompt=request.instance_prompt,
        on_progress=claim.progress,
    )
    claim.write(dataset_report=report.model_dump(mode="json"), hold=hold)
    log.info("dataset_checked", ok=report.ok, images=report.images, bytes=report.bytes)
    return report


def _rejected(report: DatasetReport) -> JobError:
    errors = [finding for finding in report.findings if finding.severity == "error"]
    said = " ".join(f"{each.file}: {each.message}" if each.file else each.message for each in errors[:3])
    more = f" And {len(errors) - 3} more." if len(errors) > 3 else ""
    return JobError(
        code="dataset_rejected",
        stage=Stage.UPLOAD,
        message=f"The dataset cannot be trained on: {said}{more}",
        action=f"{errors[0].fix} `finetune dataset check` shows all findings. Then submit again, or "
        "`finetune retry JOB` if the corrected one has the same URL. Nothing was charged.",
    )


def _upload_url(container: Container, claim: Claim) -> PresignedUpload | Outcome:
    """Return where to put the job's dataset: the URL that is kept, or a new one, for a call; or the outcome by which
    the job waits for that call."""
    job, what = claim.job, "ask for an upload URL"
    kept = container.jobs.upload_url(job.id)
    if kept is not None:
        return PresignedUpload.model_validate_json(kept)
    # Named after the job: the mark by which a submit of unknown outcome is found again.
    name = upload_name(job)
    found = ask(container, claim, CallClass.PREPARE, what, lambda client: client.presign_upload(name))
    if not isinstance(found, PresignedUpload):
        return found
    secret = {"presigned_url": found.presigned_url.get_secret_value(), "s3_url": found.s3_url}
    container.jobs.save_upload_url(job.id, json.dumps(secret), _worth_keeping(found).total_seconds())
    return found


def _worth_keeping(upload_to: PresignedUpload) -> timedelta:
    ends, now = upload_to.expires_at, datetime.now(UTC)
    return KEPT_AT_LEAST if ends is None else max(ends - now - URL_MARGIN, KEPT_AT_LEAST)
