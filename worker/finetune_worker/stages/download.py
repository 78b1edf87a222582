"""Download: the weights come in with resume, are verified, and only then appear among the artifacts."""

from dataclasses import replace
from pathlib import Path

import structlog

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.contract.job import Weights
from finetune_queue.storage import StorageError
from finetune_queue.store import TRANSFERRED_BYTES, CallClass
from finetune_worker.container import Container
from finetune_worker.stages.calls import ask
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.errors import from_transfer
from finetune_worker.stages.outcome import Done, Outcome, Retry, Wait, after_storage, after_transfer
from finetune_worker.stages.publish import manifest_name
from finetune_worker.stages.shares import transfer_share
from finetune_worker.transfer.download import download as fetch
from finetune_worker.transfer.errors import NeedNewUrl, PartBusy, Refused, SafetensorsError, TransferError
from finetune_worker.transfer.partfile import discard
from finetune_worker.transfer.safetensors import verify_safetensors

log = structlog.get_logger(__name__)

_BY_URL = {"weights_private": False}
"""The fields of a job whose next try uses the weights' own URL again, after Segmind gave no link, or one that leads
nowhere: the weights may be public, which have no link, and their URL was refused by mistake."""


def download(container: Container, claim: Claim) -> Outcome:
    """Fetch, verify and store the job's weights."""
    job = claim.job
    if job.weights is not None:
        return _done(job, job.weights)
    with transfer_share(container, claim, CallClass.FINISH):
        url = job.weights_url or ""
        if job.weights_private:
            # Asked for with the share in hand. The link is not kept: if the job had to wait for a share after it had
            # the link, it would have to ask for one again, which takes another call.
            what = "ask for a link to the private weights"
            link = ask(container, claim, CallClass.FINISH, what, lambda client: client.private_link(url))
            if isinstance(link, Wait):
                return link
            if not isinstance(link, str):
                return replace(link, fields=_BY_URL)
            url = link
            claim.hold(container.settings.finetune_lease)  # the call may have used up nearly all of its own hold
        try:
            return _fetch(container, claim, url, container.work_folder.part_of(job.id))
        except PartBusy:
            # A worker that was overtaken still has the part open, and may stand still for long. Resuming has to wait
            # for it; a download into another file has not.
            log.warning("part_busy", job_id=job.id)
            with container.work_folder.scratch() as scratch:
                beside = Path(scratch) / container.work_folder.part_of(job.id).name
                return _fetch(container, claim, url, beside, kept=False)


def _fetch(container: Container, claim: Claim, url: str, part: Path, *, kept: bool = True) -> Outcome:
    """Fetch and store the weights; ``kept`` says that the next try finds what came in ``part``."""
    job = claim.job
    try:
        got = fetch(
            url,
            part,
            limits=container.transfer_limits,
            on_progress=claim.progress,
            allow_loopback=container.settings.segmind_is_loopback,
        )
        tensors = verify_safetensors(part)
    except PartBusy:
        raise
    except (NeedNewUrl, Refused) as error:
        if isinstance(error, NeedNewUrl) and not job.weights_private:
            sentence = f"parked: {error.detail} Next: ask for a link"
            return Wait(sentence, WaitReason.BACKOFF, 0.0, fields={"weights_private": True})
        return replace(after_transfer(error, Stage.DOWNLOAD), fields=_BY_URL)
    except SafetensorsError as error:
        # What came is whole and still no weights: perhaps Segmind replaces it, so it is fetched anew.
        discard(part)
        return Retry(from_transfer(error, Stage.DOWNLOAD))
    except TransferError as error:
        error.gained &= kept
        if error.code == "disk_full" and job.outages + 1 >= container.settings.finetune_max_attempts:
            discard(part)  # else two jobs may wait for ever, each for the room that the other's part takes
        return after_transfer(error, Stage.DOWNLOAD)
    name = f"{job.id}/weights.safetensors"
    try:
        _store(container, claim, part, name)
    except StorageError as error:
        return after_storage(error, Stage.DOWNLOAD)
    discard(part)
    weights = Weights(
        url=container.artifacts.url_of(name),
        manifest_url=container.artifacts.url_of(manifest_name(job.id)),
        bytes=got.size,
        sha256=got.sha256,
        tensors=tensors,
    )
    container.counters.add(TRANSFERRED_BYTES, "download", by=got.size)
    log.info("weights_stored", bytes=got.size, sha256=got.sha256, checked_by=got.checked)
    return _done(claim.job, weights)


def _done(job: JobRecord, weights: Weights) -> Done:
    sentence = f"downloaded and verified: {weights.bytes:,} bytes, sha256 {weights.sha256[:12]}…"
    to = JobState.DEPLOYING if job.request.wait_for == "available" else None
    return Done(sentence, to=to, fields={"weights": weights})


def _store(container: Container, claim: Claim, part: Path, name: str) -> None:
    def on_progress(done: int, total: int | None) -> None:
        claim.progress(done, total)
        if done == total:
            # All parts are sent: the bucket still has to join them, and to answer how long the object is.
            claim.hold(container.store_silence)

    claim.hold(container.store_silence)
    container.artifacts.put_file(part, name, on_progress=on_progress)
