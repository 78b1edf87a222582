"""Wrap the Prometheus alerts of ops/monitoring as the Prometheus operator takes them.

python ops/k8s/prometheus_rule.py           # write ops/k8s/components/monitoring/alerts.yaml
python ops/k8s/prometheus_rule.py --check   # exit with 1 if it differs
"""

import sys
from pathlib import Path

import yaml

OPS = Path(__file__).resolve().parents[1]
SOURCE = OPS / "monitoring" / "alerts.yaml"
TARGET = OPS / "k8s" / "components" / "monitoring" / "alerts.yaml"

HEAD = "# Generated from ops/monitoring/alerts.yaml by ops/k8s/prometheus_rule.py.\n"


def prometheus_rule() -> str:
    """Return the manifest."""
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "finetune"},
        "spec": yaml.safe_load(SOURCE.read_text(encoding="utf-8")),
    }
    text: str = yaml.safe_dump(manifest, sort_keys=False, width=110)
    return HEAD + text


def main() -> None:
    """Write the manifest, or check the one that is there."""
    text = prometheus_rule()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET.name} differs from the alerts: run `python ops/k8s/prometheus_rule.py`")


if __name__ == "__main__":
    main()
