"""The one error of this package."""

from typing import Literal

FetchErrorCode = Literal[
    "bad_url",  # not a URL that we use at all
    "address_refused",  # leads to an address that users may not reach
    "too_many_redirects",
    "tls_failed",  # the certificate or the handshake
    "unreachable",  # no such host, refused, reset
    "timed_out",
    "not_found",  # 404, 410
    "forbidden",  # 401, 403
    "refused",  # another 4xx or an unexpected status
    "unavailable",  # 429, 5xx
    "no_head",  # GET may work, HEAD does not
    "get_differs",  # GET says another length than HEAD, or none
    "no_length",  # no Content-Length, or none that can be relied on
    "too_large",
    "not_a_file",  # a web page, or anything else that is not a ZIP
    "incomplete",  # fewer or more bytes than Content-Length said
]


class FetchError(Exception):
    """A URL of a user that was not reached, with a sentence and a fix for that user.

    Neither holds the URL's query, which may be a signature, nor the address behind a name, which may be internal.
    """

    def __init__(self, code: FetchErrorCode, sentence: str, fix: str, *, retryable: bool = False) -> None:
        super().__init__(f"{sentence} {fix}")
        self.code = code
        self.sentence = sentence
        self.fix = fix
        self.retryable = retryable
