"""The rate limiters against their definitions, and the live limit of each account."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.calls import Api
from segmind_sandbox.ratelimit import FixedWindow, SlidingWindowLog
from segmind_sandbox.report import peak
from segmind_sandbox.settings import RateLimit, SandboxSettings
from segmind_sandbox.testing import LiveSandbox, run_sandbox
from support.until import until

# Eighths are exact in binary, so that calls exactly a window apart occur.
GAPS = st.lists(st.integers(0, 24).map(lambda eighths: eighths / 8), max_size=80)
LIMITS = st.builds(RateLimit, st.integers(1, 6), st.integers(1, 40).map(lambda eighths: eighths / 8))


def times_of(gaps: list[float]) -> list[float]:
    """Arrival times with these gaps."""
    now, times = 1000.0, []
    for gap in gaps:
        now += gap
        times.append(now)
    return times


@given(LIMITS, GAPS)
def test_the_sliding_log_admits_exactly_what_its_rule_says(limit: RateLimit, gaps: list[float]) -> None:
    limiter = SlidingWindowLog(limit)
    admitted: list[float] = []
    for now in times_of(gaps):
        free = sum(now - time < limit.seconds for time in admitted) < limit.calls
        wait = limiter.admit(now)
        assert (wait is None) == free
        if wait is None:
            admitted.append(now)
        else:
            assert 0 < wait <= limit.seconds
            assert sum(now + wait - time < limit.seconds for time in admitted) < limit.calls
    assert peak(admitted, limit.seconds) <= limit.calls


@given(LIMITS, GAPS)
def test_the_fixed_window_admits_exactly_what_its_rule_says(limit: RateLimit, gaps: list[float]) -> None:
    limiter = FixedWindow(limit)
    admitted: dict[int, int] = {}
    for now in times_of(gaps):
        window = math.floor(now / limit.seconds)
        wait = limiter.admit(now)
        assert (wait is None) == (admitted.get(window, 0) < limit.calls)
        if wait is None:
            admitted[window] = admitted.get(window, 0) + 1
        else:
            assert 0 < wait <= limit.seconds


@given(GAPS, st.integers(1, 40).map(lambda eighths: eighths / 8))
def test_the_peak_is_that_of_all_windows(gaps: list[float], seconds: float) -> None:
    times = times_of(gaps)
    expected = max((sum(start <= time < start + seconds for time in times) for start in times), default=0)
    assert peak(times, seconds) == expected


def test_the_fixed_window_lets_twice_the_limit_pass_a_boundary() -> None:
    limiter = FixedWindow(RateLimit(5, 10.0))
    burst = [9.9] * 5 + [10.0] * 5
    assert [limiter.admit(now) for now in burst] == [None] * 10
    assert peak(burst, 10.0) == 10


@pytest.mark.parametrize("text", ["", "50", "0/60", "5/0", "-5/60", "5/-1", "5/inf", "5/nan", "a/b", "5.5/60"])
def test_what_is_no_rate_limit(text: str) -> None:
    with pytest.raises(ValueError):
        RateLimit.parse(text)


def test_one_limit_over_all_endpoints_but_not_over_storage(api: Api, other: Api, sandbox: LiveSandbox) -> None:
    url = api.upload()
    sandbox.control.change_settings(rate_limit="4/60")
    sandbox.control.reset("report")
    assert [api.credits().status_code, len(api.list())] == [200, 0]
    assert api.call("GET", "/webhook/get").status_code == 200
    assert api.call("GET", "/finetune/request/details", json={}).status_code == 400

    refused = api.credits()

    assert refused.status_code == 429
    assert refused.json() == {"error": "Rate limit exceeded"}
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert other.credits().status_code == 200
    assert other.call("GET", url.removeprefix(sandbox.base_url)).status_code == 400  # storage: the key, not the limit
    account = sandbox.control.report()["accounts"]["account-1"]
    assert (account["calls"], account["rejected"]) == (5, 1)
    assert (account["most_calls_in_window"], account["most_admitted_in_window"]) == (5, 4)


def test_a_slot_is_free_again_after_the_window(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(rate_limit="2/1", retry_after=False)
    assert [api.credits().status_code for _ in range(3)] == [200, 200, 429]
    assert "Retry-After" not in api.credits().headers
    until(lambda: api.credits().status_code == 200, seconds=30)


def test_an_account_may_have_a_limit_of_its_own() -> None:

    settings = SandboxSettings(api_keys={"wide": None, "narrow": "1/60"}, rate_limit="100/60", rate_algorithm="fixed")
    with run_sandbox(settings) as sandbox:
        wide, narrow = Api(sandbox, "wide"), Api(sandbox, "narrow")
        assert [wide.credits().status_code for _ in range(3)] == [200] * 3
        assert 429 in {narrow.credits().status_code for _ in range(3)}
        windows = sandbox.control.report(window=0.5)["accounts"]
        assert {account["window_seconds"] for account in windows.values()} == {0.5}
        wide.close()
        narrow.close()
