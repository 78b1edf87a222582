"""Wrap the Prometheus alerts of ops/monitoring as the Prometheus operator takes them.

    python -m ops.k8s.prometheus_rule [--check]

With `--check` it writes nothing and says whether ops/k8s/components/monitoring/alerts.yaml differs.
"""

import sys

import yaml
from ops.generated import ROOT, main

OPS = ROOT / "ops"
SOURCE = OPS / "monitoring" / "alerts.yaml"
TARGET = OPS / "k8s" / "components" / "monitoring" / "alerts.yaml"

NAMESPACE = "finetune"
"""The namespace of the overlay with the alerts, as a label of each alert. The Prometheus operator sends an
AlertmanagerConfig only alerts with the label of its own namespace, and the expressions, which take the max over all
gateways, drop that label."""

HEAD = "# Generated from ops/monitoring/alerts.yaml by ops/k8s/prometheus_rule.py.\n"


def prometheus_rule() -> str:
    """Return the manifest."""
    spec = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    for group in spec["groups"]:
        for rule in group["rules"]:
            rule["labels"]["namespace"] = NAMESPACE
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "finetune"},
        "spec": spec,
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=110)
    return HEAD + text


if __name__ == "__main__":
    sys.exit(main({TARGET: prometheus_rule()}))
