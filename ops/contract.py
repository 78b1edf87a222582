"""Write the published contract from the models: JSON Schemas, examples and the AsyncAPI document.

    python -m ops.contract [--check]

With `--check` it writes nothing and says which file differs.
"""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from ops.asyncapi import asyncapi
from ops.generated import ROOT, main
from pydantic import BaseModel

from finetune_queue.contract import Event, EventType, FineTuneRequest, JobRecord, JobState, parse_request
from finetune_queue.contract.event import SCHEMA, SOURCE, data_schema, job_event, rejected_event, type_name
from finetune_queue.contract.job import Access, JobError, Stage, Visibility, WaitReason, Weights
from finetune_queue.contract.views import EVENT_DATA, PublicJob

FOLDER = ROOT / "docs" / "contract"
VERSION = "1.0.0"
"""Of the contract, not of the program: the first number is the `.v1` of the event types."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
JOB_ID = "0197f0a2-7a3c-7c41-9d5e-3b7f6a1c2e90"
START = datetime(2026, 11, 2, 9, 30, tzinfo=UTC)


def schema_of(model: type[BaseModel], name: str) -> dict[str, Any]:
    """Return a model's schema under a name of its own."""
    made = model.model_json_schema(mode="serialization" if model is PublicJob else "validation")
    return {"$schema": DIALECT, "$id": f"urn:finetune-queue:v1:{name}", **made}


def event_schema() -> dict[str, Any]:
    """Return the schema of all events: the envelope, and for each type its data."""
    envelope = Event.model_json_schema()
    definitions: dict[str, Any] = {}
    cases = []
    for kind in EventType:
        model = EVENT_DATA[kind]
        data = model.model_json_schema()
        definitions |= data.pop("$defs", {})
        definitions[model.__name__] = data
        cases.append(
            {
                "title": kind.value,
                "properties": {
                    "type": {"const": type_name(kind)},
                    "dataschema": {"const": data_schema(kind)},
                    "data": {"$ref": f"#/$defs/{model.__name__}"},
                },
            }
        )
    properties = envelope["properties"]
    properties["source"] = {"const": SOURCE}
    properties["type"] = {"enum": [type_name(kind) for kind in EventType]}
    properties["sequence"] = {"type": "string", "pattern": "^[0-9]{10}$"}
    properties["dataschema"] = {
        "type": "string",
        "format": "uri",
        "description": "The schema of `data`, by its place in this document. Events of the first workers lack it.",
    }
    properties["traceparent"] = {
        "type": "string",
        "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "description": "The job's trace (W3C Trace Context), if it is traced.",
    }
    return {
        "$schema": DIALECT,
        "$id": SCHEMA,
        "title": "Event",
        "description": "A CloudEvents 1.0 event in structured JSON. Treat unknown types and fields as additions.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "sequence", "data"],
        "properties": properties,
        "oneOf": cases,
        "$defs": definitions,
    }


def requests() -> dict[str, dict[str, Any]]:
    """Return requests: the least that is accepted, and one with everything."""
    least = {
        "name": "my-face",
        "instance_prompt": "photo of 1MAN",
        "trigger_word": "1MAN",
        "dataset": "https://example.com/faces.zip",
    }
    most = {
        **least,
        "base_model": "FAST_FLUX",
        "theme": "subject",
        "segmind_public": False,
        "advance_parameters": {"steps": 1500, "face_crop": True, "finetune_type": "LORA"},
        "fetch_dataset": False,
        "account": "default",
        "priority": 7,
        "labels": {"order": "A-1001", "team": "faces"},
        "reply_to": ["celery://orders/orders.finetuned?events=succeeded,failed", "stream://finetune-results"],
        "wait_for": "trained",
        "idempotency_key": "order-A-1001",
        "deadline": "2026-11-03T12:00:00Z",
    }
    return {"minimal": least, "full": most}


