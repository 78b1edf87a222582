"""What will happen, from the seed alone: which jobs are submitted when, and what goes wrong when. Pure."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ACCOUNTS = ("default", "second")

LONG = 240.0
"""Seconds from which on a run must have seen every kind of fault."""

FAULTS_EVERY = 1.1
"""Seconds between two faults of the sandbox, on average."""

STORM_EVERY = 0.3
"""The same in the storm that ends every minute. Nearly every call meets one then, the accounts are paused, and one
probe at a time finds out whether it is over."""

MINUTE, FAIR = 60.0, 48.0
"""Seconds; the storm begins after the second."""

FAULT_LASTS = 20.0
"""Seconds after which a fault that met no call is over."""

ACTS_EVERY = 1.2
"""Seconds between two blows against everything else."""

_API = ("submit", "details", "list", "presign", "access")
_STORAGE_REPLIES = ("http_error", "reply_lost", "reset", "slow", "slow_down")

Card = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that goes wrong: ``at`` seconds from the start, a ``kind``, and what that kind needs."""

    at: float
    kind: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Order:
    """A job that somebody wants: ``way`` is how it is submitted (sdk, http or raw), ``dataset`` staged or public."""

    at: float
    key: str
    way: str
    dataset: str
    fields: dict[str, Any]

    @property
    def account(self) -> str:
        """The account that pays."""
        return str(self.fields["account"])


@dataclass(frozen=True, slots=True)
class Script:
    """One run, before it begins."""

    seed: int
    seconds: float
    orders: tuple[Order, ...]
    acts: tuple[Act, ...]

    @property
    def long(self) -> bool:
        """Whether it is long enough to see everything."""
        return self.seconds >= LONG

    @property
    def kinds(self) -> list[str]:
        """Every kind of fault that a long run must have seen."""
        chance = random.Random(self.seed)
        return sorted({kind for kind, _ in (*_sandbox_cards(chance), *_cards(chance))})


def write(seed: int, seconds: float, jobs: int) -> Script:
    """Write the script of a run of ``seconds`` with ``jobs`` jobs."""
    chance = random.Random(seed)
    orders = sorted(_orders(chance, seconds, jobs), key=lambda order: order.at)
    acts = [
        *_deal(chance, seconds, FAULTS_EVERY, STORM_EVERY, _sandbox_cards),
        *_deal(chance, seconds, ACTS_EVERY, ACTS_EVERY, _cards),
    ]
    return Script(seed, seconds, tuple(orders), tuple(sorted(acts, key=lambda act: act.at)))


def _deal(chance: random.Random, seconds: float, every: float, stormy: float, cards: Any) -> Iterator[Act]:
    """Deal shuffled decks, one after the other, so that nothing is left out for long."""
    at, deck = 0.5, list[Card]()
    while at < seconds:
        if not deck:
            deck = cards(chance)
            chance.shuffle(deck)
        yield Act(round(at, 3), *deck.pop())
        at += chance.uniform(0.2, 1.8) * (every if at % MINUTE < FAIR else stormy)


def _sandbox_cards(chance: random.Random) -> list[Card]:
    """Every kind of fault on every operation that a worker uses.

    Left out is what no client can survive: a submit that is paid and answered by a clear no. A training is never
    hidden from its first moment, and lists lag for less than the settle time.
    """
    cards: list[Card] = []

    def add(op: str, kind: str, name: str = "", **fields: Any) -> None:
        cards.append((f"{op} {name or kind}", {"op": op, "kind": kind, "count": chance.randint(1, 2), **fields}))

    for op in _API:
        add(
            op, "http_error", status=chance.choice((500, 502, 503, 504)), body=chance.choice(("error", "empty", "html"))
        )
        add(op, "http_error", "http_error, processed", status=chance.choice((500, 502, 503, 504)), processed=True)
        add(op, "http_error", "refused", status=chance.choice((400, 403, 404, 422)), count=1)
        add(op, "reply_lost")
        add(op, "reset")
        add(op, "slow", seconds=round(chance.uniform(0.5, 5.0), 2))
        add(op, "slow", "slow, processed", seconds=round(chance.uniform(0.5, 5.0), 2), processed=True)
        add(op, "rate_limited", retry_after=chance.choice((None, 1, 2)))
        add(op, "malformed_json")
        add(op, "html_200")
        add(op, "html_200", "html_200, processed", processed=True)
    add("list", "partial_list", missing=round(chance.uniform(0.2, 0.9), 2), count=1)
    add("file_link", "http_error", status=503)
    add("file_link", "reply_lost")
    for op in ("put", "download"):
        for kind in _STORAGE_REPLIES:
            more: dict[str, dict[str, Any]] = {"http_error": {"status": 500}, "slow": {"seconds": 2.0}}
            add(op, kind, **more.get(kind, {}))
    add("download", "truncated", after_bytes=chance.randint(0, 60_000))
    add("download", "corrupted", at_byte=chance.randint(0, 60_000))
    add("download", "stall", after_bytes=chance.randint(0, 60_000), seconds=round(chance.uniform(1.0, 4.0), 2))
    add("download", "ignore_range", count=3)
    add("training", "fail_training")
    add("training", "unknown_status")
    add("training", "list_lag", seconds=round(chance.uniform(0.5, 2.0), 2))
    add("training", "hold", count=1)
    return cards


