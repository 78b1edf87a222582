"""What a reply's Date says of this machine's clock."""

import pytest

from finetune_worker.wire.headers import clock_skew, retry_after

SAID = 784_111_777.0
DATE = {"Date": "Sun, 06 Nov 1994 08:49:37 GMT"}


@pytest.mark.parametrize(
    ("left", "back", "skew"),
    [
        (0.2, 0.4, 0.0),
        (-3.0, 5.0, 0.0),  # a slow call: the server may have written its Date at any time of it
        (90.0, 91.0, 89.0),  # its second may have been nearly over
        (-91.0, -90.0, -90.0),
    ],
)
def test_no_more_is_said_than_is_known(left: float, back: float, skew: float) -> None:
    assert clock_skew(DATE, SAID + left, SAID + back) == skew


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"
"""A date that Python cannot hold, which it says otherwise than of one that is none."""


@pytest.mark.parametrize("headers", [{}, {"Date": "yesterday"}, {"Date": FAR}])
def test_a_reply_without_a_date(headers: dict[str, str]) -> None:
    assert clock_skew(headers, SAID, SAID) is None


def test_a_wait_until_a_date_beyond_all_dates_is_none() -> None:
    assert retry_after({"Retry-After": FAR}) is None
