"""The API call by call: what it takes, what it answers, and what it refuses."""

import json
import re
import uuid
from datetime import datetime
from typing import Any

import pytest

from sandbox.calls import FINETUNE, Api, raw_exchange, raw_request, submit_body
from segmind_sandbox.testing import LiveSandbox

OPERATIONS = [
    ("POST", f"{FINETUNE}/submit"),
    ("GET", f"{FINETUNE}/details"),
    ("GET", f"{FINETUNE}/list"),
    ("GET", f"{FINETUNE}/upload/pre-signed-url"),
    ("PUT", f"{FINETUNE}/access-update"),
    ("GET", f"{FINETUNE}/file/download"),
    ("GET", "/v1/get-user-credits"),
    ("GET", "/webhook/get"),
    ("POST", "/webhook/add"),
    ("POST", "/webhook/update"),
    ("GET", "/webhook/inactive"),
    ("GET", "/webhook/dispatch-logs"),
]


def body_of(reply: bytes) -> tuple[int, Any]:
    """Status and JSON body of a raw reply."""
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("key", [None, "", "wrong"])
def test_every_operation_needs_the_key(sandbox: LiveSandbox, api: Api, method: str, path: str, key: str | None) -> None:
    del api.session.headers["x-api-key"]
    reply = api.call(method, path, headers={} if key is None else {"x-api-key": key})

    assert reply.status_code == 401
    assert list(reply.json()) == ["error"]
    assert sandbox.control.report()["unknown_keys"] == 1


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_has_one_method(api: Api, method: str, path: str) -> None:
    for wrong in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"} - {method}:
        reply = api.call(wrong, path)
        assert reply.status_code == 405
        assert reply.headers["Allow"] == method


@pytest.mark.parametrize("path", ["/cancel", "/list/"])
def test_unknown_path(api: Api, path: str) -> None:
    reply = api.call("GET", f"{FINETUNE}{path}", allow_redirects=False)
    assert (reply.status_code, reply.json()) == (404, {"error": "Not Found"})


def test_details_is_a_get_with_a_json_body(api: Api, sandbox: LiveSandbox) -> None:
    finetune_id = api.submit()
    body = json.dumps({"request_id": finetune_id}).encode()
    request = raw_request(sandbox, "GET", f"{FINETUNE}/details", body, {"Content-Type": "application/json"})

    status, reply = body_of(raw_exchange(sandbox.base_url, request))

    assert status == 200
    assert set(reply) == {"finetune"}
    job = reply["finetune"]
    assert set(job) == {
        "id", "finetune_id", "name", "data_source_path", "instance_prompt", "status", "source_type", "base_model",
        "slug", "public_model", "error_message", "cloud_storage_url", "created_ts", "updated_ts",
    }  # fmt: skip
    assert job["finetune_id"] == finetune_id
    assert job["id"] != finetune_id
    assert datetime.fromisoformat(job["created_ts"]).tzinfo is not None


def test_list_items_have_the_fields_of_the_page(api: Api) -> None:
    dataset = api.upload()
    first = api.submit(name="one", data_source_path=dataset)
    second = api.submit(name="two", data_source_path=dataset, segmind_public=True)

    newest, oldest = api.list()

    assert set(newest) == {
        "id", "data_source_path", "name", "status", "error_message", "segmind_model_path", "advance_parameters",
        "segmind_public_model", "train_type", "source_type", "base_model", "theme", "cloud_storage_url", "finetune_id",
        "model_information",
    }  # fmt: skip
    assert (newest["finetune_id"], oldest["finetune_id"]) == (second, first)
    assert newest["data_source_path"] == dataset
    assert newest["advance_parameters"] == submit_body()["advance_parameters"]
    assert (newest["segmind_public_model"], oldest["segmind_public_model"]) == (True, False)


