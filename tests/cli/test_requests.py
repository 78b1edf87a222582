"""Requests from options and files."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.cli.requests import (
    Options,
    build_request,
    parse_deadline,
    parse_labels,
    parse_parameters,
    read_request,
)
from finetune_queue.contract import FineTuneRequest
from finetune_queue.errors import InvalidRequestError
from support.samples import sample

NOTHING: dict[str, Any] = {"steps": None, "parameters": (), "labels": (), "deadline": None}


def build(file: str | None, fields: dict[str, Any], **given: Any) -> FineTuneRequest:
    return build_request(file, Options.read(fields, **{**NOTHING, **given}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def write(folder: Path, body: object) -> str:
    path = folder / "request.json"
    path.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return str(path)


def test_options_alone_make_a_request_with_the_defaults() -> None:
    request = build(None, {**sample(), "theme": None})
    assert request == FineTuneRequest.model_validate(sample())


def test_options_replace_what_the_file_says(tmp_path: Path) -> None:
    file = write(tmp_path, sample(name="from-file", priority=3, labels={"a": "1", "b": "2"}))
    request = build(file, {"name": "from-option"}, labels=["b=3", "c=4=5"])
    assert (request.name, request.priority) == ("from-option", 3)
    assert request.labels == {"a": "1", "b": "3", "c": "4=5"}


def test_steps_and_parameters_are_added_to_the_usual_ones() -> None:
    request = build(None, sample(), steps=500, parameters=["lora_rank=16"])
    assert request.advance_parameters == {
        "steps": 500,
        "face_crop": False,
        "finetune_type": "LORA",
        "lora_rank": 16,
    }
    assert FineTuneRequest.model_fields["advance_parameters"].default["steps"] == 2000


def test_steps_and_parameters_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, sample(advance_parameters={"steps": 10, "x": [1]}))
    request = build(file, {}, parameters=["x=2"])
    assert request.advance_parameters == {"steps": 10, "x": 2}


def test_all_that_is_missing_is_named_with_its_option() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build(None, {})
    assert caught.value.problems == [
        "name (--name): is required",
        "instance_prompt (--prompt): is required",
        "trigger_word (--trigger-word): is required",
        "dataset (--dataset): is required",
    ]


def test_a_field_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="nmae: is not a field"):
        build(write(tmp_path, sample(nmae="x")), {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("1", "one JSON object"),
        ('[{"a": 1}, {"a": 2}]', "fields, not a list: --jsonl takes many, one per line"),
        ('{"a": 1}\n{"a": 2}\n', "more than one JSON document"),
        ("[" * 100_000, "nested too deeply"),
        ('{"priority": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"priority": 1, "priority": 9}', 'request.json has the member "priority" more than once'),
        ('{"labels": {"a": "1", "é": "", "\\u00e9": ""}}', r'has the member "\\u00e9" more than once'),
    ],
)
def test_a_file_that_is_no_request(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CliError, match=said) as caught:
        read_request(write(tmp_path, text))
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="cannot be read: No such file"):
        read_request(str(tmp_path / "missing.json"))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(CliError, match="not UTF-8"):
        read_request(str(binary))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_request_is_utf_8_wherever_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, mark: str
) -> None:
    """Whatever the locale says of standard input, and with the mark that some editors put before it."""
    text = f'{mark}{{"name": "é"}}'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding=encoding))
    assert read_request("-") == read_request(write(tmp_path, text)) == {"name": "é"}


@given(st.text(min_size=1).filter(lambda key: "=" not in key), json_values)
def test_a_parameter_is_any_json(key: str, value: Any) -> None:
    assert parse_parameters([f"{key}={json.dumps(value)}"]) == {key: value}


@given(st.text() | st.text("=ab"))
def test_what_is_no_pair_is_a_usage_error_and_any_pair_a_label(text: str) -> None:
    key, equals, value = text.partition("=")
    if key and equals:
        assert parse_labels([text]) == {key: value}
        return
    for parse in (parse_parameters, parse_labels):
        with pytest.raises(CliError, match=r"should be KEY=VALUE\.$") as caught:
            parse([text])
        assert caught.value.exit_code is ExitCode.USAGE


@given(st.text() | st.text('[]{}",:0e-'))
def test_a_parameter_that_is_no_json_is_a_usage_error(text: str) -> None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        with pytest.raises(CliError, match="is not JSON") as caught:
            parse_parameters([f"key={text}"])
        assert caught.value.exit_code is ExitCode.USAGE
    else:
        assert repr(parse_parameters([f"key={text}"])) == repr({"key": value})


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000])
def test_a_parameter_that_is_too_much_to_read_is_a_usage_error_without_it(value: str) -> None:
    with pytest.raises(CliError, match="too many digits, or the value is nested too deeply") as caught:
        parse_parameters([f"key={value}"])
    assert caught.value.exit_code is ExitCode.USAGE
    assert len(str(caught.value)) < 200


def test_a_parameter_with_a_member_twice_is_a_usage_error() -> None:
    with pytest.raises(CliError, match='--param key: the value has the member "a" more than once'):
        parse_parameters(['key={"a": 1, "a": 2}'])


def test_a_bare_word_is_not_taken_for_a_text() -> None:
    with pytest.raises(CliError, match=r"""--param 'face_crop="False"'"""):
        parse_parameters(["face_crop=False"])


def test_a_deadline_may_count_from_now() -> None:
    moment = datetime.fromisoformat(parse_deadline("90m", keyed=False))
    assert timedelta(minutes=89) < moment - datetime.now(UTC) < timedelta(minutes=91)


def test_a_deadline_that_counts_from_now_would_break_idempotency() -> None:
    with pytest.raises(CliError, match="cannot be used with --idempotency-key"):
        parse_deadline("2h", keyed=True)
    assert parse_deadline("2026-01-31T18:00:00Z", keyed=True) == "2026-01-31T18:00:00Z"


def test_a_deadline_out_of_this_world() -> None:
    with pytest.raises(CliError, match="too far away"):
        parse_deadline("9999999999d", keyed=False)


@pytest.mark.parametrize("text", ["tomorrow", "2026-01-31T18:00:00"])
def test_a_deadline_that_is_no_time_is_the_request_s_to_refuse(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="deadline: "):
        build(None, sample(), deadline=text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"labels": ["a=b", "a=c"]}, "--label a=c: a is given more than once"),
        ({"parameters": ["x=1", "x=2"]}, "--param x=2: x is given more than once"),
        ({"parameters": ["steps=10"], "steps": 20}, "Say either --steps or --param steps=N"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CliError, match=said) as caught:
        build(None, sample(), **given)
    assert caught.value.exit_code is ExitCode.USAGE
