"""The endpoints of the Fast Flux fine-tuning API, of its siblings' private links, and the account's credits."""

from __future__ import annotations

import uuid
from urllib.parse import quote, urlsplit

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from segmind_sandbox import models
from segmind_sandbox.api import Call, Operation, RefusedError
from segmind_sandbox.faults import PartialList
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.trainings import Training

UPLOADS = "/storage/finetune-pipeline/"


async def submit(call: Call) -> Response:
    """Section 1. The sibling QWEN calls the job's id request_id."""
    request = models.parse(models.Submit, await call.json())
    if call.account.credits < call.sandbox.settings.training_cost:
        raise RefusedError(406, "Not enough credits")
    training = call.sandbox.submit(call.account, request, call.base_url)
    id_name = "request_id" if request.base_model == "QWEN" else "finetune_id"
    return JSONResponse({"status": "REQUESTED", id_name: training.finetune_id, "name": request.name})


async def details(call: Call) -> Response:
    """Section 2: a GET with a JSON body."""
    body = models.parse(models.Details, await call.json())
    return JSONResponse({"finetune": _own_training(call, body.request_id).details(call.sandbox.clock())})


async def list_all(call: Call) -> Response:
    """Section 3: all jobs of the account at once, newest first."""
    now = call.sandbox.clock()
    jobs = call.sandbox.trainings.listed(call.account.name, now)
    for fault in call.faults:
        if isinstance(fault, PartialList):
            jobs = [job for job in jobs if call.sandbox.faults.random.random() >= fault.missing]
    return Response(f"[{','.join(job.list_item(now) for job in jobs)}]", media_type="application/json")


async def presign(call: Call) -> Response:
    """Section 4: a GET with a JSON body."""
    body = models.parse(models.Presign, await call.json())
    filename = body.name.removesuffix(body.extension) + body.extension
    key = f"uploads/{call.account.user_id}/{uuid.uuid4()}-{filename}"
    url = f"{call.base_url}{UPLOADS}{quote(key, safe='/-_.~')}"
    headers = {"content-type": "application/zip"} | ({"x-amz-acl": "public-read"} if body.public else {})
    presigned = call.sandbox.signer.presign("PUT", url, headers=headers, seconds=call.sandbox.settings.link_seconds)
    call.sandbox.datasets.issued(url, key)
    return JSONResponse({"presigned_url": presigned, "s3_url": url})


async def access_update(call: Call) -> Response:
    """Section 5: a form; the reply's body is 200."""
    body = models.parse(models.AccessUpdate, await call.form())
    _own_training(call, body.request_id).public = body.segmind_public == "True"
    return JSONResponse(200)


async def file_link(call: Call) -> Response:
    """The siblings' link to private weights: a GET with a form, answered by the link as plain text."""
    body = models.parse(models.FileLink, await call.form())
    name = urlsplit(body.cloud_storage_url).path.rpartition("/")[2]
    training = call.sandbox.trainings.of_model(name.removesuffix(".safetensors"))
    if training is None or training.account != call.account.name or body.cloud_storage_url != training.weights_url:
        raise RefusedError(404, "File not found")
    seconds = call.sandbox.settings.link_seconds
    return PlainTextResponse(call.sandbox.signer.presign("GET", training.weights_url, headers={}, seconds=seconds))


async def account_credits(call: Call) -> Response:
    """The billing page's balance."""
    return JSONResponse({"credits": call.account.credits, "free-credits": 0.0})


def _own_training(call: Call, finetune_id: str) -> Training:
    training = call.sandbox.trainings.get(finetune_id, call.account.name)
    if training is None:
        raise RefusedError(404, "Finetune request not found")
    return training


def routes(sandbox: Sandbox) -> list[BaseRoute]:
    """The routes of these operations."""
    base = "/finetune/request"
    return [
        Route(f"{base}/submit", Operation(sandbox, "submit", "POST", submit)),
        Route(f"{base}/details", Operation(sandbox, "details", "GET", details)),
        Route(f"{base}/list", Operation(sandbox, "list", "GET", list_all)),
        Route(f"{base}/upload/pre-signed-url", Operation(sandbox, "presign", "GET", presign)),
        Route(f"{base}/access-update", Operation(sandbox, "access", "PUT", access_update)),
        Route(f"{base}/file/download", Operation(sandbox, "file_link", "GET", file_link)),
        Route("/v1/get-user-credits", Operation(sandbox, "credits", "GET", account_credits)),
    ]