def test_the_weights_url_is_in_details_and_in_list_only_if_asked(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="training", kind="hold")
    early = api.submit()
    assert api.details(early)["cloud_storage_url"] is None
    job = api.trained()
    assert job["cloud_storage_url"].endswith(".safetensors")
    assert [item["cloud_storage_url"] for item in api.list()] == [None, None]

    sandbox.control.change_settings(list_carries_weights_url=True)
    job = api.trained()
    assert api.list()[0]["cloud_storage_url"] == job["cloud_storage_url"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "name"),
        ({"name": "  "}, "name"),
        ({"data_source_path": None}, "data_source_path"),
        ({"data_source_path": "s3://bucket/faces.zip"}, "data_source_path"),
        ({"data_source_path": "/tmp/faces.zip"}, "data_source_path"),
        ({"data_source_path": "http:///faces.zip"}, "data_source_path"),
        ({"data_source_path": "http://[faces.zip"}, "data_source_path"),
        ({"data_source_path": "http://127.0.0.1:99999/faces.zip"}, "data_source_path"),
        ({"instance_prompt": None}, "instance_prompt"),
        ({"trigger_word": 7}, "trigger_word"),
        ({"base_model": "SLOW_FLUX"}, "base_model"),
        ({"theme": ""}, "theme"),
        ({"segmind_public": "False"}, "segmind_public"),
        ({"advance_parameters": []}, "advance_parameters"),
        ({"advance_parameters": {"steps": "2000"}}, "advance_parameters.steps"),
        ({"advance_parameters": {"steps": 0}}, "advance_parameters.steps"),
        ({"advance_parameters": {"face_crop": 1}}, "advance_parameters.face_crop"),
        ({"advance_parameters": {"finetune_type": "FULL"}}, "advance_parameters.finetune_type"),
        ({"labels": {"ours": "not theirs"}}, "labels"),
        ({"base_model": "FLUX"}, "train_type"),
        ({"base_model": "QWEN", "train_type": "LORA"}, "machine_type"),
    ],
)
def test_a_wrong_submit_names_the_field_and_costs_nothing(
    api: Api, sandbox: LiveSandbox, change: dict[str, Any], named: str
) -> None:
    reply = api.call("POST", f"{FINETUNE}/submit", json=submit_body(**change))

    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]
    assert named in reply.json()["error"]
    assert sandbox.control.report()["submits"]["total"] == 0
    assert api.credits().json()["credits"] == sandbox.settings.credits


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"name": NaN}',
        rb'{"name": "\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(submit_body(advance_parameters={"learning_rate": 9})).replace("9}", "1e999}").encode(),
    ],
    ids=lambda body: repr(body[:15]),
)
def test_a_body_that_is_no_json_object(api: Api, body: bytes) -> None:
    reply = api.call("POST", f"{FINETUNE}/submit", data=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert list(reply.json()) == ["error"]


def test_a_body_must_be_declared_as_what_it_is(api: Api) -> None:
    body = json.dumps(submit_body())
    assert api.call("POST", f"{FINETUNE}/submit", data=body).status_code == 400
    assert api.call("PUT", f"{FINETUNE}/access-update", json={"request_id": "x"}).status_code == 400
    assert api.call("GET", f"{FINETUNE}/details", params={"request_id": "x"}).status_code == 400


def test_a_body_too_large(api: Api) -> None:
    reply = api.call("POST", f"{FINETUNE}/submit", data=b" " * 2_000_000, headers={"Content-Type": "application/json"})
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"extension": ".zip", "public": True}, "name"),
        ({"name": "", "public": True}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "faces", "extension": ".tar"}, "extension"),
        ({"name": "faces", "public": "true"}, "public"),
        ({"name": "faces", "acl": "public"}, "acl"),
    ],
)
def test_a_wrong_presign(api: Api, body: dict[str, Any], named: str) -> None:
    reply = api.call("GET", f"{FINETUNE}/upload/pre-signed-url", json=body)
    assert reply.status_code == 400
    assert named in reply.json()["error"]


def test_ids_that_are_unknown_or_of_another_account(api: Api, other: Api) -> None:
    finetune_id = api.submit()
    job = api.trained()
    internal_id = api.details(finetune_id)["id"]

    for calls, asked in ((other, finetune_id), (api, str(uuid.uuid4())), (api, internal_id)):
        details = calls.call("GET", f"{FINETUNE}/details", json={"request_id": asked})
        form = {"request_id": asked, "segmind_public": "True"}
        access = calls.call("PUT", f"{FINETUNE}/access-update", data=form)
        assert (details.status_code, access.status_code) == (404, 404)
    link = other.call("GET", f"{FINETUNE}/file/download", data={"cloud_storage_url": job["cloud_storage_url"]})
    assert link.status_code == 404
    assert other.list() == []


