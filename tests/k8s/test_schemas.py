"""Every manifest is what the API server takes: no field misspelt, none of a wrong type."""

from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from k8s.conftest import K8S, Manifest, Rendered, kustomize
from k8s.crds import SCHEMAS

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


def test_flower_can_be_made_to_keep_what_it_saw(tmp_path: Path) -> None:
    component = K8S / "components" / "flower-persistent"
    # Paths in a kustomization are relative to it.
    up = Path(*[".."] * (len(tmp_path.resolve().parts) - 1))
    own = {
        "resources": [str(up / (K8S / "overlays" / "prod").relative_to("/"))],
        "components": [str(up / component.relative_to("/"))],
        "namespace": "finetune",
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
    found = Rendered("own", kustomize(tmp_path))
    for manifest in found.manifests:
        check(manifest)
    container = found.containers["finetune-flower/flower"]
    assert "--db=/var/lib/flower/flower" in container["args"]
    assert "/var/lib/flower" in {mount["mountPath"] for mount in container["volumeMounts"]}
