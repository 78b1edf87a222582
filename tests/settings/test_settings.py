"""Settings: where they come from, what is refused, and that a refusal names everything and shows nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_queue.settings import (
    AccountSettings,
    RateLimit,
    Settings,
    SettingsError,
    describe,
    load_settings,
)
from support.refusals import problem_of, problems_of

KEY = "SG_hidden_0123456789"


def test_a_producer_needs_no_setting_at_all() -> None:
    settings = load_settings()
    assert settings == Settings()
    assert settings.accounts == {}
    assert settings.finetune_redis_url == settings.broker_url == "redis://localhost:6379/0"


def test_the_environment_comes_before_dotenv_and_dotenv_before_secret_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "run-secrets"
    secrets.mkdir()
    for name, value in {"FINETUNE_LEASE": "1", "finetune_handover": "1", "SEGMIND_API_KEY": f"{KEY}\n"}.items():
        (secrets / name).write_text(value)
    (secrets / "kubernetes.io").mkdir()
    Path(".env").write_text("FINETUNE_LEASE=2\nFINETUNE_HANDOVER=2\nOTHER=x\n")
    monkeypatch.setenv("FINETUNE_LEASE", "3")
    settings = load_settings(worker=True)
    assert (settings.finetune_lease, settings.finetune_handover) == (3, 2)
    assert settings.accounts["default"].api_key.get_secret_value() == KEY


def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("FINETUNE_LEASE=7\nFINETUNE_BROKER_URL=\n")
    monkeypatch.setenv("FINETUNE_LEASE", "")
    monkeypatch.setenv("FINETUNE_TYPO", "")
    settings = load_settings()
    assert settings.finetune_lease == 7
    assert settings.finetune_broker_url is None


@pytest.mark.parametrize("where", ["environment", ".env"])
def test_the_secrets_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder = tmp_path / "mounted"
    # As Kubernetes mounts a Secret: links through a folder that is swapped as a whole.
    (folder / "..2026").mkdir(parents=True)
    (folder / "..2026" / "SEGMIND_API_KEY").write_text(KEY)
    (folder / "..data").symlink_to("..2026")
    (folder / "SEGMIND_API_KEY").symlink_to("..data/SEGMIND_API_KEY")
    if where == "environment":
        monkeypatch.setenv("FINETUNE_SECRETS_DIR", str(folder))
    else:
        Path(".env").write_text(f"FINETUNE_SECRETS_DIR={folder}\n")
    assert load_settings().accounts["default"].api_key.get_secret_value() == KEY


def test_a_secrets_folder_that_is_not_there_is_named_only_if_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    load_settings()
    monkeypatch.setenv("FINETUNE_SECRETS_DIR", "/no/such/folder")
    assert "FINETUNE_SECRETS_DIR: /no/such/folder is not a folder" in problems_of()[0]


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_bytes(b"FINETUNE_LEASE=\xff\xfe")
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "segmind_api_key").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("FINETUNE_SECRETS_DIR", str(folder))
    first, second = problems_of()
    assert first == ".env: cannot be read (UnicodeDecodeError)"
    assert second.startswith(f"FINETUNE_SECRETS_DIR: a file in {folder} cannot be read")


def test_a_line_of_dotenv_that_cannot_be_read_is_named_and_not_shown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ignored otherwise, and its setting keeps its default."""
    Path(".env").write_text("FINETUNE_LEASE=7\nSEGMIND API_KEY=hidden-word\nFINETUNE_LEAS='7\n")
    lines = [problem for problem in problems_of() if problem.startswith(".env")]
    assert [line.partition(" cannot")[0] for line in lines] == [".env: line 2", ".env: line 3"]
    assert "NAME=value" in lines[0]
    assert "hidden-word" not in "".join(lines)
    assert caplog.text == ""
    Path(".env").write_text("FINETUNE_LEASE=7\n# a remark\n\nexport OTHER='a\nb'\n")
    assert load_settings().finetune_lease == 7


