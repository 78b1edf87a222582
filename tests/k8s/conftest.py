"""The manifests as a cluster would get them: each overlay rendered once, by the kustomize in kubectl or by itself."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "ops" / "k8s"
OVERLAYS = ("dev", "prod", "keda", "monitoring")

Manifest = dict[str, Any]


class Rendered:
    """The manifests of one overlay."""

    def __init__(self, name: str, manifests: list[Manifest]) -> None:
        self.name = name
        self.manifests = manifests

    def of(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] in kinds]

    def get(self, kind: str, name: str) -> Manifest:
        (found,) = [each for each in self.of(kind) if each["metadata"]["name"] == name]
        return found

    @property
    def pods(self) -> dict[str, Manifest]:
        """The pod templates by their Deployments' names."""
        return {each["metadata"]["name"]: each["spec"]["template"] for each in self.of("Deployment")}

    @property
    def containers(self) -> dict[str, Manifest]:
        """All containers, as DEPLOYMENT/CONTAINER."""
        return {
            f"{name}/{container['name']}": container
            for name, pod in self.pods.items()
            for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        }

    @property
    def settings(self) -> dict[str, str]:
        """The ConfigMap of settings."""
        (found,) = [each["data"] for each in self.of("ConfigMap")]
        return dict(found)


def kustomize(folder: Path) -> list[Manifest]:
    """Render a folder; skip the test where there is no program that can."""
    command = next(
        (words for words in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(words[0])), None
    )
    if command is None:
        pytest.skip("needs kubectl or kustomize on the PATH")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return list(yaml.load_all(done.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@cache
def render(name: str) -> Rendered:
    return Rendered(name, kustomize(K8S / "overlays" / name))


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Rendered:
    """Each overlay in turn."""
    return render(request.param)


@pytest.fixture
def everything() -> Rendered:
    """Production with all there is."""
    return render("monitoring")
