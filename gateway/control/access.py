"""What control-plane routes depend on: the principal who asks, checked for a scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.security import HTTPBearer

from gateway.auth import Authenticator, Principal
from gateway.limits import Limits

# Only for the OpenAPI document: the check itself is the Authenticator's.
BEARER = HTTPBearer(auto_error=False, description="An API key (`ff_…`) or an OIDC token.")


def needs(scope: str) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency that answers the request's Principal, or raises Unauthenticated, Forbidden or RateLimited."""

    async def principal(request: Request) -> Principal:
        auth: Authenticator = request.app.state.auth
        limits: Limits = request.app.state.limits
        found = await auth.authenticate(request.headers.raw)
        found.require(scope)
        async with limits.admit(found.id):
            return found

    return principal