def jobs() -> dict[EventType, JobRecord]:
    """Return a job as it is after each kind of event."""
    request = parse_request(requests()["full"])
    accepted = JobRecord(
        id=JOB_ID,
        state=JobState.ACCEPTED,
        request=request,
        created_ms=_ms(0),
        updated_ms=_ms(0),
    )
    report = {"ok": True, "images": 12, "captions": 12, "bytes": 4_812_093, "findings": []}
    weights = Weights(
        url=f"s3://my-bucket/artifacts/{JOB_ID}/weights.safetensors",
        manifest_url=f"s3://my-bucket/artifacts/{JOB_ID}/manifest.json",
        bytes=171_969_408,
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        tensors=494,
    )
    broken = JobError(
        code="forbidden",
        stage="download",
        message="The API key may not do this: check the key, the account's plan and who owns the fine-tune.",
        action="Once the cause is fixed: `finetune retry JOB`.",
        upstream_status=403,
    )
    submitting = {"state": JobState.SUBMITTING, "dataset_report": report}
    training = {**submitting, "state": JobState.TRAINING, "finetune_id": "ft_8d2c41", "provider_status": "REQUESTED"}
    trained = {**training, "provider_status": "TRAINING_COMPLETED", "slug": "my-face-4f2a91c0"}
    after: dict[EventType, dict[str, Any]] = {
        EventType.ACCEPTED: {},
        EventType.UPLOADING: {"state": JobState.UPLOADING},
        EventType.SUBMITTING: submitting,
        EventType.NEEDS_ATTENTION: {
            **submitting,
            "state": JobState.NEEDS_ATTENTION,
            "evidence": [
                "The connection was reset after the request had been sent.",
                "3 lists do not show the training.",
            ],
        },
        EventType.TRAINING: training,
        EventType.PROGRESS: {**training, "provider_status": "TRAINING", "waiting_for": WaitReason.PROVIDER},
        EventType.DOWNLOADING: {**trained, "state": JobState.DOWNLOADING},
        EventType.DEPLOYING: {**trained, "state": JobState.DEPLOYING, "weights": weights},
        EventType.SUCCEEDED: {**trained, "state": JobState.SUCCEEDED, "weights": weights},
        EventType.FAILED: {**trained, "state": JobState.FAILED, "error": broken, "failed_stage": Stage.DOWNLOAD},
        EventType.CANCELLED: {**training, "state": JobState.CANCELLED},
        EventType.ACCESS: {
            **trained,
            "state": JobState.SUCCEEDED,
            "weights": weights,
            "access": Access(confirmed=Visibility.PRIVATE),
        },
    }
    return {
        kind: accepted.model_copy(update={**fields, "event_seq": number, "updated_ms": _ms(number)})
        for number, (kind, fields) in enumerate(after.items(), 1)
    }


def events() -> dict[EventType, dict[str, Any]]:
    """Return an event of each kind."""
    found = {}
    previous: JobState | None = None
    branches = {
        EventType.FAILED: JobState.DOWNLOADING,
        EventType.CANCELLED: JobState.TRAINING,
        EventType.ACCESS: JobState.SUCCEEDED,
    }
    for kind, job in jobs().items():
        event = job_event(job, kind, branches.get(kind, previous))
        found[kind] = event.model_copy(update={"time": START + timedelta(minutes=job.event_seq)})
        previous = job.state
    found[EventType.REJECTED] = rejected_event(
        "5a1f0f4e-60b5-4d39-8f0f-0a3c2a4b9d11", "the message cannot become a job", ["dataset: is required"]
    ).model_copy(update={"time": START})
    return {kind: event.model_dump(mode="json") for kind, event in found.items()}


def _ms(minutes: int) -> int:
    return int((START + timedelta(minutes=minutes)).timestamp() * 1000)


class _Plain(yaml.SafeDumper):
    """YAML without anchors, which some readers do not know."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base's signature
        return True


# 0000000009 is a number to a reader of YAML 1.2 and none to one of 1.1, as PyYAML is: quoted, it is a text to both.
_Plain.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[0-9]+$"), list("0123456789"))


def wanted() -> dict[Path, str]:
    """Return what each generated file should hold."""
    documents: dict[str, Any] = {
        "request.schema.json": schema_of(FineTuneRequest, "request"),
        "event.schema.json": event_schema(),
        "job.schema.json": schema_of(PublicJob, "job"),
    }
    for name, request in requests().items():
        documents[f"examples/request.{name}.json"] = request
    for kind, event in events().items():
        documents[f"examples/event.{kind}.json"] = event
    documents["examples/job.succeeded.json"] = jobs()[EventType.SUCCEEDED].public()
    files = {name: json.dumps(body, indent=2, ensure_ascii=False) + "\n" for name, body in documents.items()}
    document = asyncapi(requests()["minimal"], events(), VERSION)
    head = "# Generated by ops/contract.py from the models.\n"
    files["asyncapi.yaml"] = head + yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return {FOLDER / name: text for name, text in files.items()}


if __name__ == "__main__":
    sys.exit(main(wanted()))
