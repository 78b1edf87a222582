"""The Dockerfile and the Compose file, held against the settings. `make image-test` builds and runs them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_queue.settings import Settings, describe, load_settings

DOCKER = Path(__file__).resolve().parents[2] / "docker"
OURS = {"loopback", "sandbox", "worker", "gateway", "flower"}
SERVE = OURS - {"loopback"}


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def targets() -> set[str]:
    return set(re.findall(r"^FROM \S+ AS (\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))


def environment(service: dict[str, Any]) -> set[str]:
    found = service.get("environment", [])
    return set(found)


def interpolated(text: str, shell: dict[str, str]) -> str:
    """Return what Compose makes of a value in a settings file."""
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda found: shell.get(found[1]) or found[2] or "", text)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_each_service_of_ours_is_an_image_of_the_dockerfile(compose: Any) -> None:
    assert set(compose["services"]) == {"valkey", *OURS}
    for name in SERVE:
        assert compose["services"][name]["build"]["target"] == name
        assert name in targets()
    built = [service["image"] for service in compose["services"].values() if "build" in service]
    assert len(set(built)) == len(built)  # two builds of one image, at once, would meet
    assert compose["services"]["loopback"]["image"] == compose["services"]["valkey"]["image"]


def test_the_worker_keeps_its_network_when_the_sandbox_is_restarted(compose: Any) -> None:
    services = compose["services"]
    assert {name for name in services if "network_mode" in services[name]} == {"sandbox", "worker"}
    for name in ("sandbox", "worker"):
        assert services[name]["network_mode"] == "service:loopback"
        assert "ports" not in services[name]  # they belong to the namespace
    holder = services["loopback"]
    assert (holder["entrypoint"], holder["command"], holder["init"]) == (["sleep", "infinity"], [], True)
    assert holder["user"] not in {"0", "0:0"}
    assert "env_file" not in holder
    (port,) = re.findall(r'^CMD \[.*"--port=(8900)"\]', (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert holder["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_only_the_worker_waits_for_the_sandbox(compose: Any) -> None:
    waits = {name: set(compose["services"][name].get("depends_on", {})) for name in OURS}
    assert waits == {
        "loopback": set(),
        "sandbox": set(),
        "worker": {"valkey", "sandbox"},
        "gateway": {"valkey"},
        "flower": {"valkey"},
    }


def test_nothing_of_ours_runs_as_root_or_may_write_but_to_its_volume(compose: Any) -> None:
    assert "USER 10001:10001" in (DOCKER / "Dockerfile").read_text()
    for name in OURS:
        service = compose["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_flower_shows_and_changes_nothing_of_files_or_tasks(compose: Any) -> None:
    flower = compose["services"]["flower"]
    assert flower["volumes"] == []
    assert flower["environment"]["FLOWER_READ_ONLY"] == "true"
    assert flower["environment"]["TMPDIR"] in flower["tmpfs"]  # the image's folder for it is on the volume
    for name in ("worker", "gateway"):
        assert compose["services"][name]["volumes"] == ["data:/var/lib/finetune"]


def test_other_images_are_pinned_and_ports_are_for_this_machine(compose: Any) -> None:
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+\S*", compose["services"]["valkey"]["image"])
    base = re.search(r"^ARG BASE_IMAGE=(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base[1])
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_valkey_keeps_what_it_is_told(compose: Any) -> None:
    command = compose["services"]["valkey"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--save") + 1] == ""  # a snapshot that fails has it refuse every write


def test_a_stopping_worker_has_its_time(compose: Any) -> None:
    grace = int(compose["services"]["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= Settings().finetune_shutdown_timeout + Settings().segmind_call_timeout + 5
    for page in ("docker", "kubernetes", "runbook"):
        assert re.search(rf"\b{grace} s\b", (DOCKER.parent / "docs" / f"{page}.md").read_text()), page
    for name in ("worker", "worker-transfer"):  # as on Kubernetes, where tests/k8s looks at each overlay
        manifest = yaml.safe_load((DOCKER.parent / "ops" / "k8s" / "base" / f"{name}.yaml").read_text())
        assert manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace


def values_of(name: str) -> dict[str, str]:
    lines = (DOCKER / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(
    ("paid", "shell", "account"),
    [
        ("", {}, ("sandbox-key", "50/60", None)),
        ("-paid", {"SEGMIND_API_KEY": "SG_0123456789abcdef"}, ("SG_0123456789abcdef", "5/60", None)),
        (
            "-paid",
            {"SEGMIND_API_KEY": "SG_76543210", "SEGMIND_RATE_LIMIT": "50/60", "SEGMIND_MAX_SUBMITS_PER_DAY": "20"},
            ("SG_76543210", "50/60", 20),
        ),
    ],
)
def test_the_settings_files_hold_settings_that_load(
    paid: str, shell: dict[str, str], account: tuple[str, str, int | None], compose: Any
) -> None:
    values = values_of(f"segmind{paid}.env")
    assert load_settings(values).segmind_is_loopback == (not paid)
    own = {name: interpolated(text, shell) for name, text in values_of(f"worker{paid}.env").items()}
    [found] = load_settings(values | own, worker=True).accounts.values()
    assert (found.api_key.get_secret_value(), str(found.rate_limit), found.max_submits_per_day) == account
    assert {*values, *own} <= {row.env for row in describe()}
    for service in compose["services"].values():
        ours = {each for each in environment(service) if not each.startswith(("FLOWER_", "OTEL_", "TMPDIR"))}
        assert ours <= {row.env for row in describe()}


def test_no_job_of_the_sandbox_waits_where_a_worker_of_the_real_api_looks() -> None:
    sandbox, real = (values_of(name)["FINETUNE_REDIS_URL"] for name in ("segmind.env", "segmind-paid.env"))
    assert sandbox != real
    assert sandbox.rpartition("/")[0] == real.rpartition("/")[0]  # one server, two databases


def test_all_that_records_spans_is_told_where_they_go(compose: Any) -> None:
    told = {name for name in OURS if "OTEL_EXPORTER_OTLP_ENDPOINT" in environment(compose["services"][name])}
    assert told == {"worker", "gateway"}


def test_a_client_that_may_only_read_is_one_in_the_container_too(compose: Any) -> None:
    gateway = environment(compose["services"]["gateway"])
    assert {"FINETUNE_GATEWAY_TOKENS", "FINETUNE_GATEWAY_READERS"} <= gateway  # without the second it could submit


def test_only_the_worker_is_given_the_key(compose: Any) -> None:
    both, own = "segmind${SEGMIND_API_KEY:+-paid}.env", "worker${SEGMIND_API_KEY:+-paid}.env"
    assert compose["services"]["worker"]["env_file"] == [both, own]
    for name in SERVE - {"worker", "sandbox"}:
        assert compose["services"][name]["env_file"] == both
    for name in OURS:
        assert "SEGMIND_API_KEY" not in environment(compose["services"][name])
    for name in ("segmind.env", "segmind-paid.env"):
        assert "SEGMIND_API_KEY" not in values_of(name)
