"""Who may reach whom: what no policy names is refused, and private addresses are reached by nobody."""

import pytest

from k8s.conftest import Rendered, render
from k8s.pods import WORKERS, chosen, port_names, reachable


def test_what_no_policy_names_is_refused_for_every_pod(overlay: Rendered) -> None:
    (everything,) = [
        each for each in overlay.of("NetworkPolicy") if each["metadata"]["name"] == "finetune-nothing-else"
    ]
    assert chosen(overlay, everything["spec"]["podSelector"]) == set(overlay.pods)
    assert set(everything["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert not {"ingress", "egress"} & everything["spec"].keys()
    for policy in overlay.of("NetworkPolicy"):
        names = chosen(overlay, policy["spec"]["podSelector"])
        assert names, policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                assert all(port["port"] in port_names(overlay.pods[name]) for name in names)


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "fd00::1"]
)
def test_nothing_reaches_a_private_address_by_https(address: str) -> None:
    assert not reachable(render("prod"), address, 443)


def test_public_addresses_are_reached_by_those_that_need_them() -> None:
    for address in ("1.1.1.1", "2606:4700::1111"):
        assert reachable(render("prod"), address, 443) == {*WORKERS, "finetune-gateway"}
