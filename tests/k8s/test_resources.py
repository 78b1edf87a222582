"""What pods ask for and may use: memory and disk that fit what the programs in them need."""

import re

from finetune_queue.messaging import TRANSFER_QUEUE
from finetune_worker.transfer.limits import TransferLimits
from k8s.conftest import Rendered, render
from k8s.pods import options


def test_every_container_says_what_it_needs(overlay: Rendered) -> None:
    for name, container in overlay.containers.items():
        resources = container["resources"]
        assert {"cpu", "memory", "ephemeral-storage"} <= resources["requests"].keys(), name
        assert {"memory", "ephemeral-storage"} <= resources["limits"].keys(), name
        assert "cpu" not in resources["limits"], name  # throttled loops would look stuck


GI = 2**30


def size(text: str) -> int:
    """Return the bytes that a quantity stands for."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 2**20, "Gi": GI}[unit]


def test_valkey_is_full_before_its_container_is() -> None:
    container = render("dev").containers["finetune-valkey/valkey"]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert given["--maxmemory-policy"] == "noeviction"
    most = int(given["--maxmemory"].removesuffix("mb")) * 2**20
    assert most <= size(container["resources"]["limits"]["memory"]) * 0.75


def test_who_checks_datasets_has_the_memory_for_it(overlay: Rendered) -> None:
    for name, container in overlay.containers.items():
        if name.endswith("/worker") and TRANSFER_QUEUE in options(container)["-Q"].split(","):
            # Eight checks at once took 1,390 MB, of which one alone takes up to 600: docs/capacity.md.
            assert size(container["resources"]["limits"]["memory"]) >= 2 * GI, name


def test_a_pod_is_not_put_out_for_a_folder_that_its_volume_lets_it_fill(overlay: Rendered) -> None:
    for name, pod in overlay.pods.items():
        volumes = [each["emptyDir"]["sizeLimit"] for each in pod["spec"]["volumes"] if "emptyDir" in each]
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        limits = [each["resources"]["limits"]["ephemeral-storage"] for each in containers]
        assert sum(map(size, volumes)) <= sum(map(size, limits)), name


def test_transfers_have_a_disk_that_holds_the_largest_file_for_each_thread(everything: Rendered) -> None:
    spec = everything.pods["finetune-worker-transfer"]["spec"]
    (container,) = spec["containers"]
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == everything.settings["TMPDIR"]]
    (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert "storageClassName" not in claim  # the cluster's own default
    needed = int(options(container)["-c"]) * TransferLimits().max_bytes
    assert size(claim["resources"]["requests"]["storage"]) > needed
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]  # a new volume is root's else
