"""What no schema knows: that the parts of the manifests fit each other, the settings and our rules."""

import base64
import re
from collections.abc import Iterator
from typing import Any

import flower.options  # type: ignore[import-untyped] # noqa: F401 - declares Flower's options
import pytest
import yaml
from tornado.options import options as flower_options

from finetune_queue.gateway.gauges import GAUGES
from finetune_queue.gateway.metrics import OF_PROCESS
from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE
from finetune_queue.settings import Settings, describe, load_settings
from finetune_queue.store import COUNTED
from k8s.conftest import ROOT, Manifest, Rendered
from k8s.pods import WORKERS, chosen, options, port_names, selects
from monitoring.rules import ALERTS, DASHBOARD
from segmind_sandbox.settings import DEFAULT_API_KEY

OURS = ("FINETUNE_", "SEGMIND_")
OPERATOR_S = {"container", "endpoint", "instance", "job", "namespace", "node", "pod", "service"}
"""Labels that the Prometheus operator gives what it scrapes."""
JOB = re.compile(r'\bjob\s*(?:=~|!~|!=|=)\s*\\?"([^"\\]*)')
SECRET_SETTINGS = {row.env for row in describe() if row.secret}
SAMPLES = {
    "FINETUNE_REDIS_URL": "redis://redis.example:6379/0",
    "SEGMIND_API_KEY": "SG_0123456789abcdef",
    "FINETUNE_GATEWAY_TOKENS": "{}",
}


# one manifest and another


def test_each_deployment_selects_its_own_pods_alone(overlay: Rendered) -> None:
    for deployment in overlay.of("Deployment"):
        name = deployment["metadata"]["name"]
        assert chosen(overlay, deployment["spec"]["selector"]) == {name}


