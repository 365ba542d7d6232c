"""The error tree, and its one mapping to HTTP: RFC 9457 problem+json, or `{"error": …}` under /v2.

    FourfoldError
    ├── InputError 400 ── UnsupportedMedia 415 · PayloadTooLarge 413 · Unprocessable 422
    ├── Unauthenticated 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405 · Conflict 409
    ├── RateLimited 429 · Overloaded 503 · NotReady 503 · UpstreamUnavailable 503 · DatabaseUnavailable 503
    ├── DeadlineExceeded 504 · NotSupported 501 · DiskFull 507
    └── InternalError 500

Domains subclass these with a `code`, a `title` and an `advice` (what to do) of their own; the status is inherited, so
only this file knows HTTP. docs/errors.md lists them all, made of these by `python -m tests.problems_page`.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EDQUOT, ENOSPC
from typing import Any, ClassVar

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, create_model
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

PROBLEM_MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)


class FourfoldError(Exception):
    """The root: a failure that the caller is told about.

    `detail` says what happened to this request and what to change; it never holds a path or a traceback.
    `extra` becomes further members of the problem document (for example the offending row or field).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong on the server"
    advice: ClassVar[str] = "Repeat it once. If it stays, look for the request id in the server's log and report it."

    def __init__(self, detail: str = "", *, retry_after: float | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after
        self.extra = extra


class InputError(FourfoldError):
    status = 400
    code = "invalid-input"
    title = "The request is not valid"
    advice = "Change what the detail names."


class UnsupportedMedia(InputError):
    status = 415
    code = "unsupported-media-type"
    title = "This content type is not accepted here"
    advice = "Send one of the forms that the detail names."


class PayloadTooLarge(InputError):
    status = 413
    code = "payload-too-large"
    title = "The request body is too large"
    advice = "Send less at once, or raise FOURFOLD_MAX_BODY_BYTES."


class Unprocessable(InputError):
    status = 422
    code = "unprocessable"
    title = "The input is well formed but cannot be processed"
    advice = "Change what the detail names; `errors`, where it is there, has every field."


class Unauthenticated(FourfoldError):
    status = 401
    code = "unauthenticated"
    title = "A valid API key or token is required"
    advice = (
        "Send `Authorization: Bearer KEY`. `fourfold keys show` prints this machine's; it may be expired or revoked."
    )


class Forbidden(FourfoldError):
    status = 403
    code = "forbidden"
    title = "This key may not do that"
    advice = "Use a key with the scope that the detail names."


class NotFound(FourfoldError):
    status = 404
    code = "not-found"
    title = "There is no such thing"
    advice = "Look at the spelling, and at what there is: `fourfold models`, `datasets list`, `jobs`."


class MethodNotAllowed(FourfoldError):
    status = 405
    code = "method-not-allowed"
    title = "This path does not take that method"
    advice = "Look at the path in /openapi.json."


class Conflict(FourfoldError):
    status = 409
    code = "conflict"
    title = "The thing changed or exists already"
    advice = "Look at the thing again and decide anew."


class RateLimited(FourfoldError):
    status = 429
    code = "rate-limited"
    title = "Too many requests for this key"
    advice = "Wait for Retry-After seconds, or raise FOURFOLD_RATE_LIMIT or FOURFOLD_MAX_CONCURRENCY."


class Overloaded(FourfoldError):
    status = 503
    code = "overloaded"
    title = "The server is at capacity; try again shortly"
    advice = "Wait for Retry-After seconds and repeat it; if it lasts, run more processes."


class NotReady(FourfoldError):
    status = 503
    code = "not-ready"
    title = "The model is not ready"
    advice = "Wait and repeat it. /v2/repository/index says why a version is not served."


class UpstreamUnavailable(FourfoldError):
    status = 503
    code = "upstream-unavailable"
    title = "The service behind the gateway is not answering"
    advice = "Repeat it. If it lasts, `fourfold status` says which service is away, and its log why."


class DatabaseUnavailable(FourfoldError):
    status = 503
    code = "database-unavailable"
    title = "The database is not answering"
    advice = "Look whether it was done, then repeat it; send an Idempotency-Key with jobs."


class DiskFull(FourfoldError):
    status = 507
    code = "disk-full"
    title = "The server's disk is full"
    advice = "Whoever runs the server makes room; then repeat it."


class DeadlineExceeded(FourfoldError):
    status = 504
    code = "deadline-exceeded"
    title = "The request's deadline passed before its answer was ready"
    advice = "Allow more time, or send less at once; the server's own limit is FOURFOLD_REQUEST_TIMEOUT_SECONDS."


class NotSupported(FourfoldError):
    status = 501
    code = "not-supported"
    title = "This server does not support that"
    advice = "Use another call; this server will not learn it by repeating."


class InternalError(FourfoldError):
    """A defect of ours: the detail stays general, the log has the rest."""


_BY_STATUS: Mapping[int, type[FourfoldError]] = {
    kind.status: kind
    for kind in (InputError, UnsupportedMedia, PayloadTooLarge, Unauthenticated, Forbidden, NotFound, MethodNotAllowed)
}


class ProblemDetails(BaseModel):
    """RFC 9457 problem details; further members depend on the type."""

    type: str = Field(description="Stable identifier of the kind of problem, a URN.")
    title: str
    status: int
    detail: str = Field(description="What happened to this request and what to change.")
    request_id: str | None = None


def problem_type(code: str) -> str:
    """The stable `type` URN of an error code."""
    return f"urn:fourfold:problem:{code}"


def problem_document(error: FourfoldError, request_id: str | None) -> dict[str, Any]:
    """The RFC 9457 members of `error`, as a plain dict."""
    return {
        **error.extra,
        "type": problem_type(error.code),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "request_id": request_id,
    }


def problem_response(error: FourfoldError, *, path: str, request_id: str | None) -> Response:
    """The one place where an error becomes bytes: problem+json, or the V2 protocol's own shape under /v2."""
    headers = {"Retry-After": str(max(1, round(error.retry_after)))} if error.retry_after is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if path == "/v2" or path.startswith("/v2/"):
        body, media_type = orjson.dumps({"error": error.detail}), "application/json"
    else:
        body, media_type = orjson.dumps(problem_document(error, request_id)), PROBLEM_MEDIA_TYPE
    return Response(body, status_code=error.status, media_type=media_type, headers=headers)


def problem_responses(*errors: type[FourfoldError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for a route, one entry a status, naming the error types it can answer with."""
    by_status: dict[int, list[type[FourfoldError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    documented: dict[int | str, dict[str, Any]] = {}
    for status, kinds in by_status.items():
        model = create_model(
            "Problem" + "Or".join(kind.__name__ for kind in kinds),
            __base__=ProblemDetails,
            type=(str, Field(json_schema_extra={"enum": [problem_type(kind.code) for kind in kinds]})),
        )
        documented[status] = {
            "description": " · ".join(kind.title for kind in kinds),
            "content": {PROBLEM_MEDIA_TYPE: {"schema": model.model_json_schema()}},
        }
    return documented


def _from_http_exception(error: HTTPException) -> FourfoldError:
    kind = _BY_STATUS.get(error.status_code, InputError if error.status_code < 500 else InternalError)
    detail = {404: "There is nothing at this path.", 405: "This path does not take that method."}.get(error.status_code)
    return kind(detail or str(error.detail))


def _from_validation(error: RequestValidationError) -> FourfoldError:
    problems = [
        {"field": ".".join(str(part) for part in item["loc"]), "problem": item["msg"]} for item in error.errors()[:20]
    ]
    first = problems[0] if problems else {"field": "body", "problem": "invalid"}
    return Unprocessable(f"{first['field']}: {first['problem']}", errors=problems)


def request_id_of(request: Request) -> str | None:
    """The id that the telemetry middleware gave this request."""
    return request.scope.get("fourfold.request_id")


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every exception that leaves a route with its problem document."""

    async def answer(request: Request, error: Exception) -> Response:
        match error:
            case FourfoldError():
                problem = error
            case RequestValidationError():
                problem = _from_validation(error)
            case HTTPException():
                problem = _from_http_exception(error)
            case OperationalError() | InterfaceError():
                log.error("the database is away", error=type(error.orig).__name__)
                problem = DatabaseUnavailable("Nothing was changed, or it is not known: repeat it.", retry_after=1)
            case OSError() if error.errno in (ENOSPC, EDQUOT):
                log.error("a disk is full", path=request.url.path)
                problem = DiskFull("Nothing was kept of this request; whoever runs the server has to make room.")
            case _:
                log.exception("unhandled error", path=request.url.path, exc_info=error)
                problem = InternalError("An unexpected error; the request id finds it in the log.")
        return problem_response(problem, path=request.url.path, request_id=request_id_of(request))

    kinds = (FourfoldError, RequestValidationError, HTTPException, OperationalError, InterfaceError, OSError, Exception)
    for kind in kinds:
        app.add_exception_handler(kind, answer)
