"""The parts of other projects' custom resources that our manifests use, read off their documentation; strict.

KEDA 2 (keda.sh/v1alpha1), Gateway API v1, Prometheus operator (monitoring.coreos.com/v1).
"""

from __future__ import annotations

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }


def _list(of: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_DURATION = {"type": "string", "pattern": "^([0-9]+(h|m|s|ms))+$"}


def _custom(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _object(("name",), name=_TEXT, namespace=_TEXT, labels=_LABELS)
    return _object(apiVersion={"const": version}, kind={"const": kind}, metadata=metadata, spec=spec)


CUSTOM = {
    "ScaledObject": _custom(
        "keda.sh/v1alpha1",
        "ScaledObject",
        _object(
            ("scaleTargetRef", "triggers"),
            scaleTargetRef=_object(("name",), name=_TEXT, kind=_TEXT, apiVersion=_TEXT),
            minReplicaCount=_COUNT,
            maxReplicaCount=_COUNT,
            pollingInterval=_COUNT,
            cooldownPeriod=_COUNT,
            advanced=_object(
                horizontalPodAutoscalerConfig=_object(
                    behavior=_object(
                        scaleDown=_object(
                            ("stabilizationWindowSeconds",),
                            stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
                            policies=_list(
                                _object(type={"enum": ["Pods", "Percent"]}, value=_COUNT, periodSeconds=_COUNT)
                            ),
                        )
                    )
                )
            ),
            triggers=_list(
                _object(
                    type={"const": "redis"},
                    # KEDA takes every value of a trigger's metadata as text.
                    metadata=_object(listName=_TEXT, listLength=_TEXT, databaseIndex=_TEXT),
                    authenticationRef=_object(name=_TEXT),
                )
            ),
        ),
    ),
    "TriggerAuthentication": _custom(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        _object(secretTargetRef=_list(_object(parameter=_TEXT, name=_TEXT, key=_TEXT))),
    ),
    "HTTPRoute": _custom(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        _object(
            parentRefs=_list(_object(("name",), name=_TEXT, namespace=_TEXT, sectionName=_TEXT)),
            hostnames=_list(_TEXT),
            rules=_list(
                _object(
                    matches=_list(
                        _object(path=_object(type={"enum": ["Exact", "PathPrefix"]}, value={"pattern": "^/"}))
                    ),
                    backendRefs=_list(_object(name=_TEXT, port=_PORT)),
                    timeouts=_object(("request",), request=_DURATION, backendRequest=_DURATION),
                )
                | {"required": ["backendRefs"]}
            ),
        ),
    ),
    "PodMonitor": _custom(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        _object(
            selector=_object(
                ("matchLabels",),
                matchLabels=_LABELS,
                matchExpressions=_list(
                    _object(key=_TEXT, operator={"enum": ["In", "NotIn", "Exists"]}, values=_list(_TEXT))
                ),
            ),
            podMetricsEndpoints=_list(_object(port=_TEXT, path=_TEXT, interval=_DURATION)),
        ),
    ),
}