def test_each_service_leads_to_one_deployment_and_a_port_of_it(overlay: Rendered) -> None:
    for service in overlay.of("Service"):
        (name,) = chosen(overlay, {"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names(overlay.pods[name])


def test_each_disruption_budget_lets_one_go_at_a_time(overlay: Rendered) -> None:
    budgets = overlay.of("PodDisruptionBudget")
    held = [chosen(overlay, budget["spec"]["selector"]) for budget in budgets]
    assert all(len(names) == 1 for names in held)
    assert set().union(*held) == {name for name in overlay.pods if name in {*WORKERS, "finetune-gateway"}}
    assert all(budget["spec"]["maxUnavailable"] == 1 for budget in budgets)
    # While Redis is away no worker is ready: without this a node could then not be drained.
    assert all(budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow" for budget in budgets)


def test_a_folder_for_temporary_files_keeps_no_node_from_being_given_back(everything: Rendered) -> None:
    for name, pod in everything.pods.items():
        local = {volume["name"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
        may_go = (
            pod["metadata"]
            .get("annotations", {})
            .get("cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes", "")
        )
        assert set(filter(None, may_go.split(","))) == local, name


def test_pods_spread_over_zones_and_nodes_by_their_own_label(everything: Rendered) -> None:
    for name in (*WORKERS, "finetune-gateway"):
        spread = everything.pods[name]["spec"]["topologySpreadConstraints"]
        assert {each["topologyKey"] for each in spread} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert all(chosen(everything, each["labelSelector"]) == {name} for each in spread)


def test_each_monitor_reads_a_port_of_a_service(everything: Rendered) -> None:
    for monitor in everything.of("ServiceMonitor"):
        services = [
            service
            for service in everything.of("Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        assert len(services) == 1
        ports = {port["name"] for port in services[0]["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports


def test_labels_of_metrics_keep_their_names_beside_those_of_the_operator(everything: Rendered) -> None:
    ours = {label for metric in (*GAUGES, *COUNTED, *OF_PROCESS) for label in metric.labels}
    assert ours & OPERATOR_S == {"endpoint"}
    (endpoint,) = everything.get("ServiceMonitor", "finetune-gateway")["spec"]["endpoints"]
    assert endpoint.get("honorLabels"), "without it ours would be `exported_endpoint`, and no query find it"


def test_what_prometheus_is_to_take_has_the_label_that_it_chooses_by_and_nothing_else_has(everything: Rendered) -> None:
    operators = everything.of("ServiceMonitor", "PrometheusRule")
    assert len(operators) == 3
    for manifest in everything.manifests:
        labels = manifest["metadata"].get("labels", {})
        assert (labels.get("release") == "kube-prometheus-stack") == (manifest in operators), manifest["metadata"][
            "name"
        ]
    assert "release" not in str([service["spec"]["selector"] for service in everything.of("Service")])


def test_an_alertmanager_config_of_the_namespace_takes_the_alerts(everything: Rendered) -> None:
    (rules,) = everything.of("PrometheusRule")
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            assert rule["labels"].get("namespace") == rules["metadata"]["namespace"], rule["alert"]


def test_the_jobs_that_alerts_and_dashboard_ask_for_are_those_of_the_scrapes(everything: Rendered) -> None:
    asked = {job for file in (ALERTS, DASHBOARD) for job in JOB.findall(file.read_text(encoding="utf-8"))}
    assert asked
    prometheus = yaml.safe_load(ALERTS.with_name("prometheus.yaml").read_text(encoding="utf-8"))
    assert asked <= {scrape["job_name"] for scrape in prometheus["scrape_configs"]}
    # The operator calls a job like its Service; no monitor has a jobLabel, and k8s.crds knows none.
    read = {
        service["metadata"]["name"]
        for service in everything.of("Service")
        for monitor in everything.of("ServiceMonitor")
        if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
    }
    assert asked <= read


def test_every_config_map_and_account_that_is_named_is_there(overlay: Rendered) -> None:
    maps = {each["metadata"]["name"] for each in overlay.of("ConfigMap")}
    accounts = {each["metadata"]["name"]: each for each in overlay.of("ServiceAccount")}
    for container in overlay.containers.values():
        assert {each["configMapRef"]["name"] for each in container.get("envFrom", []) if "configMapRef" in each} <= maps
    for pod in overlay.pods.values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        account = pod["spec"].get("serviceAccountName")
        assert account is None or accounts[account]["automountServiceAccountToken"] is False


# settings


def test_every_setting_is_one_and_can_be_read(overlay: Rendered) -> None:
    for name, container in overlay.containers.items():
        plain = {each["name"]: each.get("value") for each in container.get("env", [])}
        given = {**(overlay.settings if "envFrom" in container else {}), **plain}
        ours = {key: value for key, value in given.items() if key.startswith(OURS)}
        assert not SECRET_SETTINGS & ours.keys(), name
        if ours:
            only = {key: value for key, value in SAMPLES.items() if not (key == "SEGMIND_API_KEY" and "flower" in name)}
            load_settings({**ours, **only})


def test_secrets_lie_where_the_settings_look_for_them(overlay: Rendered) -> None:
    folder = overlay.settings["FINETUNE_SECRETS_DIR"]
    for name in (*WORKERS, "finetune-gateway", "finetune-flower"):
        if name not in overlay.pods:
            continue
        spec = overlay.pods[name]["spec"]
        (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == folder]
        (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
        assert mount["readOnly"] is True
        assert volume["projected"]["sources"][0]["secret"]["name"].startswith("finetune-redis")  # dev: and a hash


def mounted(pod: Manifest) -> dict[str, list[str] | None]:
    """Return the Secrets that a pod finds as files, and which of their keys; None: all."""
    sources = [s["secret"] for v in pod["spec"]["volumes"] for s in v.get("projected", {}).get("sources", [])]
    return {each["name"]: [item["key"] for item in each["items"]] if "items" in each else None for each in sources}


def test_only_workers_have_a_key_of_segmind(everything: Rendered) -> None:
    for name, pod in everything.pods.items():
        assert ("finetune-worker" in mounted(pod)) == (name in WORKERS)


def test_one_pod_has_what_the_commands_about_the_webhook_need_and_no_token_of_the_gateway(overlay: Rendered) -> None:
    def of_gateway(name: str) -> list[list[str] | None]:
        pod = overlay.pods.get(name)
        return [] if pod is None else [keys for found, keys in mounted(pod).items() if "finetune-gateway" in found]

    assert of_gateway("finetune-worker") == [["FINETUNE_HOOK_SECRET"]]
    assert of_gateway("finetune-worker-transfer") == []


def test_a_secret_is_written_nowhere(overlay: Rendered) -> None:
    if overlay.name != "dev":
        assert overlay.of("Secret") == []
        return
    written = {key: value for secret in overlay.of("Secret") for key, value in decoded(secret).items()}
    assert written["SEGMIND_API_KEY"] == DEFAULT_API_KEY  # the sandbox's, which every sandbox has
    assert overlay.settings["SEGMIND_BASE_URL"].startswith("http://127.0.0.1:")
    assert set(written) == {
        *("FINETUNE_REDIS_URL", "SEGMIND_API_KEY", "FINETUNE_GATEWAY_TOKENS"),
        *("basic-auth", "cookie-secret"),
    }


def decoded(secret: Manifest) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def test_the_guide_makes_every_secret_with_the_keys_that_are_asked_for(everything: Rendered) -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    made = {
        name: set(re.findall(r"--from-(?:literal|file)=([A-Za-z_-]+)=", body))
        for name, body in re.findall(r"create secret generic (\S+)((?: \\\n|[^\n])*)", guide)
    }
    asked: dict[str, set[str]] = {}
    for name, key in references(everything.manifests):
        asked.setdefault(name, set()).update(filter(None, [key]))
    assert made.keys() == asked.keys()
    for name, keys in asked.items():
        assert keys <= made[name]
    files = made["finetune-redis"] | made["finetune-worker"] | made["finetune-gateway"]
    assert files <= {row.env for row in describe()}


@pytest.mark.parametrize("page", ["kubernetes", "runbook"])
def test_what_commands_of_a_page_name_is_there(page: str, everything: Rendered) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    commands = "\n".join(line for line in text.splitlines() if "kubectl" in line or "deployment/" in line)
    assert set(re.findall(r"deployment/([\w-]+)", commands)) <= set(everything.pods)
    services = {each["metadata"]["name"]: each["spec"]["ports"] for each in everything.of("Service")}
    for name, port in re.findall(r"service/([\w-]+)(?: \d+:(\d+))?", commands):
        assert not port or int(port) in {each["port"] for each in services[name]}
    asked = set(references(everything.manifests))
    for name, key in re.findall(r"get secret ([\w-]+) -o jsonpath='\{\.data\.(\w+)\}'", commands):
        assert {(name, key), (name, None)} & asked, name
    for name, container in re.findall(r"deployment/([\w-]+) -c ([\w-]+)", commands):
        assert f"{name}/{container}" in everything.containers


def references(node: Any) -> Iterator[tuple[str, str | None]]:
    """Yield the Secrets that manifests name, and which key of each, if they say."""
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name in {"secretKeyRef", "secretRef", "secret", "credentials"} and "name" in value:
                yield value["name"], value.get("key")
                yield from ((value["name"], item["key"]) for item in value.get("items", []))
            elif name == "secretTargetRef":
                yield from ((each["name"], each["key"]) for each in value)
            else:
                yield from references(value)


# how it runs


def test_workers_are_asked_by_their_own_port_and_nothing_runs_a_celery_command(overlay: Rendered) -> None:
    for name, container in overlay.containers.items():
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert "celery" not in container[kind].get("exec", {}).get("command", []), name
        if not name.endswith("/worker"):
            continue
        (port,) = [each["value"] for each in container["env"] if each["name"] == "FINETUNE_PROBE_PORT"]
        assert [(each["name"], each["containerPort"]) for each in container["ports"]] == [("probes", int(port))]
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "probes"}
        assert container["startupProbe"]["httpGet"] == {"path": "/livez", "port": "probes"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "probes"}
        # A probe pings two servers, each with 1 s to connect and 1 s to answer.
        assert all(container[kind]["timeoutSeconds"] > 4 for kind in ("livenessProbe", "readinessProbe"))


def test_a_gateway_stays_in_its_service_while_redis_is_away(overlay: Rendered) -> None:
    container = overlay.containers["finetune-gateway/gateway"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": "/livez", "port": "http"}, kind


def test_a_stop_has_the_time_that_it_may_take(overlay: Rendered) -> None:
    for name in WORKERS:
        if name not in overlay.pods:
            continue
        spec = overlay.pods[name]["spec"]
        container = spec["containers"][0]
        settings = load_settings({key: value for key, value in overlay.settings.items() if key.startswith(OURS)})
        hook = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = hook + settings.finetune_shutdown_timeout + settings.segmind_call_timeout
        assert spec["terminationGracePeriodSeconds"] >= needed + 5, name


def test_the_grace_fits_the_defaults_of_the_settings(everything: Rendered) -> None:
    assert float(everything.settings["FINETUNE_SHUTDOWN_TIMEOUT"]) == Settings().finetune_shutdown_timeout


def test_the_gateway_is_out_of_its_service_before_it_stops(overlay: Rendered) -> None:
    from finetune_queue.gateway.server import GRACE

    spec = overlay.pods["finetune-gateway"]["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook > 0
    assert spec["terminationGracePeriodSeconds"] >= hook + GRACE + 5


def test_both_queues_have_workers(overlay: Rendered) -> None:
    queues: list[str] = []
    for name, container in overlay.containers.items():
        if name.endswith("/worker"):
            queues += options(container)["-Q"].split(",")
            assert options(container)["-P"] == "threads"
    assert sorted(queues) == sorted([QUEUE, TRANSFER_QUEUE])


def test_flower_is_alone_has_a_password_and_may_change_nothing(overlay: Rendered) -> None:
    deployment = overlay.get("Deployment", "finetune-flower")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    container = overlay.containers["finetune-flower/flower"]
    flags = [word.removeprefix("--").partition("=")[0] for word in container["args"] if word.startswith("--")]
    env = {each["name"]: each for each in container["env"]}
    variables = [name.removeprefix("FLOWER_").lower() for name in env]
    assert set(flags) | set(variables) <= {name.replace("-", "_") for name in flower_options}
    assert env["FLOWER_READ_ONLY"]["value"] == "true"
    assert {name for name, each in env.items() if "valueFrom" in each} == {"FLOWER_BASIC_AUTH", "FLOWER_COOKIE_SECRET"}


def test_every_container_may_do_nothing_beyond_its_work(overlay: Rendered) -> None:
    for pod in overlay.pods.values():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 1000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(pod["spec"].get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        assert all("hostPath" not in volume for volume in pod["spec"]["volumes"])
    for name, container in overlay.containers.items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
    for namespace in overlay.of("Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
