"""What control-plane routes have in common: their router, and the principal who asks, checked for a scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request, Security
from fastapi.security import HTTPBearer

from gateway.auth import Authenticator, Principal
from gateway.limits import Limits
from shared.problems import (
    Forbidden,
    InputError,
    RateLimited,
    Unauthenticated,
    Unprocessable,
    problem_responses,
)

# Only for the OpenAPI document: the check itself is the Authenticator's.
BEARER = HTTPBearer(auto_error=False, description="An API key (`ff_…`) or an OIDC token.")


def control_router(name: str, scope: str | None = None) -> APIRouter:
    """The router of `/v1/<name>`, with what any of its routes may answer; `scope` is what all of them need."""
    asked = [Security(BEARER)] if scope is None else [Security(BEARER), Depends(needs(scope))]
    errors = problem_responses(InputError, Unauthenticated, Forbidden, Unprocessable, RateLimited)
    return APIRouter(prefix=f"/v1/{name}", tags=[name], dependencies=asked, responses=errors)


def needs(scope: str | None = None) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that answers the request's Principal, or raises Unauthenticated, Forbidden or RateLimited.

    Without a scope any key will do.
    """

    async def principal(request: Request) -> Principal:
        auth: Authenticator = request.app.state.auth
        limits: Limits = request.app.state.limits
        found = await auth.authenticate(request.headers.raw)
        if scope is not None:
            found.require(scope)
        async with limits.admit(found.id):
            return found

    return principal
