"""Settings that are addresses: of the API, of servers, of stores and datasets, and what is refused in each."""

import os
import re
from pathlib import Path

import pytest

from finetune_queue.settings import load_settings
from support.refusals import problem_of


@pytest.mark.parametrize(
    ("value", "loopback"),
    [
        ("https://api.segmind.com", False),
        ("https://api.segmind.com/", False),
        ("https://localhost.example.com", False),
        ("http://localhost:8080", True),
        ("http://127.0.0.9:1", True),
        ("http://[::1]:8080", True),
        ("https://sandbox.localhost", True),
    ],
)
def test_plain_http_is_for_loopback_only(value: str, loopback: bool) -> None:  # noqa: FBT001 - a parameter of the table
    settings = load_settings({"SEGMIND_BASE_URL": value})
    assert settings.segmind_base_url == value.rstrip("/")
    assert settings.segmind_is_loopback is loopback


@pytest.mark.parametrize(
    "value",
    [
        "http://api.segmind.com",
        "http://0.0.0.0:80",
        "http://127.0.0.1.example.com",
        "http://10.0.0.1",
        "ftp://localhost",
        "api.segmind.com",
        "https://",
        "https://user:hidden-word@api.segmind.com",
        "https://api.segmind.com?x=hidden-word",
        "https://api.segmind.com:hidden-word",
        "https://[hidden-word",
    ],
)
def test_other_base_urls_are_refused_without_being_shown(value: str) -> None:
    problem = problem_of({"SEGMIND_BASE_URL": value})
    assert problem.startswith("SEGMIND_BASE_URL (given): ")
    assert "hidden-word" not in problem


@pytest.mark.parametrize(
    ("value", "broker"),
    [
        ("redis://h:1/2", None),
        ("rediss://u:p%40@h:6380/0?ssl_cert_reqs=none", None),
        ("rediss://h/0?ssl_ca_certs=/a.crt&ssl_certfile=/b.crt&ssl_keyfile=/b.key&ssl_check_hostname=False", None),
        ("redis://[::1]:6379", None),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:hidden@/run/redis.sock?db=3", "redis+socket://:hidden@/run/redis.sock?virtual_host=3"),
    ],
)
def test_redis_urls_are_kept_and_spelled_for_the_broker(value: str, broker: str | None) -> None:
    settings = load_settings({"FINETUNE_REDIS_URL": value})
    assert settings.finetune_redis_url == value
    assert settings.broker_url == (broker or value)


def test_the_broker_may_be_another_server() -> None:
    assert load_settings({"FINETUNE_BROKER_URL": "redis://other/1"}).broker_url == "redis://other/1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("redis+cluster://hidden-word@h", "names a Redis Cluster, which Celery's Redis transport cannot use"),
        ("rediss+cluster://h", "names a Redis Cluster"),
        ("sentinel://hidden-word@h:26379", "names Sentinel, which is not asked here: give one name"),
        ("sentinel://:hidden-word@h:26379;sentinel://i:26379", "names Sentinel"),
        ("redis+sentinel://h", "names Sentinel"),
        ("amqp://guest:hidden-word@h", "should start with redis://"),
        ("REDIS://h:1/0", "should start with redis://"),
        ("redis:localhost", "should name a host"),
        ("redis:///0", "should name a host"),
        ("redis://redis..internal:6379/0", "should name a host"),
        (f"redis://{'hidden-word' * 6}:6379/0", "should name a host"),
        ("redis://h/jobs", "should end in a database number"),
        ("redis://:hidden-word/slash@h:1/0", "cannot be read as a URL"),
        ("redis://default:hidden-word@t/1@127.0.0.1:39931/0", "has an @ after its host: percent-encode"),
        ("redis://h:0/0", "should not have port 0"),
        ("unix://", "should name a socket file"),
        ("unix://run/redis.sock", "should name a socket file"),
        ("redis://h:1?db=3", "should end in a database number"),
        ("redis://h:1/0?ssl_cert_reqs=none", "should end in a database number"),
        ("rediss://h:1/0?ssl_cert_reqs=none&db=hidden-word", "should end in a database number"),
        # Here redis-py makes a number or a list, and kombu a text: a job would be stored, and Celery then fail.
        ("rediss://h:1/0?ssl_min_version=771", "should end in a database number"),
        ("rediss://h:1/0?ssl_include_verify_flags=VERIFY_X509_STRICT", "should end in a database number"),
        ("rediss://h:1/0?ssl_cert_reqs=CERT_NONE", "should end in a database number"),  # kombu alone takes it
        ("rediss://h:1/0?ssl_ca_cert=/hidden-word", "should end in a database number"),
        ("unix:///run/redis.sock?db=hidden-word", "should name a socket file"),
        ("unix:///run/redis.sock?db=0&timeout=3", "should name a socket file"),
    ],
)
@pytest.mark.parametrize("name", ["FINETUNE_REDIS_URL", "FINETUNE_BROKER_URL"])
def test_other_servers_are_refused_without_being_shown(name: str, value: str, expected: str) -> None:
    problem = problem_of({name: value})
    assert problem.startswith(f"{name} (given): {expected}")
    assert "hidden-word" not in problem


