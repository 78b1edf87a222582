"""The pods of the manifests: which a selector chooses, their ports and options, and whom they may reach."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

from k8s.conftest import Manifest, Rendered

WORKERS = ("finetune-worker", "finetune-worker-transfer")


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector, of matchLabels and In, takes these labels."""
    plain = all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
    return plain and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def chosen(overlay: Rendered, selector: Mapping[str, Any]) -> set[str]:
    """Return the Deployments whose pods are selected."""
    return {name for name, pod in overlay.pods.items() if selects(selector, pod["metadata"]["labels"])}


def port_names(pod: Manifest) -> set[str]:
    return {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}


def reachable(overlay: Rendered, address: str, port: int) -> set[str]:
    """Return the Deployments that may open connections to this address and port."""
    found: set[str] = set()
    for policy in overlay.of("NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if any(each["port"] == port for each in rule["ports"]) and any(holds(peer, address) for peer in rule["to"]):
                found |= chosen(overlay, policy["spec"]["podSelector"])
    return found


def holds(peer: Mapping[str, Any], address: str) -> bool:
    block = peer.get("ipBlock")
    return block is not None and inside([block["cidr"]], address) and not inside(block.get("except", []), address)


def inside(networks: Iterable[str], address: str) -> bool:
    # An address is in no network of the other version.
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)


def options(container: Manifest) -> dict[str, str]:
    """Return the short options of a worker's command line."""
    words = container["args"]
    return {words[at]: words[at + 1] for at in range(len(words) - 1) if re.fullmatch("-[A-Za-z]", words[at])}
