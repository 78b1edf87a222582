"""The storage hosts: S3 for uploaded datasets and Google's for weights, under paths of the same server.

Both refuse a request that carries the API's credentials: S3 itself refuses an Authorization header beside a presigned
query, and a client that sends x-api-key to a storage host leaks it.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from segmind_sandbox import effects
from segmind_sandbox.faults import READS, AnyFault
from segmind_sandbox.finetunes import UPLOADS
from segmind_sandbox.objects import ObjectReader
from segmind_sandbox.sandbox import Sandbox
from segmind_sandbox.signing import SignatureError
from segmind_sandbox.streaming import Entity, EntityResponse
from segmind_sandbox.weights import weights

_MAX_OBJECT = 5 << 30  # of one S3 PUT
_SIGNATURE = "X-Amz-Signature"
_CREDENTIALS = ("authorization", "x-api-key")
_CODES = {429: "SlowDown", 500: "InternalError", 503: "SlowDown"}
_MESSAGES = {
    "SlowDown": "Please reduce your request rate.",
    "InternalError": "We encountered an internal error. Please try again.",
}


def xml_error(status: int, code: str | None = None, message: str | None = None) -> Response:
    """An error as S3 words it."""
    code = code or _CODES.get(status, "InternalError")
    message = message or _MESSAGES.get(code, code)
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    )
    return Response(text, status, media_type="application/xml")


class RefusedByStorageError(Exception):
    """A storage host refuses a request."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.reply = xml_error(status, code, message)


Answer = Callable[[Sandbox, Request, list[AnyFault]], Awaitable[Response]]


