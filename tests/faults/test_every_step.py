"""A crash at every step: the path of a job is run once to find its calls, then once for each call that it dies before.

The dead worker is a real process that is gone between two instructions (`os._exit`): nothing of it runs on. Another
one recovers the job by its deadlines alone, since all messages of the first are lost with it. `make test-long` tries a
part of the points, another part with each seed; `make test-crash` tries all.
"""

import os
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from segmind_sandbox.testing import LiveSandbox
from support.images import make_dataset_folder
from support.lane import Lane, open_lanes

pytestmark = pytest.mark.long

ALL = os.environ.get("FAULTS") == "all"
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SAMPLE = 5
LANES = 3
NOT_REACHED = "the point was not reached"


@pytest.fixture(scope="module")
def lanes(sandbox: LiveSandbox, valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Lane]]:
    folder = tmp_path_factory.mktemp("lanes")
    dataset = make_dataset_folder(folder / "images", count=4, size=(32, 32))
    with open_lanes(LANES, sandbox, valkey.url, folder, dataset) as opened:
        yield opened


def record(lane: Lane, *, first: str | None = None, **request: Any) -> list[str]:
    """Return the points of a job's path, or of the path on from a first death, which differ by no more than time."""
    points: list[str] = []
    for _ in range(2):  # the first time, scripts are loaded and connections made
        asked = lane.start(**request)
        if first is not None:
            assert lane.crash(asked, first) is None
        points = lane.crash(asked, None) or []
        assert not list(lane.check(lane.recover(asked)))
    return [point for point in points if not _IDLE.search(point)]


# A dispatcher with nothing to do, or a sweep that sees what the last one saw, again and again.
_IDLE = re.compile(r"^dispatch .*(take.lua|SMEMBERS|reserve.lua|TIME|ZRANGEBYSCORE) #(?!1$)|^sweep: .* #(?![123]$)")


def chosen(points: list[str], *, always: str = "submit") -> list[str]:
    """Return the points to try: all, or those that money hangs on and some of the others by the seed."""
    if ALL:
        return points
    others = [point for point in points if not point.startswith(always)]
    picked = set(random.Random(SEED).sample(others, min(SAMPLE, len(others))))
    return [point for point in points if point in picked or point not in others]


def die_everywhere(
    lanes: list[Lane], points: list[str], *, first: str | None = None, **request: Any
) -> dict[str, list[str]]:
    """Return what is wrong after a death at each of the points."""
    free: SimpleQueue[Lane] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def die(point: str) -> list[str]:
        lane = free.get()
        try:
            asked = lane.start(**request)
            if first is not None and lane.crash(asked, first) is not None:
                return [f"{first} was never reached"]
            reached = lane.crash(asked, point) is None
            wrong = list(lane.check(lane.recover(asked)))
        except AssertionError as error:
            return [str(error)]
        finally:
            free.put(lane)
        return wrong if reached else [*wrong, NOT_REACHED]

    with ThreadPoolExecutor(len(lanes)) as pool:
        return {point: wrong for point, wrong in zip(points, pool.map(die, points), strict=True) if wrong}


def check(trouble: dict[str, list[str]], points: list[str]) -> None:
    """Fail unless all went well. How often a job looks or gives a sign of life is a matter of time, so a few points
    of the recorded run may be missing in another, and one of a short choice."""
    wrong = {point: said for point, said in trouble.items() if said != [NOT_REACHED]}
    assert wrong == {}, f"SEED={SEED} repeats this choice of points"
    assert len(trouble) <= max(1, len(points) / 5), sorted(trouble)


def test_a_worker_may_die_before_any_call_of_a_job(lanes: list[Lane]) -> None:
    points = record(lanes[0])
    assert len(points) > 80
    answered = points.index("submit: http reply #1")
    assert points[answered + 1] == "submit: redis end_call.lua #1"  # dies with the answer in hand
    tried = chosen(points)
    check(die_everywhere(lanes, tried), tried)


def test_a_second_worker_may_die_at_any_call_while_it_looks_for_the_first_one_s_submit(lanes: list[Lane]) -> None:
    first = "submit: http reply #1"
    points = record(lanes[0], first=first)
    assert any(point.startswith("sweep: http") for point in points)
    tried = chosen(points)
    check(die_everywhere(lanes, tried, first=first), tried)


@pytest.mark.timeout(600)
def test_a_second_worker_may_die_at_any_call_on_the_way_to_a_submit_that_was_never_sent(lanes: list[Lane]) -> None:
    first = "submit: http send headers #1"
    around_the_paid_call = [f"submit: {call} #1" for call in ("http send body", "http reply", "redis end_call.lua")]
    tried = around_the_paid_call
    if ALL:
        tried = record(lanes[0], first=first)
        assert set(around_the_paid_call) <= set(tried)
    check(die_everywhere(lanes, tried, first=first), tried)


@pytest.mark.timeout(600)
def test_a_worker_may_die_before_any_call_of_a_job_with_private_weights_that_waits_for_deployment(
    lanes: list[Lane], sandbox: LiveSandbox
) -> None:
    sandbox.control.change_settings(private_weights=True)
    points = record(lanes[0], wait_for="available")
    assert any("deploying" in point for point in points)
    tried = chosen(points, always="download: http")
    check(die_everywhere(lanes, tried, wait_for="available"), tried)
