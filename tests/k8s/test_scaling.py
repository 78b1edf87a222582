"""Scaling: by what there is to run, and no further than the API's limit makes useful."""

import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest

import replicas as bound
from finetune_queue.gateway.app import create_app
from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE
from finetune_queue.setting_types import RateLimit
from finetune_queue.settings import Settings
from k8s.conftest import Manifest, Rendered, render

TARGETS = {"finetune-worker": QUEUE, "finetune-worker-transfer": TRANSFER_QUEUE}


@pytest.fixture(params=TARGETS)
def scaled(request: pytest.FixtureRequest) -> Manifest:
    return render("keda").get("ScaledObject", request.param)


def threads(overlay: Rendered, name: str) -> int:
    words = overlay.containers[f"{name}/worker"]["args"]
    return int(words[words.index("-c") + 1])


def test_nothing_else_sets_the_replicas(scaled: Manifest) -> None:
    overlay = render("keda")
    name = scaled["spec"]["scaleTargetRef"]["name"]
    assert name == scaled["metadata"]["name"]
    assert "replicas" not in overlay.get("Deployment", name)["spec"]
    assert overlay.of("HorizontalPodAutoscaler") == []
    assert [each["spec"]["scaleTargetRef"]["name"] for each in overlay.of("ScaledObject")] == list(TARGETS)


def test_the_number_is_one_that_the_gateway_gives(scaled: Manifest) -> None:
    overlay = render("keda")
    (trigger,) = scaled["spec"]["triggers"]
    url = urlsplit(trigger["metadata"]["url"])
    service = overlay.get("Service", "finetune-gateway")
    assert url.netloc == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    schema = create_app(Settings()).openapi()
    operation = schema["paths"][url.path]["get"]
    assert operation["security"] == [{"HTTPBearer": []}]
    assert trigger["metadata"]["authMode"] == "bearer"
    node: dict[str, Any] = operation["responses"]["200"]["content"]["application/json"]["schema"]
    for part in trigger["metadata"]["valueLocation"].split("."):
        node = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]["properties"][part]
    assert node["type"] == "integer"
    authentication = overlay.get("TriggerAuthentication", trigger["authenticationRef"]["name"])
    assert [ref["parameter"] for ref in authentication["spec"]["secretTargetRef"]] == ["token"]


def test_each_class_is_scaled_by_its_own_number(scaled: Manifest) -> None:
    name = scaled["metadata"]["name"]
    words = render("keda").containers[f"{name}/worker"]["args"]
    assert words[words.index("-Q") + 1] == TARGETS[name]
    location = scaled["spec"]["triggers"][0]["metadata"]["valueLocation"]
    assert location == {QUEUE: "short.total", TRANSFER_QUEUE: "transfers.total"}[TARGETS[name]]


def test_a_worker_is_not_asked_for_more_than_its_threads(scaled: Manifest) -> None:
    target = float(scaled["spec"]["triggers"][0]["metadata"]["targetValue"])
    assert target < threads(render("keda"), scaled["metadata"]["name"])


def test_the_bound_is_what_the_limit_makes_useful(scaled: Manifest) -> None:
    limits = [
        RateLimit.model_validate(text) for text in scaled["metadata"]["annotations"]["finetune-queue/limits"].split()
    ]
    short, transfer = bound.replicas(limits)
    expected = {"finetune-worker": short, "finetune-worker-transfer": transfer}
    assert scaled["spec"]["maxReplicaCount"] == expected[scaled["metadata"]["name"]]
    # Dispatchers live in the workers of the short queue: without one nothing starts again.
    assert scaled["spec"]["minReplicaCount"] >= 1


def test_the_bound_counts_the_threads_that_workers_have() -> None:
    overlay = render("keda")
    assert threads(overlay, "finetune-worker") == bound.SHORT_THREADS
    assert threads(overlay, "finetune-worker-transfer") == bound.TRANSFER_THREADS


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "are required: CALLS/SECONDS"), (["fifty"], "'fifty' should be calls/seconds")]
)
def test_what_is_no_limit_is_a_usage_error(arguments: list[str], said: str) -> None:
    command = [sys.executable, bound.__file__, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: ")
    assert said in run.stderr


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["5/60"], (2, 2)),  # 5 calls and 5 transfers at once
        (["50/60"], (8, 13)),  # 50 calls, 50 transfers
        (["50/60", "50/60"], (14, 25)),
        (["50/60", "5/60", "600/3600"], (10, 17)),  # 65 of each
    ],
)
def test_the_formula(limits: list[str], expected: tuple[int, int]) -> None:
    assert bound.replicas([RateLimit.model_validate(text) for text in limits]) == expected
