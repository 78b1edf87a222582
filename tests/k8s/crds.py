"""JSON schemas of the custom resources that the manifests use: of each the fields that we set, and no others.

Written from the CRDs of KEDA (scaledobjects, triggerauthentications) and of the Prometheus operator (servicemonitors,
prometheusrules).
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
DURATION: Schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}


def closed(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these fields alone."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def several(items: Schema) -> Schema:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "items": items, "minItems": 1}


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """Return the schema of a custom resource."""
    metadata = closed({"name": TEXT, "namespace": TEXT}, {"labels": LABELS, "annotations": LABELS})
    return closed({"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": metadata, "spec": spec})


_POLICY = closed(
    {"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": {**COUNT, "minimum": 1, "maximum": 1800}}
)
_RULES = closed(
    {"stabilizationWindowSeconds": {**COUNT, "maximum": 3600}, "policies": several(_POLICY)},
    {"selectPolicy": {"enum": ["Max", "Min", "Disabled"]}},
)
_METRICS_API = closed(
    {
        "url": {"type": "string", "pattern": "^http://[a-z0-9.-]+/"},
        "valueLocation": TEXT,
        "targetValue": {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?$"},
        "authMode": {"enum": ["apiKey", "basic", "tls", "bearer"]},
    }
)
_TRIGGER = closed(
    {
        "type": {"const": "metrics-api"},
        "metricType": {"enum": ["AverageValue", "Value"]},
        "metadata": _METRICS_API,
        "authenticationRef": closed({"name": TEXT}),
    }
)
_KEY = closed({"name": TEXT, "key": TEXT})
_RULE = closed(
    {"expr": TEXT}, {"alert": TEXT, "record": TEXT, "for": DURATION, "labels": LABELS, "annotations": LABELS}
)

SCHEMAS = {
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        closed(
            {
                "scaleTargetRef": closed({"name": TEXT}),
                "pollingInterval": COUNT,
                "minReplicaCount": COUNT,
                "maxReplicaCount": COUNT,
                "advanced": closed(
                    {
                        "horizontalPodAutoscalerConfig": closed(
                            {"behavior": closed({"scaleUp": _RULES, "scaleDown": _RULES})}
                        )
                    }
                ),
                "triggers": several(_TRIGGER),
            }
        ),
    ),
    "TriggerAuthentication": resource(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        closed({"secretTargetRef": several(closed({"parameter": TEXT, "name": TEXT, "key": TEXT}))}),
    ),
    "ServiceMonitor": resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        closed(
            {
                "selector": closed({"matchLabels": LABELS}),
                "endpoints": several(
                    closed(
                        {"port": TEXT, "path": TEXT, "interval": DURATION},
                        {"authorization": closed({"credentials": _KEY}), "honorLabels": {"type": "boolean"}},
                    )
                ),
            }
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        closed({"groups": several(closed({"name": TEXT, "rules": several(_RULE)}, {"interval": DURATION}))}),
    ),
}