def test_every_wrong_value_is_named_at_once_with_its_source_and_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run-secrets").mkdir()
    (tmp_path / "run-secrets" / "SEGMIND_API_KEY").write_text("short")
    Path(".env").write_text("SEGMIND_RATE_LIMIT=fifty\nFINETUNE_REDIS_ULR=redis://h\n")
    monkeypatch.setenv("FINETUNE_LEASE", "soon")
    monkeypatch.setenv("FINETUNE_LOG_FORMAT", "xml")
    message = "\n".join(problems_of(worker=True))
    for line in (
        r"SEGMIND_API_KEY \(file in .*run-secrets\): is too short to be an API key.* Example: SEGMIND_API_KEY=\w+",
        r"SEGMIND_RATE_LIMIT \(\.env\): should be calls/seconds.* Example: SEGMIND_RATE_LIMIT=50/60",
        r"FINETUNE_REDIS_ULR \(\.env\): no such setting\. Did you mean FINETUNE_REDIS_URL\?",
        r"FINETUNE_LEASE \(environment\): should be a number of seconds\. Example: FINETUNE_LEASE=30",
        r"FINETUNE_LOG_FORMAT \(environment\): should be 'json' or 'console'\. Example: FINETUNE_LOG_FORMAT=console",
    ):
        assert re.search(line, message), f"{line} is not in:\n{message}"
    assert len(message.splitlines()) == 5, "a key that is wrong is not missing as well"


def test_a_worker_without_a_key_is_told_so_and_a_producer_is_not() -> None:
    settings = load_settings({})
    with pytest.raises(SettingsError, match="SEGMIND_API_KEY: missing, and a worker needs it") as caught:
        settings.require_worker()
    assert problems_of({}, worker=True) == caught.value.problems
    load_settings({"SEGMIND_API_KEY": KEY}, worker=True).require_worker()


def test_one_key_makes_the_default_account() -> None:
    settings = load_settings({"SEGMIND_API_KEY": KEY, "SEGMIND_RATE_LIMIT": "50/60"})
    assert settings.accounts == {
        "default": AccountSettings.model_validate({"api_key": KEY, "rate_limit": {"calls": 50, "seconds": 60}})
    }
    assert settings.accounts["default"].max_training is None
    assert settings.accounts["default"].max_submits_per_day is None


@pytest.mark.parametrize(("value", "cap"), [("20", 20), ("0", 0), ("", None)])
def test_one_key_may_have_a_cap_on_its_submits(value: str, cap: int | None) -> None:
    settings = load_settings({"SEGMIND_API_KEY": KEY, "SEGMIND_MAX_SUBMITS_PER_DAY": value})
    assert settings.accounts["default"].max_submits_per_day == cap


def test_several_accounts_come_as_json() -> None:
    accounts = {
        "team-a": {"api_key": KEY, "rate_limit": "50/60", "max_training": 4, "max_submits_per_day": 0},
        "team_b.2": {"api_key": f"{KEY}-b"},
    }
    settings = load_settings({"SEGMIND_ACCOUNTS": json.dumps(accounts)}, worker=True)
    first, second = settings.accounts["team-a"], settings.accounts["team_b.2"]
    assert (first.rate_limit, first.max_training, first.max_submits_per_day) == (RateLimit(calls=50, seconds=60), 4, 0)
    assert str(second.rate_limit) == "5/60"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{", "is not JSON (line 1, column 2)"),
        (KEY, "is not JSON (line 1, column 1)"),
        ("[" * 100_000, "nested too deeply"),
        ('["a"]', "should be an object"),
        ('{"a": "x"}', "account a: should be an object with an api_key"),
        (
            '{"a": {"api_key": "$KEY", "rate_limit": 50}}',
            'account a, rate_limit: should be calls/seconds, like "50/60" for 50 calls a minute',
        ),
        ('{"a": {}}', "account a, api_key: is missing"),
        ('{"a b": {"api_key": "$KEY"}}', "has a name that should be letters, digits and"),
        ('{"a": {"api_key": "$KEY", "rate": "5/60"}}', "account a, rate: is not a field of an account"),
        ('{"a": {"api_key": "$KEY", "rate_limit": "5"}}', "account a, rate_limit: should be calls/seconds"),
        ('{"a": {"api_key": "$KEY", "max_training": 0}}', "account a, max_training: should be greater than 0"),
        ('{"a": {"api_key": "$KEY"}, "a": {"api_key": "$KEY2"}}', "has a name more than once"),
        ('{"a": {"api_key": "$KEY"}, "b": {"api_key": "$KEY"}}', "two accounts have the same api_key"),
    ],
)
def test_wrong_accounts_are_explained_without_their_keys(value: str, expected: str) -> None:
    problem = problem_of({"SEGMIND_ACCOUNTS": value.replace("$KEY", KEY)})
    assert expected in problem
    assert KEY not in problem


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FINETUNE_GATEWAY_TOKENS", '{"ci": "secret-token-in-the-clear"}', "client ci: should be a token's SHA-256"),
        ("FINETUNE_GATEWAY_TOKENS", '{"two words": ""}', "has a name that should be letters, digits and"),
        ("FINETUNE_GATEWAY_TOKENS", '{"ci": "", "ci": "in-the-clear"}', ": has a name more than once. "),
        ("FINETUNE_HOOK_SECRET", "secret-token-in-the-clear", "should be 32 or more random characters"),
    ],
)
def test_wrong_secrets_of_the_gateway_are_explained_without_them(name: str, value: str, expected: str) -> None:
    problem = problem_of({name: value})
    assert expected in problem
    assert "in-the-clear" not in problem


