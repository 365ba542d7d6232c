"""One OpenAPI document of the gateway and of every service behind it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
from fastapi import FastAPI

from gateway.proxy import Upstreams
from gateway.routes import SERVICES, match
from shared.problems import (
    Forbidden,
    FourfoldError,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
    UpstreamUnavailable,
    problem_responses,
)

FRESH_SECONDS = 10.0
# What the gateway itself may answer on a path that it passes on.
_ADDED = problem_responses(Unauthenticated, Forbidden, PayloadTooLarge, RateLimited, UpstreamUnavailable)
_METHODS = ("get", "post", "put", "delete", "patch")


class MergedDocument:
    """The document, made again when it is older than FRESH_SECONDS; a service that is down is left out until then."""

    def __init__(self, app: FastAPI, upstreams: Upstreams) -> None:
        self._own = app.openapi
        self._upstreams = upstreams
        self._merged: dict[str, Any] | None = None
        self._made = 0.0

    async def get(self) -> dict[str, Any]:
        if self._merged is None or time.monotonic() - self._made > FRESH_SECONDS:
            documents = await asyncio.gather(*(self._fetch(name) for name in SERVICES))
            self._merged = merge(self._own(), dict(zip(SERVICES, documents, strict=True)))
            self._made = time.monotonic()
        return self._merged

    async def _fetch(self, service: str) -> dict[str, Any]:
        try:
            status, body = await self._upstreams.fetch(service, "/openapi.json")
            return orjson.loads(body) if status == 200 else {}
        except (FourfoldError, orjson.JSONDecodeError):
            return {}


def merge(own: dict[str, Any], services: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`own` with the proxied paths of each service's document.

    A service's schema keeps its name unless another has that name for something else; then it is prefixed.
    """
    merged: dict[str, Any] = orjson.loads(orjson.dumps(own))
    schemas: dict[str, Any] = merged.setdefault("components", {}).setdefault("schemas", {})
    for service, document in services.items():
        theirs: dict[str, Any] = document.get("components", {}).get("schemas", {})
        renamed = {name: f"{service}_{name}" for name, schema in theirs.items() if schemas.get(name, schema) != schema}
        text = orjson.dumps({"paths": document.get("paths", {}), "schemas": theirs}).decode()
        for old, new in renamed.items():
            text = text.replace(f'"#/components/schemas/{old}"', f'"#/components/schemas/{new}"')
        fixed: dict[str, Any] = orjson.loads(text)
        for name, schema in fixed["schemas"].items():
            schemas[str(renamed.get(name, name))] = schema
        for path, operations in fixed["paths"].items():
            concrete = path.replace("{model}", service)
            if match("POST", concrete) is None or path in merged["paths"]:
                continue
            merged["paths"][path] = operations
            for method in _METHODS:
                if method in operations:
                    responses: dict[str, Any] = operations[method].setdefault("responses", {})
                    if path.startswith("/v1/"):
                        for status, answer in _ADDED.items():
                            responses.setdefault(str(status), answer)
                    operations[method]["security"] = [{"HTTPBearer": []}]
    return merged