class StorageHost:
    """One storage host as an ASGI application. ``ops`` names the operations of the methods that it knows."""

    def __init__(self, sandbox: Sandbox, ops: Mapping[str, str], answer: Answer) -> None:
        self._sandbox = sandbox
        self._ops = ops
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take one request."""
        request = Request(scope, receive)
        op = self._ops.get(request.method, "storage_other")
        coming = self._take(op, request)
        await effects.answer(self._sandbox, op, coming, scope=scope, receive=receive, send=send)

    async def _take(self, op: str, request: Request) -> Response:
        if any(name in request.headers for name in _CREDENTIALS):
            self._sandbox.log.key_leaks += 1
            return xml_error(400, "InvalidArgument", "Only one auth mechanism allowed; do not send credentials here.")
        if request.method not in self._ops:
            return xml_error(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")
        book = self._sandbox.faults
        faults = book.draw(op, request.url.path)
        reply: Response | None = None
        try:
            reply = await self._reply(request, faults)
        finally:
            # Faults of an object's bytes, which this reply does not have.
            if not (isinstance(reply, EntityResponse) and reply.sends_entity):
                book.put_back([fault for fault in faults if fault.ops is READS])
        return reply

    async def _reply(self, request: Request, faults: list[AnyFault]) -> Response:
        early = await effects.before(self._sandbox, faults, xml_error)
        if early is not None:
            return early
        try:
            if _SIGNATURE in request.query_params:
                raw_path = request.scope["raw_path"].decode("ascii")
                self._sandbox.signer.check(request.method, raw_path, request.url.query, request.headers)
            reply = await self._answer(self._sandbox, request, faults)
        except RefusedByStorageError as refusal:
            reply = refusal.reply
        except SignatureError as refusal:
            reply = xml_error(403, refusal.code, refusal.message)
        return await effects.after(self._sandbox, faults, reply, xml_error)


async def dataset_bucket(sandbox: Sandbox, request: Request, faults: list[AnyFault]) -> Response:
    """The bucket of uploaded datasets: a presigned PUT, and reading what was put as public."""
    key = request.path_params["key"]
    if request.method == "PUT":
        return await _put(sandbox, request, key)
    stored = sandbox.objects.get(key)
    if stored is None:
        raise RefusedByStorageError(404, "NoSuchKey", "The specified key does not exist.")
    if not stored.public and _SIGNATURE not in request.query_params:
        raise RefusedByStorageError(403, "AccessDenied", "Access Denied")
    headers = [("Content-Type", stored.content_type)]
    entity = Entity(stored.size, lambda: ObjectReader(stored), f'"{stored.md5}"', stored.modified, headers)
    return _read(sandbox, request, entity, faults)


async def _put(sandbox: Sandbox, request: Request, key: str) -> Response:
    """Take an upload whose signature was found right. It exists, or replaces its predecessor, only once it is whole."""
    headers = request.headers
    if _SIGNATURE not in request.query_params:
        raise RefusedByStorageError(403, "AccessDenied", "Access Denied")
    if "transfer-encoding" in headers:
        message = "A header you provided implies functionality that is not implemented"
        raise RefusedByStorageError(501, "NotImplemented", message)
    if "content-length" not in headers:
        raise RefusedByStorageError(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
    if int(headers["content-length"]) > _MAX_OBJECT:
        raise RefusedByStorageError(400, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
    writer = sandbox.objects.writer()
    try:
        async for chunk in request.stream():
            writer.write(chunk)
        _check_md5(headers.get("content-md5"), writer.md5.digest())
    except BaseException:
        writer.discard()
        raise
    stored = sandbox.objects.commit(
        key, writer, content_type=headers["content-type"], public=headers.get("x-amz-acl") == "public-read"
    )
    return Response(headers={"ETag": f'"{stored.md5}"'})


def _check_md5(given: str | None, digest: bytes) -> None:
    if given is None:
        return
    try:
        expected = base64.b64decode(given, validate=True)
    except ValueError:
        expected = b""
    if len(expected) != len(digest):
        raise RefusedByStorageError(400, "InvalidDigest", "The Content-MD5 you specified is not valid.")
    if expected != digest:
        message = "The Content-MD5 you specified did not match what we received."
        raise RefusedByStorageError(400, "BadDigest", message)


async def weights_bucket(sandbox: Sandbox, request: Request, faults: list[AnyFault]) -> Response:
    """The bucket of weights: public for FAST_FLUX (section 6), behind signed links for its siblings."""
    training = sandbox.trainings.of_model(request.path_params["model_id"])
    if training is None or not training.has_weights(sandbox.clock()):
        raise RefusedByStorageError(404, "NoSuchKey", "The specified key does not exist.")
    if training.private_weights and _SIGNATURE not in request.query_params:
        raise RefusedByStorageError(403, "AccessDenied", "Access denied.")
    version, size = training.weights_version, training.weights_bytes  # now: they may be replaced during the wait
    digests = await sandbox.digests(training)
    headers = [("Content-Type", "application/octet-stream"), ("x-goog-generation", str(version))]
    headers += [("x-goog-hash", value) for value in digests.goog_hashes]
    modified = training.created_at.replace(microsecond=0)
    entity = Entity(size, lambda: weights(training.model_id, version, size), digests.etag, modified, headers)
    return _read(sandbox, request, entity, faults)


def _read(sandbox: Sandbox, request: Request, entity: Entity, faults: list[AnyFault]) -> Response:
    return EntityResponse(
        sandbox, entity, request.headers, faults,
        lambda: xml_error(416, "InvalidRange", "The requested range is not satisfiable"),
    )  # fmt: skip


def routes(sandbox: Sandbox) -> list[BaseRoute]:
    """The routes of both hosts."""
    datasets = {"PUT": "put", "GET": "dataset_get", "HEAD": "dataset_head"}
    downloads = {"GET": "download", "HEAD": "download_head"}
    return [
        Route(UPLOADS + "{key:path}", StorageHost(sandbox, datasets, dataset_bucket)),
        Route("/gcs/{bucket}/{model_id}.safetensors", StorageHost(sandbox, downloads, weights_bucket)),
    ]