def test_accounts_and_a_single_key_contradict_each_other() -> None:
    accounts = json.dumps({"a": {"api_key": KEY}})
    single = {"SEGMIND_API_KEY": f"{KEY}2", "SEGMIND_RATE_LIMIT": "5/60", "SEGMIND_MAX_SUBMITS_PER_DAY": "20"}
    problems = problems_of({"SEGMIND_ACCOUNTS": accounts, **single})
    assert [problem.split(":")[0] for problem in problems] == sorted(single)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FINETUNE_SETTLE_TIME": "60"}, "FINETUNE_SETTLE_TIME: 60 is not longer than SEGMIND_CALL_TIMEOUT (60)"),
        ({"SEGMIND_CALL_TIMEOUT": "300"}, "FINETUNE_SETTLE_TIME: 120 is not longer than SEGMIND_CALL_TIMEOUT (300)"),
        ({"FINETUNE_BACKOFF_MAX": "1"}, "FINETUNE_BACKOFF_MAX: shorter than FINETUNE_BACKOFF_BASE"),
    ],
)
def test_times_that_contradict_each_other_are_refused(environ: dict[str, str], expected: str) -> None:
    assert problem_of(environ).startswith(expected)


def test_a_rule_between_two_values_says_nothing_when_one_of_them_is_wrong_itself() -> None:
    assert problem_of({"FINETUNE_SETTLE_TIME": "soon", "SEGMIND_CALL_TIMEOUT": "300"}).startswith(
        "FINETUNE_SETTLE_TIME"
    )


@pytest.mark.parametrize("name", ["FINETUNE_LEASE", "FINETUNE_RETENTION", "SEGMIND_READ_TIMEOUT"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1s", " "])
def test_a_time_is_a_positive_number_of_seconds(name: str, value: str) -> None:
    assert problem_of({name: value}).startswith(name)


@pytest.mark.parametrize("value", ["0", "1.5", "nan", "half"])
def test_the_poll_share_is_a_fraction(value: str) -> None:
    assert problem_of({"FINETUNE_POLL_SHARE": value}).startswith("FINETUNE_POLL_SHARE")


@given(calls=st.integers(1, 10**6), seconds=st.floats(0.001, 86_400).map(lambda value: round(value, 3)))
def test_a_rate_limit_is_read_as_it_is_written(calls: int, seconds: float) -> None:
    settings = load_settings({"SEGMIND_RATE_LIMIT": f" {calls} / {seconds:.3f} "})
    assert settings.segmind_rate_limit == RateLimit(calls=calls, seconds=seconds)


@pytest.mark.parametrize(
    "value", ["50", "50/", "/60", "0/60", "5/0", "-5/60", "5/60/1", "5.5/60", "5/1e3", "\u0665/60", "5/90000"]
)
def test_what_is_no_rate_limit_is_refused(value: str) -> None:
    assert problem_of({"SEGMIND_RATE_LIMIT": value}).startswith("SEGMIND_RATE_LIMIT (given): ")


@pytest.mark.parametrize("value", ["tiny", "SG 0123456789", "SG_0123456789\nx", "SG_0123456789é"])
def test_what_cannot_be_an_api_key_is_refused_without_being_shown(value: str) -> None:
    problem = problem_of({"SEGMIND_API_KEY": value})
    assert problem.startswith("SEGMIND_API_KEY (given): ")
    assert value not in problem


def test_a_key_copied_with_its_line_break_is_taken_without() -> None:
    assert load_settings({"SEGMIND_API_KEY": f"{KEY}\n"}).accounts["default"].api_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("FINETUNE_REDIS_ULR", " Did you mean FINETUNE_REDIS_URL?"),
        ("SEGMIND_APIKEY", " Did you mean SEGMIND_API_KEY?"),
        ("SEGMIND_RATELIMIT", " Did you mean SEGMIND_RATE_LIMIT?"),
        ("FINETUNE_ZZZ", ""),
    ],
)
def test_an_unknown_name_is_an_error_with_a_hint(name: str, hint: str) -> None:
    assert problem_of({name: KEY}) == f"{name} (given): no such setting.{hint}"


