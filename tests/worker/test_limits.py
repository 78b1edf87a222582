"""The limits of an account where the settings of its workers differ: the strictest hold, so that none lifts a cap."""

from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from structlog.testing import capture_logs

from finetune_queue import __version__
from finetune_queue.settings import Settings
from finetune_queue.store import AccountLimits, LiveWorker, connect, keys
from finetune_queue.store.workers import GONE
from finetune_worker.container import Container

LASTS = 21600.0
OWN = AccountLimits(calls=50, window=60, training_limit=LASTS)
CAPPED = AccountLimits(
    calls=100, window=60, max_training=10, max_submits_per_day=57, max_transfers=2, training_limit=LASTS
)
BOTH = AccountLimits(50, 60, max_training=10, max_submits_per_day=57, max_transfers=2, training_limit=LASTS)
CAREFUL = LiveWorker("other:1", __version__, ("default",), limits=(("default", CAPPED),))


def in_force(container: Container) -> AccountLimits:
    return container.accounts.status("default").limits


def go_on(container: Container) -> None:
    """Let the worker have seen for a while who is there."""
    container.presence._announced_since -= GONE


def test_a_worker_without_caps_lifts_nobody_s(container: Container) -> None:
    container.workers.seen(CAREFUL)
    container.presence.announce()
    go_on(container)
    container.presence.announce()
    assert in_force(container) == BOTH


def test_higher_limits_hold_at_once_when_the_last_with_the_lower_ones_has_left(container: Container) -> None:
    container.workers.seen(CAREFUL)
    container.presence.announce()
    assert in_force(container) == BOTH

    container.workers.left(CAREFUL)
    container.presence.announce()
    assert in_force(container) == OWN


def test_who_leaves_last_with_the_lower_limits_leaves_the_higher_ones_in_force(container: Container) -> None:
    """A rolling restart may start the new workers before the old ones stop, and none of the new need notice that."""
    higher = replace(OWN, calls=100)
    container.workers.seen(LiveWorker("new:1", __version__, ("default",), limits=(("default", higher),)))
    container.presence.announce()
    assert in_force(container) == OWN

    container.presence.sign_off()
    assert in_force(container) == higher


def test_the_last_to_leave_leaves_its_limits_in_force(container: Container) -> None:
    container.presence.announce()
    container.presence.sign_off()
    assert in_force(container) == OWN


def test_who_comes_between_another_s_look_and_its_write_is_seen(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure = container.accounts.configure

    def beside_another(account: str, limits: AccountLimits) -> bool:
        monkeypatch.setattr(container.accounts, "configure", configure)
        container.workers.seen(CAREFUL)
        configure(account, BOTH)  # what the other writes, having seen both
        return configure(account, limits)

    monkeypatch.setattr(container.accounts, "configure", beside_another)
    container.presence.announce()
    assert in_force(container) == BOTH


def test_who_went_without_a_word_may_come_back(container: Container, redis_url: str) -> None:
    """After an outage of Redis, or a restart of all, the one with the caps may come back a little later."""
    long_ago = container.deadlines.now_ms() - 1000 * (GONE + 60)
    with connect(redis_url) as client:
        client.zadd(keys.workers(), {CAREFUL.member: long_ago})
    container.presence.announce()
    assert in_force(container) == BOTH
    go_on(container)
    container.presence._announced_at -= GONE + 1  # Redis was away again
    container.presence.announce()
    assert in_force(container) == BOTH

    go_on(container)
    container.presence.announce()
    assert in_force(container) == OWN
    assert [worker.name for worker in container.workers.not_forgotten()] == [container.name]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [((5, 60), (10, 120), (5, 120)), ((1, 1), (60, 60), (1, 60)), ((50, 60), (5, 60), (5, 60))],
)
def test_what_keeps_to_two_rates_is_the_same_for_both(
    one: tuple[int, float], other: tuple[int, float], both: tuple[int, float]
) -> None:
    first, second = AccountLimits(*one), AccountLimits(*other)
    assert first.strictest(second) == second.strictest(first) == AccountLimits(*both)


def test_a_slower_worker_slows_all_while_it_is_there(container: Container) -> None:
    slow = LiveWorker("slow:1", __version__, ("default",), limits=(("default", AccountLimits(calls=5, window=60)),))
    container.workers.seen(slow)
    container.presence.announce()
    assert (in_force(container).calls, in_force(container).window) == (5, 60)


def test_a_process_that_was_started_again_in_place_of_one_speaks_for_it(container: Container) -> None:
    for limits in (CAPPED, OWN):
        container.workers.seen(LiveWorker("pod:1", __version__, ("default",), limits=(("default", limits),)))
    container.presence.announce()
    assert in_force(container) == OWN


@pytest.mark.parametrize("limits", [OWN, CAPPED, AccountLimits(calls=5, window=0.25, max_submits_per_day=0)])
def test_a_worker_is_read_as_it_was_written(limits: AccountLimits) -> None:
    worker = LiveWorker("a:1", "1.0", ("default", "other"), clock_off=-90, limits=(("default", limits),))
    assert LiveWorker.of_member(worker.member) == worker
    assert LiveWorker.of_member(f"{worker.member}:a-cap-of-a-later-version more=of-it") == worker


def test_what_did_not_change_is_not_written_again(container: Container) -> None:
    assert container.accounts.configure("default", OWN) is False
    assert container.accounts.configure("default", CAPPED) is True


def test_a_redis_that_came_back_empty_is_announced_whoever_is_there_first(container: Container, redis_url: str) -> None:
    with capture_logs() as logs:
        container.presence.announce()
    assert [entry for entry in logs if entry["log_level"] == "error"] == []
    assert container.workers.emptied_ms() is None
    with connect(redis_url) as client:
        client.flushdb()
    container.workers.seen(CAREFUL)  # a worker that just started announces itself before this one
    container.accounts.configure("default", CAPPED)
    with capture_logs() as logs:
        container.presence.announce()
        container.presence.announce()
    [said] = [entry for entry in logs if entry["log_level"] == "error"]
    assert said["event"] == "redis_came_back_empty"
    assert "FinetuneRedisEmptied" in said["next"]
    assert container.workers.emptied_ms() is not None


def test_workers_show_whether_they_have_the_same_key_and_api_and_not_the_key(
    container: Container, settings: Settings
) -> None:
    key = settings.accounts["default"].api_key.get_secret_value()

    def shown(**changed: Any) -> str:
        other = Container.build(Settings(**{**settings.model_dump(exclude_unset=True), **changed}), Celery())
        try:
            assert key not in other.presence.me.member
            return dict(LiveWorker.of_member(other.presence.me.member).key_prints)["default"]
        finally:
            other.close()

    assert shown() == dict(container.presence.me.key_prints)["default"]
    assert shown(segmind_api_key="SG_another_0123456789") != shown()
    assert shown(segmind_base_url="http://127.0.0.1:9") != shown()