@pytest.mark.parametrize("value", ["file://./var/x", "file:///srv/x", "s3://bucket", "s3://bucket/a/b", "az://x"])
def test_storage_urls_name_a_place(value: str) -> None:
    assert load_settings({"FINETUNE_ARTIFACT_URL": value}).finetune_artifact_url == value


@pytest.mark.parametrize(
    "value",
    [
        *("var/x", "/srv/x", "file://", "s3:///", "s3://key:hidden-word@bucket"),
        *("s3:/x", "file:/x", "file://srv/x", "memory://x", "https://host/x"),  # a worker would end with them
    ],
)
def test_other_storage_urls_are_refused(value: str) -> None:
    problem = problem_of({"FINETUNE_STAGING_URL": value})
    assert problem.startswith("FINETUNE_STAGING_URL (given): should")
    assert "hidden-word" not in problem


def test_dataset_buckets_are_urls() -> None:
    settings = load_settings({"FINETUNE_DATASET_BUCKETS": "s3://a gs://b/sets/ az://c"})
    assert settings.finetune_dataset_buckets == ("s3://a", "gs://b/sets/", "az://c")


@pytest.mark.parametrize("value", ["my-bucket", "s3://a my-bucket", "S3://a", "s3:///sets", "s3://k:hidden-word@b"])
def test_other_dataset_buckets_are_refused(value: str) -> None:  # they would match no dataset, and nobody would know
    problem = problem_of({"FINETUNE_DATASET_BUCKETS": value})
    assert problem.startswith("FINETUNE_DATASET_BUCKETS (given): should")
    assert "hidden-word" not in problem


@pytest.mark.parametrize("value", ["https://files.example.com", "h:443", "*.example.com", "a.example,b.example"])
def test_what_is_no_host_alone_is_refused(value: str) -> None:  # it would match no dataset, either
    assert load_settings({"FINETUNE_DATASET_HOSTS": "a.example 127.0.0.1"}).finetune_dataset_hosts
    assert problem_of({"FINETUNE_DATASET_HOSTS": value}).startswith("FINETUNE_DATASET_HOSTS (given): should be")


def test_dataset_roots_are_written_like_a_path_variable() -> None:
    settings = load_settings({"FINETUNE_DATASET_ROOTS": os.pathsep.join(["/srv/a", " ", "b"])})
    assert settings.finetune_dataset_roots == (Path("/srv/a"), Path.cwd() / "b")


def test_the_refusal_of_sentinel_leads_to_a_page() -> None:
    (page,) = re.findall(r"docs/[\w/-]+\.md", problem_of({"FINETUNE_REDIS_URL": "sentinel://h"}))
    assert (Path(__file__).resolve().parents[2] / page).is_file()