def test_a_slug_can_stand_in_a_url(api: Api) -> None:
    assert re.fullmatch("zo--1-[0-9a-f]{8}", api.details(api.submit(name="Zoë 1"))["slug"])


@pytest.mark.parametrize("encoding", ["multipart", "urlencoded"])
@pytest.mark.parametrize("quote", ['"', ""], ids=["quoted", "bare"])
def test_access_update(api: Api, encoding: str, quote: str) -> None:
    finetune_id = api.submit()
    for public in (True, False):
        fields = {"request_id": f"{quote}{finetune_id}{quote}", "segmind_public": f"{quote}{public}{quote}"}
        multipart = {name: (None, value) for name, value in fields.items()}
        options: dict[str, Any] = {"files": multipart} if encoding == "multipart" else {"data": fields}

        reply = api.call("PUT", f"{FINETUNE}/access-update", **options)

        assert (reply.status_code, reply.text) == (200, "200")
        assert api.details(finetune_id)["public_model"] is public
        assert api.list()[0]["segmind_public_model"] is public


@pytest.mark.parametrize("value", ["true", "yes", "1", ""])
def test_access_update_takes_only_the_two_words(api: Api, value: str) -> None:
    form = {"request_id": api.submit(), "segmind_public": value}
    assert api.call("PUT", f"{FINETUNE}/access-update", data=form).status_code == 400


def test_access_update_refuses_a_file_and_a_broken_form(api: Api) -> None:
    upload = {"request_id": ("id.txt", b"x"), "segmind_public": (None, "True")}
    assert api.call("PUT", f"{FINETUNE}/access-update", files=upload).status_code == 400
    broken = {"Content-Type": "multipart/form-data"}
    assert api.call("PUT", f"{FINETUNE}/access-update", data=b"--x", headers=broken).status_code == 400


def test_a_new_rate_limit_leaves_the_credits_and_new_credits_the_window(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(rate_limit="3/60")
    api.credits()
    sandbox.control.change_settings(credits=4)
    assert api.call("POST", f"{FINETUNE}/submit", json=submit_body()).status_code == 200
    assert api.credits().json()["credits"] == 3.9
    assert api.credits().status_code == 429
    sandbox.control.change_settings(rate_limit="50/60")
    assert api.credits().json()["credits"] == 3.9


def test_a_link_of_what_is_no_url_is_refused(api: Api) -> None:
    reply = api.call("GET", f"{FINETUNE}/file/download", data={"cloud_storage_url": "https://["})
    assert (reply.status_code, "cloud_storage_url" in reply.json()["error"]) == (400, True)


def test_a_submit_costs_credits_until_none_are_left(api: Api, sandbox: LiveSandbox) -> None:
    start = api.credits().json()
    assert start == {"credits": sandbox.settings.credits, "free-credits": 0.0}
    dataset = api.upload()
    api.submit(data_source_path=dataset)
    assert api.credits().json()["credits"] == pytest.approx(start["credits"] - sandbox.settings.training_cost)


def test_the_last_credits_are_enough_for_a_submit(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(credits=0.3)  # three times the cost
    dataset = api.upload()
    for left in (0.2, 0.1, 0.0):
        api.submit(data_source_path=dataset)
        assert api.credits().json()["credits"] == left
    assert api.call("POST", f"{FINETUNE}/submit", json=submit_body(data_source_path=dataset)).status_code == 406


def test_the_siblings(api: Api) -> None:
    dataset = api.upload(public=False)  # they read private uploads; FAST_FLUX does not
    parameters = {"iterations": 300, "captioning": True, "lora_rank": 32, "finetune_type": "FULL"}
    pro = api.submit(
        base_model="FLUX_PRO", theme="GENERAL", advance_parameters=parameters, data_source_path=dataset, name="pro"
    )
    body = submit_body(
        base_model="QWEN", train_type="LORA", machine_type="NVIDIA_H100", auto_caption=True, learning_rate=1e-4,
        data_source_path=dataset, theme=None, name="qwen",
    )  # fmt: skip
    qwen = api.call("POST", f"{FINETUNE}/submit", json=body).json()

    assert set(qwen) == {"status", "request_id", "name"}
    assert api.list()[1]["advance_parameters"] == parameters
    api.wait_for(pro, "AVAILABLE")
    api.wait_for(qwen["request_id"], "AVAILABLE")