@pytest.mark.parametrize(
    "name",
    [
        "FINETUNE_REDIS_SERVICE_HOST",
        "FINETUNE_REDIS_SERVICE_PORT",
        "FINETUNE_REDIS_SERVICE_PORT_HTTP",
        "FINETUNE_REDIS_PORT",
        "FINETUNE_REDIS_PORT_6379_TCP",
        "FINETUNE_REDIS_PORT_6379_TCP_ADDR",
        "SEGMIND_SANDBOX_PORT_8080_TCP_PROTO",
    ],
)
def test_what_kubernetes_adds_for_a_service_is_no_typo(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:6379")
    load_settings()


def test_nothing_shows_a_secret() -> None:
    settings = load_settings({"SEGMIND_API_KEY": KEY, "FINETUNE_REDIS_URL": "redis://:hidden-word@h/0"})
    for shown in (repr(settings), str(settings), repr(settings.accounts)):
        assert KEY not in shown
        assert "hidden-word" not in shown


def test_secret_values_are_all_found_also_decoded() -> None:
    settings = load_settings(
        {
            "SEGMIND_ACCOUNTS": json.dumps({"a": {"api_key": KEY}, "b": {"api_key": f"{KEY}-b"}}),
            "FINETUNE_REDIS_URL": "redis://:pass%40word@h/0",
            "FINETUNE_BROKER_URL": "unix://:other-word@/run/x",
            "FINETUNE_SINKS": "redis://h/0?queue=q&password=third-word",
        }
    )
    assert {KEY, f"{KEY}-b", "pass@word", "other-word", "third-word"} <= settings.secret_values


def test_settings_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings({}).finetune_lease = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="finetune_leese"):
        Settings(finetune_leese=1)  # type: ignore[call-arg]


def test_the_home_of_a_user_who_is_not_here_stays_as_it_was_written() -> None:
    settings = load_settings({"FINETUNE_DATASET_ROOTS": "~nobody-here/sets"})
    assert settings.finetune_dataset_roots == (Path("~nobody-here/sets").absolute(),)


@given(environ=st.dictionaries(st.sampled_from([row.env for row in describe()]), st.text(max_size=40), max_size=6))
def test_no_text_makes_anything_but_settings_or_a_settings_error(environ: dict[str, str]) -> None:
    try:
        load_settings(environ, worker=True)
    except SettingsError as error:
        refusal = error
    else:
        return
    assert refusal.problems
    assert refusal.__cause__ is refusal.__context__ is None, "a chained error would show the input"


@pytest.mark.parametrize("row", list(describe()), ids=lambda row: row.env)
def test_each_row_of_the_table_is_complete_and_its_example_and_default_are_accepted(row: Any, tmp_path: Path) -> None:
    assert row.type
    assert row.meaning.endswith(".")
    example = str(tmp_path) if row.env == "FINETUNE_SECRETS_DIR" else row.example
    name = row.env.lower()
    assert getattr(load_settings({row.env: example}), name) is not None
    assert getattr(load_settings({row.env: row.default}), name) == getattr(Settings(), name)