def _cards(chance: random.Random) -> list[Card]:
    """Everything else that goes wrong, and what callers do meanwhile; ``pick`` chooses among those it may hit."""

    def card(kind: str, **args: Any) -> Card:
        return kind, {"pick": chance.random(), **args}

    return [
        card("worker SIGKILL"),
        card("worker SIGKILL"),
        card("worker SIGTERM"),
        card("worker SIGQUIT"),
        card("workers SIGKILL, all"),
        card("worker SIGSTOP", seconds=round(chance.uniform(4.0, 7.0), 2)),
        card("valkey killed", seconds=round(chance.uniform(0.1, 3.0), 2)),
        card("valkey restarted", seconds=round(chance.uniform(0.1, 1.0), 2)),
        card("valkey frozen", seconds=round(chance.uniform(1.0, 5.0), 2)),
        card("valkey paused", seconds=round(chance.uniform(0.5, 4.0), 2)),
        card("valkey full", seconds=round(chance.uniform(0.5, 4.0), 2)),
        card("valkey read-only", seconds=round(chance.uniform(0.5, 4.0), 2)),
        card("connections killed"),
        card("segmind frozen", seconds=round(chance.uniform(1.0, 5.0), 2)),
        *(card("message dropped") for _ in range(2)),
        *(card("message duplicated") for _ in range(2)),
        card("messages lost, all"),
        card("message poisoned"),
        card("training hidden"),
        card("weights private", seconds=round(chance.uniform(4.0, 8.0), 2)),
        card("hooks forged", count=20),
        card("hooks flood", count=200),
        card("hook lost", count=3),
        card("hook repeated", count=3),
        card("hook late", count=3, seconds=round(chance.uniform(1.0, 4.0), 2)),
        card("sink error", count=chance.randint(1, 10)),
        card("sink busy", count=chance.randint(1, 5)),
        card("sink reply lost", count=chance.randint(1, 5)),
        card("sink slow", count=chance.randint(1, 3), seconds=round(chance.uniform(0.5, 3.0), 2)),
        *(card("caller cancels") for _ in range(3)),
        *(card("caller retries") for _ in range(2)),
        *(card("caller submits again", way=way) for way in ("sdk", "http", "raw")),
        *(card("caller changes access") for _ in range(3)),
        card("operator redelivers"),
        card("caller reuses a key"),
    ]


def _orders(chance: random.Random, seconds: float, jobs: int) -> Iterator[Order]:
    """Jobs in bursts over the first four fifths of the time; among them pairs that only their time tells apart."""
    number = 0
    while number < jobs:
        at = chance.uniform(0.0, 0.8 * seconds)
        for _ in range(min(chance.randint(1, 12), jobs - number)):
            number += 1
            yield _order(chance, at + chance.uniform(0.0, 0.3), number)


def _order(chance: random.Random, at: float, number: int) -> Order:
    twin = number % 12 in {4, 5}  # two jobs of the same name, dataset and account
    dataset = "public" if twin or chance.random() < 0.1 else "staged"
    fields: dict[str, Any] = {
        "name": f"twin-{number // 2}" if twin else f"face-{number}",
        "account": "default" if twin or chance.random() < 0.6 else "second",
        "instance_prompt": "photo of 1MAN",
        "trigger_word": "1MAN",
        "priority": chance.randint(0, 9),
        "labels": {"number": str(number)},
    }
    if chance.random() < 0.15:
        fields["wait_for"] = "available"
    if chance.random() < 0.03:
        fields["deadline_in"] = round(chance.uniform(2.0, 20.0), 2)
    sinks = [sink for sink in ("list", "celery", "web") if chance.random() < 0.4]
    if sinks:
        fields["sinks"] = sinks
    way = chance.choices(("sdk", "http", "raw"), (6, 3, 2))[0]
    return Order(round(at, 3), f"order-{number}", way, dataset, fields)


def spread(items: Sequence[Any], pick: float) -> Any:
    """Return the item that ``pick``, from 0 up to 1, chooses."""
    return items[int(pick * len(items))]
