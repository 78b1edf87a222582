"""The published contract: schemas, examples and AsyncAPI agree with the models, each other and the standards."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]
from referencing import Registry

from contract.published import EXAMPLES, FOLDER, ROOT, load, validator
from finetune_queue.cli import words
from finetune_queue.contract import (
    EventType,
    JobRecord,
    JobState,
    RequestError,
    WaitReason,
    parse_request,
)
from finetune_queue.contract.event import SCHEMA, Event, job_event, type_name
from finetune_queue.contract.job import _INTERNAL, encode_field
from finetune_queue.contract.views import EVENT_DATA, PublicJob
from support.samples import sample, sample_request

LABELS = "a key should be letters, digits and . _ / -, beginning with a letter or digit, 63 at most"


def test_the_committed_files_are_what_the_models_say() -> None:
    command = [sys.executable, "-m", "ops.contract", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_each_example_is_valid(path: Path) -> None:
    example = json.loads(path.read_text("utf-8"))
    kind = path.name.partition(".")[0]
    validator(kind).validate(example)
    match kind:
        case "request":
            parse_request(example)
        case "event":
            event = Event.model_validate(example)
            assert event.kind == path.name.split(".")[1]
            EVENT_DATA[EventType(event.kind)].model_validate(event.data)
        case "job":
            PublicJob.model_validate(example)


@pytest.mark.parametrize("deadline", [5, 90.5, True, "90", "1767225600", " 5e9 ", [], "soon", "2026-11-03T12:00:00"])
def test_a_number_is_no_deadline_nor_a_time_without_a_zone(deadline: object) -> None:
    """A number would be taken for Unix time, so that a job for "90 minutes" fails at once."""
    with pytest.raises(RequestError, match="deadline: should be a time with a time zone, like 2026-01-31T18:00:00Z"):
        parse_request(sample(deadline=deadline))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "   ", "should not be empty"),
        ("name", 5, "should be a string"),
        ("name", "x" * 129, "should have at most 128 characters"),
        ("reply_to", "list://x", "should be a list"),
        ("labels", [], "should be an object"),
        ("labels", {"a b": "x", "a": "y", "-\x1b": "z"}, rf"{LABELS} (not 'a b', '-\x1b')"),
        ("labels", {str(number): "x" for number in range(100)}, "should have at most 32 entries"),
        ("name", "my\nface", "should hold no line breaks or other control characters"),
        ("name", "\u200b", "should hold a character that can be seen"),
        ("trigger_word", " \ufeff\u2060", "should hold a character that can be seen"),
        ("trigger_word", "1MAN\x1b[2J", "should hold no line breaks or other control characters"),
        ("advance_parameters", {"steps": 0}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"steps": -5}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"steps": 1500.5}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"steps": "1500"}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"steps": True}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"steps": None}, "steps should be a whole number, 1 or more"),
        ("advance_parameters", {"face_crop": "False"}, "face_crop should be true or false"),
        ("advance_parameters", {"finetune_type": 16}, 'finetune_type should be a text, like "LORA"'),
        ("advance_parameters", {"finetune_type": "lora"}, 'finetune_type should be "LORA" for FAST_FLUX'),
        ("instance_prompt", " \n\t", "should not be empty"),
        ("base_model", "fast_flux", "should be FAST_FLUX or FLUX_PRO"),
        ("base_model", "QWEN", "should be FAST_FLUX or FLUX_PRO"),
        ("base_model", "", "should be FAST_FLUX or FLUX_PRO"),
        ("advance_parameters", "{}", "should be an object"),
        ("priority", 1.5, "should be a whole number"),
        ("fetch_dataset", "x", "should be true or false"),
    ],
)
def test_what_is_wrong_is_said_without_python_s_words(field: str, value: object, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(sample(**{field: value}))
    assert caught.value.problems == [f"{field}: {said}"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "Gesicht für schöne 顔 ñ 😀"},
        {"advance_parameters": {}},
        {"advance_parameters": {"steps": 1, "lora_rank": 16, "of_tomorrow": ["x"]}},
        {"advance_parameters": {"steps": 2000.0}},
        {"advance_parameters": {"finetune_type": "full"}, "base_model": "FLUX_PRO"},
    ],
)
def test_what_the_api_may_mean_passes_as_it_is(fields: dict[str, Any]) -> None:
    assert validator("request").is_valid(sample(**fields))
    assert parse_request(sample(**fields)).model_dump().items() >= fields.items()


@pytest.mark.parametrize("levels", [101, 254])
def test_parameters_nested_deeper_than_can_be_written_are_refused(levels: int) -> None:
    """pydantic reads 255 levels, and raised an error of its own over the last of them when the job was stored."""
    nested = json.loads('{"a":' * 100 + "1" + "}" * 100)
    assert parse_request(sample(advance_parameters=nested)).model_dump_json()
    deeper = json.loads('{"a":' * levels + "1" + "}" * levels)
    with pytest.raises(RequestError, match="should not be nested more than 100 levels deep"):
        parse_request(sample(advance_parameters=deeper))
    stored = {"state": "training", "request": json.dumps(sample(advance_parameters=deeper))}
    assert JobRecord.from_hash("j", stored).request.advance_parameters == deeper


@pytest.mark.parametrize("name", ["   ", "\u00a0", "\u200b", "a\nb"])
def test_a_name_that_nobody_can_read_is_refused_by_the_schema_too(name: str) -> None:
    assert not validator("request").is_valid(sample(name=name))
    with pytest.raises(RequestError, match="name: "):
        parse_request(sample(name=name))


def test_a_job_that_was_accepted_before_a_check_was_made_is_read() -> None:
    fields = {"name": "my\nface", "advance_parameters": {"steps": "many"}, "instance_prompt": " ", "base_model": "FLUX"}
    stored = {"state": "training", "request": json.dumps(sample(**fields))}
    assert JobRecord.from_hash("j", stored).request.model_dump().items() >= fields.items()


def test_one_moment_in_two_time_zones_is_the_same_request() -> None:
    """Or the repeat of a key would conflict, and that of a batch would pay twice."""
    here, there = (sample_request(deadline=f"2026-11-03T{text}") for text in ("12:00:00Z", "14:00:00+02:00"))
    assert here.digest() == there.digest()


@pytest.mark.parametrize("deadline", ["9999-12-31T23:59:59-02:00", "0001-01-01T00:00:00+02:00"])
def test_a_deadline_that_is_no_time_in_utc_is_refused(deadline: str) -> None:
    with pytest.raises(RequestError, match="deadline: should be a time with a time zone"):
        parse_request(sample(deadline=deadline))


def test_a_deadline_that_has_passed_can_still_be_read() -> None:
    """A stored job is read long after its end."""
    request = sample_request(deadline="2026-01-31T18:00:00+01:00")
    assert parse_request(json.loads(request.model_dump_json())) == parse_request(request.model_dump()) == request


def test_there_is_an_example_of_every_kind_of_event() -> None:
    assert {path.name for path in EXAMPLES} >= {f"event.{kind}.json" for kind in EventType}


def test_every_reason_to_wait_is_given_and_put_into_words() -> None:
    said = [*(ROOT / "worker").rglob("*.py"), ROOT / "producers/finetune_queue/sdk/waiting.py"]
    worker = "".join(path.read_text("utf-8") for path in said)
    scripts = "".join(path.read_text("utf-8") for path in (ROOT / "producers").rglob("*.lua"))
    given = {
        reason
        for reason in WaitReason
        if re.search(rf"(?<!is )WaitReason\.{reason.name}[,)]", worker) or f"'{reason}'" in scripts
    }
    page = (ROOT / "producers/finetune_queue/gateway/page/board.js").read_text("utf-8")
    block = page.partition("const REASONS = {")[2].partition("};")[0]
    on_page = {line.split(":")[0].strip(' "') for line in block.strip().splitlines()}
    assert set(WaitReason) == given == on_page == set(words._REASONS)


def test_an_event_without_what_its_type_promises_is_not_valid() -> None:
    check = validator("event")
    for kind, missing in [("succeeded", "weights"), ("failed", "error"), ("needs_attention", "evidence")]:
        example = load(f"examples/event.{kind}.json")
        del example["data"][missing]
        assert not check.is_valid(example)
    for field in ("id", "sequence", "subject", "data"):
        example = load("examples/event.accepted.json")
        del example[field]
        assert not check.is_valid(example)
    wrong = load("examples/event.accepted.json") | {"type": type_name(EventType.SUCCEEDED)}
    assert not check.is_valid(wrong)


def test_consumers_are_told_to_expect_more_fields() -> None:
    example = load("examples/event.succeeded.json")
    example |= {"severity": "low", "data": example["data"] | {"added_later": 1}}
    validator("event").validate(example)


@pytest.mark.parametrize("kind", EventType)
def test_the_data_is_what_its_schema_says(kind: EventType) -> None:
    example = load(f"examples/event.{kind}.json")
    published = Registry().with_contents([(SCHEMA, load("event.schema.json"))])
    check = Draft202012Validator({"$ref": example["dataschema"]}, registry=published)
    check.validate(example["data"])
    assert not check.is_valid({})


def test_an_event_from_before_it_named_its_schema_stays_as_it_was() -> None:
    example = load("examples/event.succeeded.json")
    del example["dataschema"]
    validator("event").validate(example)
    assert Event.model_validate(example).model_dump(mode="json") == example


def test_a_traced_job_is_in_line_with_the_contract() -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    request = parse_request(load("examples/request.minimal.json"))
    job = JobRecord(id="x", state=JobState.ACCEPTED, request=request, traceparent=traceparent)
    text = job_event(job, EventType.ACCEPTED, None).model_dump_json()
    validator("event").validate(json.loads(text))
    event = from_http(HTTPMessage({"content-type": "application/cloudevents+json"}, text.encode()), JSONFormat())
    assert event.get_extension("traceparent") == traceparent
    validator("job").validate(job.public())
    assert job.public()["traceparent"] == traceparent


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.name.startswith("event.")], ids=lambda p: p.stem)
def test_events_are_cloudevents(path: Path) -> None:
    text = path.read_bytes()
    body = json.loads(text)
    event = from_http(
        HTTPMessage(headers={"content-type": "application/cloudevents+json; charset=utf-8"}, body=text), JSONFormat()
    )
    assert (event.get_id(), event.get_type(), event.get_subject()) == (body["id"], body["type"], body["subject"])
    assert (event.get_specversion(), event.get_source()) == ("1.0", "/finetune-queue")
    assert event.get_extension("sequence") == body["sequence"]
    assert event.get_data() == body["data"]
    assert event.get_dataschema() == body["dataschema"]
    assert event.get_time() is not None


REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.one_of(st.text(max_size=130), st.integers()),
        "priority": st.one_of(st.integers(-2, 12), st.none(), st.just("7")),
        "account": st.sampled_from(["default", "", "a b", "x" * 64]),
        "labels": st.dictionaries(st.sampled_from(["a", "a/b", " "]), st.text(max_size=3), max_size=3),
        "wait_for": st.sampled_from(["trained", "available", "never"]),
        "reply_to": st.lists(st.sampled_from(["list://a", "stream://b"]), max_size=10),
        "deadline": st.sampled_from(["2026-11-03T12:00:00Z", "2026-11-03T12:00:00", "soon"]),
        "datset": st.just("x"),
        "idempotency_key": st.one_of(st.none(), st.text(max_size=2)),
    },
)


@given(REQUESTS)
def test_what_is_accepted_is_valid_by_the_schema(fields: dict[str, Any]) -> None:
    """The schema may not refuse what the service takes, apart from texts that it reads as numbers."""
    body = sample(**fields)
    try:
        parse_request(body)
    except RequestError:
        return
    errors = [error for error in validator("request").iter_errors(body) if not _read_as_number(error)]
    assert errors == []


@given(REQUESTS)
def test_a_stored_request_is_known_again(fields: dict[str, Any]) -> None:
    """By its digest an idempotency key tells the same request from another."""
    try:
        request = parse_request(sample(**fields))
    except RequestError:
        return
    stored = JobRecord.from_hash("j", {"state": "accepted", "request": encode_field(request)})
    assert stored.request == request
    assert stored.request.digest() == request.digest()


def _read_as_number(error: ValidationError) -> bool:
    return error.validator == "type" and isinstance(error.instance, str)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"datset": "x"}, {"priority": 10}, {"name": ""}, {"wait_for": "never"}, {"reply_to": ["list://x"] * 9}),
        *({"name": "my\nface"}, {"labels": {"a b": "x"}}, {"instance_prompt": "  "}),
        *({"advance_parameters": wrong} for wrong in ({"steps": 0}, {"steps": "5"}, {"face_crop": 1})),
        {"advance_parameters": {"finetune_type": "lora"}},
        {"base_model": "QWEN"},
    ],
)
def test_what_the_schema_refuses_is_refused(wrong: dict[str, Any]) -> None:
    body = sample(**wrong)
    assert not validator("request").is_valid(body)
    with pytest.raises(RequestError):
        parse_request(body)


def test_the_public_job_is_the_record_without_bookkeeping() -> None:
    added = {"job_id", "account", "created_at", "updated_at"}
    assert set(PublicJob.model_fields) - added == set(JobRecord.model_fields) - _INTERNAL
    job = JobRecord(id="j", state=JobState.ACCEPTED, request=sample_request())
    validator("job").validate(job.public())


def test_a_signed_link_is_shown_without_its_signature() -> None:
    link = "https://h.example/d.zip?dl=1&X-Amz-Signature=a1b2c3d4e5f6"
    job = JobRecord(
        id="j",
        state=JobState.TRAINING,
        request=sample_request(dataset=link),
        dataset_url=link,
        weights_url=link,
    ).public()
    shown = "https://h.example/d.zip?dl=1&X-Amz-Signature=[redacted]"
    assert [job["request"]["dataset"], job["dataset_url"], job["weights_url"]] == [shown] * 3


def _refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from _refs(value)
    elif isinstance(node, list):
        for item in node:
            yield from _refs(item)


def test_asyncapi_is_whole() -> None:
    text = (FOLDER / "asyncapi.yaml").read_text("utf-8")
    assert not re.search(r": 0[0-9]+$", text, re.MULTILINE), "a text to PyYAML, a number to readers of YAML 1.2"
    document = yaml.safe_load(text)
    assert re.fullmatch(r"3\.\d+\.\d+", document["asyncapi"])
    for ref in _refs(document):
        if ref.startswith("#/"):
            node = document
            for part in ref[2:].split("/"):
                node = node[part]
        else:
            assert (FOLDER / ref).is_file()
    used = {ref for channel in document["channels"].values() for ref in _refs(channel["messages"])}
    assert used == {f"#/components/messages/{name}" for name in document["components"]["messages"]}
    assert {operation["channel"]["$ref"] for operation in document["operations"].values()} == {
        f"#/channels/{name}" for name in document["channels"]
    }
    for channel in document["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel.get("parameters", {}))
    for name, message in document["components"]["messages"].items():
        [example] = message["examples"]
        body = example["payload"][0][0] if name in {"RunMessage", "EventTask"} else example["payload"]
        if name == "RunMessage":
            parse_request(body)
        else:
            validator("event").validate(body)
            assert body["type"] == message.get("name", body["type"])
