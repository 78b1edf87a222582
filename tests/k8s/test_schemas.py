"""Every manifest is what the API server takes: no field misspelt, none of a wrong type."""

import re
import textwrap
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from k8s.conftest import K8S, ROOT, Manifest, Rendered, kustomize, render
from k8s.crds import SCHEMAS
from k8s.pods import WORKERS, reachable

VERSION = "1.37"


def check(manifest: Manifest) -> None:
    schema = SCHEMAS.get(manifest["kind"])
    if schema is None:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    else:
        jsonschema.validate(manifest, schema)


def test_every_manifest_fits_its_schema(overlay: Rendered) -> None:
    assert len(overlay.manifests) > 10
    for manifest in overlay.manifests:
        check(manifest)


def test_a_misspelt_field_does_not() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "dta": {}})


def with_component(folder: Path, *names: str, resources: tuple[str, ...] = ()) -> Rendered:
    """Production and more components, or files of this folder, as an overlay of one's own in it."""
    # Paths in a kustomization are relative to it.
    up = Path(*[".."] * (len(folder.resolve().parts) - 1))
    own = {
        "resources": [str(up / (K8S / "overlays" / "prod").relative_to("/")), *resources],
        "components": [str(up / (K8S / "components" / name).relative_to("/")) for name in names],
        "namespace": "finetune",
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = Rendered("own", kustomize(folder))
    for manifest in found.manifests:
        check(manifest)
    return found


def test_spans_may_go_where_they_are_said_to_go(tmp_path: Path) -> None:
    found = with_component(tmp_path, "tracing")
    collector = urlsplit(found.settings["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert (collector.hostname or "").split(".")[1:] == ["observability"]
    policy = found.get("NetworkPolicy", "finetune-tracing")["spec"]
    [rule] = policy["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": collector.port}]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]
    [pods] = policy["podSelector"]["matchExpressions"]
    assert set(pods["values"]) == {*WORKERS, "finetune-gateway"}
    assert found.settings["FINETUNE_ARTIFACT_URL"]  # the others are still there


def test_flower_can_be_made_to_keep_what_it_saw(tmp_path: Path) -> None:
    found = with_component(tmp_path, "flower-persistent")
    container = found.containers["finetune-flower/flower"]
    assert "--db=/var/lib/flower/flower" in container["args"]
    assert "/var/lib/flower" in {mount["mountPath"] for mount in container["volumeMounts"]}


def rule_of_the_guide(name: str) -> str:
    """Return a NetworkPolicy that docs/kubernetes.md gives."""
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    rules = [textwrap.dedent(each) for each in re.findall(r"^ *```yaml\n(.*?)^ *```$", guide, re.MULTILINE | re.DOTALL)]
    (found,) = [each for each in rules if f"\n  name: {name}\n" in each]
    return found


def test_the_rule_that_the_guide_gives_for_a_dns_cache_on_the_nodes_lets_every_pod_ask_it(tmp_path: Path) -> None:
    (tmp_path / "dns.yaml").write_text(rule_of_the_guide("finetune-node-dns"))
    found = with_component(tmp_path, resources=("dns.yaml",))
    assert not reachable(render("prod"), "169.254.20.10", 53)
    assert reachable(found, "169.254.20.10", 53) == set(found.pods)
    assert not reachable(found, "169.254.169.254", 53)  # the cloud's own, with the node's rights


@pytest.mark.parametrize(("address", "port"), [("169.254.169.254", 80), ("169.254.169.252", 988)])
def test_the_rule_that_the_guide_gives_for_rights_of_the_node_lets_those_ask_that_use_the_store(
    address: str, port: int, tmp_path: Path
) -> None:
    (tmp_path / "rights.yaml").write_text(rule_of_the_guide("finetune-node-rights"))
    found = with_component(tmp_path, resources=("rights.yaml",))
    assert not reachable(render("prod"), address, port)
    assert reachable(found, address, port) == {*WORKERS, "finetune-gateway"}
    assert not reachable(found, "169.254.169.1", port)
