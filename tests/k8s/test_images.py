"""The images that pods run: pinned, and built from docker/Dockerfile as the manifests take them."""

import json
import re
from importlib.metadata import entry_points

from k8s.conftest import ROOT, Manifest, Rendered


def test_images_are_pinned(overlay: Rendered) -> None:
    for name, container in overlay.containers.items():
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert tag, name
        assert tag != "latest", name


# the images, built from docker/Dockerfile

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
IMAGES = {f"finetune-queue-{name}" for name in ("worker", "gateway", "flower", "sandbox")}


def our_containers(overlay: Rendered) -> dict[str, Manifest]:
    """Return the containers that run an image of the Dockerfile, as DEPLOYMENT/CONTAINER."""
    ours = {
        name: each
        for name, each in overlay.containers.items()
        if each["image"].rpartition("/")[2].partition(":")[0] in IMAGES
    }
    assert len(ours) >= 3
    return ours


def test_each_image_is_a_target_that_starts_the_same_program(overlay: Rendered) -> None:
    starts = dict(re.findall(r'^FROM service AS (\w+)\n(?:.*\n)*?ENTRYPOINT \["(\w+)"', DOCKERFILE, re.MULTILINE))
    for name, container in our_containers(overlay).items():
        target = container["image"].rpartition("/")[2].partition(":")[0].removeprefix("finetune-queue-")
        program = re.sub(r"^python3$", "python", starts[target])  # a virtual environment has both
        assert container["command"] == [program], name


def test_flower_is_bounded_alike_in_its_image_and_on_kubernetes(overlay: Rendered) -> None:
    text = DOCKERFILE.replace("\\\n", "")
    (command,) = re.findall(r'^ENTRYPOINT (\[.*"flower"\])\nCMD (\[.*\])$', text, re.MULTILINE)
    program, *words = [word for part in command for word in json.loads(part)]
    container = overlay.containers["finetune-flower/flower"]
    assert [program] == container["command"]
    assert words == container["args"]


def test_every_program_is_one_that_the_image_s_packages_install(overlay: Rendered) -> None:
    assert re.search(r"^ENV PATH=/opt/finetune/bin:\$PATH", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^RUN python3 -m venv .*/opt/finetune$", DOCKERFILE, re.MULTILINE)
    installed = {
        "finetune-queue",
        *re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE),
    }
    scripts = {each.name for each in entry_points(group="console_scripts") if each.dist and each.dist.name in installed}
    for name, container in our_containers(overlay).items():
        assert container["command"][0] in {"python", *scripts}, name


def test_pods_run_as_the_user_that_the_image_has(overlay: Rendered) -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    for name in {each.partition("/")[0] for each in our_containers(overlay)}:
        context = overlay.pods[name]["spec"]["securityContext"]
        ids = (context["runAsUser"], context["runAsGroup"], context["fsGroup"])
        assert tuple(map(str, ids)) == (*user, user[1]), name


def test_temporary_files_lie_on_a_volume(overlay: Rendered) -> None:
    assert "TMPDIR=" in DOCKERFILE  # of the volume that Compose mounts
    for name, container in our_containers(overlay).items():
        plain = {each["name"]: each.get("value") for each in container.get("env", [])}
        folder = {**(overlay.settings if "envFrom" in container else {}), **plain}["TMPDIR"]
        writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
        assert folder in writable, name
