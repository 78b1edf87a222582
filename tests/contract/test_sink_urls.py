"""Sinks by URL: what is read, what is refused and in which words, and that nothing secret is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import TRANSPORT_ALIASES

from finetune_queue.contract import (
    EventType,
    JobRecord,
    JobState,
    RequestError,
    Sink,
    SinkKind,
    parse_request,
    parse_sink,
    parse_sinks,
)
from finetune_queue.contract.sink import BROKERS, RESERVED_QUEUES, STATE_CHANGES, allowed
from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE
from finetune_queue.settings import SettingsError, load_settings
from finetune_queue.store import keys
from support.samples import sample, sample_request
from support.sinks import SECRET


@pytest.mark.parametrize(
    ("url", "kind", "name", "task", "target", "origin"),
    [
        ("celery://orders/shop.tuned", "celery", "orders", "shop.tuned", "celery://orders/shop.tuned", None),
        ("stream://a:b/c", "stream", "a:b/c", "", "stream://a:b/c", None),
        ("list://Results", "list", "Results", "", "list://Results", None),
        ("https://h.example/in?a=1&events=failed", "web", "", "", "https://h.example/in?a=1", "https://h.example"),
        ("https://H.example:8443", "web", "", "", "https://H.example:8443/", "https://h.example:8443"),
        ("http://[::1]:80/x?q=%2F", "web", "", "", "http://[::1]:80/x?q=%2F", "http://[::1]:80"),
        ("amqp://u:pw@r/v?queue=q&heartbeat=3", "broker", "q", "", "amqp://u:pw@r/v?heartbeat=3", "amqp://r/v"),
        ("redis://r:1/2?queue=q&task=a.b", "broker", "q", "a.b", "redis://r:1/2", "redis://r:1/2"),
    ],
)
def test_each_kind_is_read(  # noqa: PLR0917
    url: str, kind: str, name: str, task: str, target: str, origin: str | None
) -> None:
    sink = parse_sink(url)
    assert (sink.kind, sink.name, sink.task) == (SinkKind(kind), name, task)
    assert (sink.target, sink.origin) == (target, origin or target)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("orders", "is not a URL"),
        ("ftp://x/y", "not a known kind of sink"),
        ("memory://x?queue=y", "not a known kind of sink"),
        ("filesystem:///tmp?queue=y", "not a known kind of sink"),
        ("celery://orders", "should be celery://QUEUE/task.name"),
        ("celery://orders/a b", "no spaces"),
        ("celery://job:1:events/x.y", "should be celery://QUEUE/task.name"),
        ("celery://finetune/x.y", "belongs to finetune-queue"),
        ("celery://orders/finetune.run", "belongs to finetune-queue"),
        ("celery://wake/x.y", "belongs to finetune-queue"),
        ("list://{finetune}:wake", "should be list://NAME"),
        ("list://", "should be list://NAME"),
        ("stream://x?maxlen=5", "only events="),
        ("https://", "names no host"),
        ("https://u:hidden-pw@h/x", "no user name or password"),
        ("https://h/x#part", "no #fragment"),
        ("https://h:99999/", "cannot be read as a URL"),
        ("https://h/x?events=succeeded,finished", "events= should be 'all', or some of accepted, uploading"),
        ("https://h/x?events=", "events= should be"),
        ("https://h/x?events=failed&events=failed", "twice"),
        ("amqp://u:hidden-pw@h/v", "should name a queue"),
        ("amqp://h/v?queue=q&task=1", "the name of a Celery task"),
        ("amqp://u:p@inner.example:5672;x@allowed.example/?queue=q", "one URL"),
        ("redis://allowed.example/99;amqp://inner.example/?queue=q", "one URL"),
        ("https://h/\u00fc", "letters outside ASCII"),
    ],
)
def test_a_sink_that_cannot_be_is_refused_when_the_request_is_read(url: str, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(sample(reply_to=["list://fine", url]))
    [problem] = caught.value.problems
    assert problem.startswith("reply_to.1: ")
    assert why in problem
    assert "hidden-pw" not in problem


def test_kinds_are_selected() -> None:
    assert parse_sink("list://x").wanted == STATE_CHANGES
    assert EventType.PROGRESS not in STATE_CHANGES
    assert parse_sink("list://x?events=all").wanted == set(EventType)
    assert parse_sink("list://x?events=succeeded,failed").wanted == {EventType.SUCCEEDED, EventType.FAILED}


def test_what_is_named_twice_is_one_sink() -> None:
    assert len(parse_sinks(["list://x", "list://x", "list://y"])) == 2


@pytest.mark.parametrize(
    "url",
    ["amqp://me:pass-word@h/v?queue=q", "redis://:pass-word@h/0?queue=q", "https://h/hooks/pass-word?k=pass-word"],
)
def test_secrets_of_a_sink_are_not_shown(url: str) -> None:
    sink = parse_sink(url)
    request = sample_request(reply_to=[url])
    job = JobRecord(id="j", state=JobState.ACCEPTED, request=request)
    for text in (sink.shown, repr(sink), sink.origin, sink.line("j"), str(job.public())):
        assert "pass-word" not in text


def test_a_job_stays_in_its_line() -> None:
    sink = parse_sink("https://h.example/x")
    lines = {sink.line(f"job-{number}") for number in range(100)}
    assert lines == {f"https://h.example#{lane}" for lane in range(4)}
    assert sink.line("job-1") == parse_sink("https://h.example/other").line("job-1")


@pytest.mark.parametrize(
    ("url", "rules", "expected"),
    [
        ("list://a", "list://", True),
        ("list://a", "list://a", True),
        ("list://ab", "list://a", False),
        ("list://a", "stream:// https://", False),
        ("celery://orders/x.y", "celery://orders", True),
        ("celery://other/x.y", "celery://orders", False),
        ("https://h.example.evil/x", "https://h.example", False),
        ("https://h.example/x", "https://h.example", True),
        ("http://h.example/x", "https://", False),
        ("amqp://u:p@r:1/v?queue=q", "amqp://r:1", True),
        ("amqp://u:p@r:2/v?queue=q", "amqp://r:1", False),
        ("list://a", "none", False),
    ],
)
def test_the_operator_says_what_a_request_may_name(url: str, rules: str, expected: bool) -> None:  # noqa: FBT001
    settings = load_settings({"FINETUNE_REPLY_TO": rules})
    assert allowed(parse_sink(url), settings.finetune_reply_to) is expected


@pytest.mark.parametrize(
    "rules", ["https", "ftp://x", "https://u@h", "https://h/path", "amqp://h?queue=q", "none list://"]
)
def test_a_rule_that_would_never_match_is_refused(rules: str) -> None:
    with pytest.raises(SettingsError, match="FINETUNE_REPLY_TO"):
        load_settings({"FINETUNE_REPLY_TO": rules})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("hidden-secret", "should be whsec_"),
        ("whsec_c2hvcnQ=", "should be whsec_"),
        ("{", "is not JSON (line 1, column 2)"),
        ('{"https://h.example": ' + "[" * 100_000, "nested too deeply"),
        ('{"https://h.example": "hidden-secret", "https://h.example": ""}', "has a name more than once"),
        ('{"h.example": "' + SECRET + '"}', "should name origins"),
        ('{"https://h.example": ""}', "without a secret"),
    ],
)
def test_a_signing_secret_is_checked_and_never_quoted(value: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"FINETUNE_SIGNING_SECRET": value})
    assert why in str(caught.value)
    assert "hidden-secret" not in str(caught.value)


def test_a_secret_is_chosen_by_origin() -> None:
    other = "whsec_" + "A" * 32
    value = f'{{"https://h.example": "{other} {SECRET}", "*": "{SECRET}"}}'
    settings = load_settings({"FINETUNE_SIGNING_SECRET": value})
    assert settings.signing_secrets("https://h.example") == (other, SECRET)
    assert settings.signing_secrets("https://else.example") == (SECRET,)
    assert load_settings({"FINETUNE_SIGNING_SECRET": SECRET}).signing_secrets("https://x.example") == (SECRET,)
    assert {other, SECRET} <= settings.secret_values


def test_a_default_web_sink_needs_a_secret_where_it_is_signed() -> None:
    given = {"FINETUNE_SINKS": "list://x https://h.example/hook", "SEGMIND_API_KEY": "SG_0123456789abcdef"}
    with pytest.raises(SettingsError, match=r"FINETUNE_SIGNING_SECRET: missing, and https://h.example/… in"):
        load_settings(given, worker=True)
    load_settings(given)  # the gateway and Flower sign nothing, and have no secret to
    load_settings(given | {"FINETUNE_SIGNING_SECRET": SECRET}, worker=True)


def test_brokers_are_those_that_kombu_knows() -> None:
    assert set(TRANSPORT_ALIASES) >= BROKERS
    assert not BROKERS & {"memory", "filesystem", "sqlalchemy", "pyro"}


def test_no_queue_of_a_sink_can_be_a_key_of_the_store() -> None:
    whole = [getattr(keys, name) for name in dir(keys)]
    names = [
        make().removeprefix(keys.BROKER_PREFIX) for make in whole if callable(make) and not make.__code__.co_argcount
    ]
    assert len(names) > 5
    for name in [*names, QUEUE, TRANSFER_QUEUE]:
        with pytest.raises(ValueError):
            parse_sink(f"celery://{name}/x.y")
    assert {name for name in names if ":" not in name} <= RESERVED_QUEUES


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"amqp://{text}?queue=q", f"celery://{text}", f"list://{text}"):
        try:
            sink = parse_sink(url)
        except ValueError:
            continue
        assert isinstance(sink, Sink)
        assert sink.wanted
