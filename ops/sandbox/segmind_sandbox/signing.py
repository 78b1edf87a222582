"""Links of limited life: S3's presigned URLs (AWS Signature Version 4 in the query) and Google-like signed links.

The signature covers the method, the path, the query and the named headers, so a PUT that differs from what was
presigned in any of them is refused, as by S3.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_REGION = "us-east-1"
_DATE = "%Y%m%dT%H%M%SZ"


class SignatureError(Exception):
    """A signed request is refused: the S3 error code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _escape(text: str, safe: str = "-_.~") -> str:
    return quote(text, safe=safe)


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Signer:
    """Signs and checks with a key of its own, made at start."""

    def __init__(self) -> None:
        self._key_id = "ASIA" + secrets.token_hex(8).upper()
        self._secret = secrets.token_hex(20)

    def presign(self, method: str, url: str, *, headers: Mapping[str, str], seconds: int) -> str:
        """``url`` with a signature in its query. ``headers`` (lower-case names) must come with the request."""
        now = datetime.now(UTC)
        parts = urlsplit(url)
        signed = {"host": parts.netloc, **headers}
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self._key_id}/{now:%Y%m%d}/{_REGION}/s3/aws4_request",
            "X-Amz-Date": now.strftime(_DATE),
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": ";".join(sorted(signed)),
        }
        signature = self._signature(method, parts.path, query, signed)
        return f"{url}?{_canonical_query(query)}&X-Amz-Signature={signature}"

    def check(self, method: str, raw_path: str, raw_query: str, headers: Mapping[str, str]) -> None:
        """Check a request that has a signature in its query. Raises SignatureError, with S3's codes."""
        query = dict(parse_qsl(raw_query, keep_blank_values=True))
        given = query.pop("X-Amz-Signature", "")
        try:
            since = datetime.strptime(query["X-Amz-Date"], _DATE).replace(tzinfo=UTC)
            ends = since + timedelta(seconds=int(query["X-Amz-Expires"]))
            names = query["X-Amz-SignedHeaders"].split(";")
            signed = {name: headers.get(name, "") for name in names}
        except (KeyError, ValueError, OverflowError):
            message = (
                "Query-string authentication version 4 requires the X-Amz-Date, X-Amz-Expires and other parameters."
            )
            raise SignatureError("AuthorizationQueryParametersError", message) from None
        if datetime.now(UTC) >= ends:
            raise SignatureError("AccessDenied", "Request has expired")
        unsigned = [name for name in headers if name.startswith("x-amz-") and name not in names]
        if unsigned:
            raise SignatureError("AccessDenied", "There were headers present in the request which were not signed")
        if not hmac.compare_digest(given.encode(), self._signature(method, raw_path, query, signed).encode()):
            raise SignatureError(
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided."
                " Check your key and signing method.",
            )

    def _signature(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
        """See "Authenticating Requests: Using Query Parameters" in S3's API reference."""
        request = "\n".join(
            [
                method,
                _escape(unquote(path), safe="/-_.~"),
                _canonical_query(query),
                *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
                "",
                ";".join(sorted(headers)),
                "UNSIGNED-PAYLOAD",
            ]
        )
        day = query["X-Amz-Date"][:8]
        scope = f"{day}/{_REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{self._secret}".encode()
        for part in (day, _REGION, "s3", "aws4_request"):
            key = _hmac(key, part)
        return _hmac(key, text).hex()


def _canonical_query(query: Mapping[str, str]) -> str:
    return "&".join(f"{_escape(name)}={_escape(query[name])}" for name in sorted(query))
