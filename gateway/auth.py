"""Who is asking: API keys from the store through a short-lived cache, or OIDC bearer tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jwt
import structlog

from gateway.keys import PREFIX, SCOPES, KeyStore, digest_of
from gateway.settings import GatewaySettings
from shared.problems import Forbidden, Unauthenticated

log = structlog.get_logger(__name__)
CACHED = 10_000  # most remembered secrets, good and bad together


@dataclass(frozen=True)
class Principal:
    """Who is asking, and what they may do."""

    id: str
    scopes: frozenset[str]
    name: str = ""

    def require(self, scope: str) -> None:
        """Raises Forbidden unless the scope, or admin, is held."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"This needs the scope {scope!r}; the key has {', '.join(sorted(self.scopes)) or 'none'}.")


class OidcVerifier:
    """Checks bearer tokens against an issuer's published keys, which are fetched off the event loop and cached."""

    def __init__(self, settings: GatewaySettings) -> None:
        if not settings.oidc_audience or not settings.oidc_jwks_url:
            raise ValueError("FOURFOLD_OIDC_ISSUER needs FOURFOLD_OIDC_AUDIENCE and FOURFOLD_OIDC_JWKS_URL too")
        self._settings = settings
        self._keys = jwt.PyJWKClient(settings.oidc_jwks_url, cache_keys=True, lifespan=600, timeout=5)

    def verify(self, token: str) -> tuple[Principal, float]:
        """(principal, expiry); raises Unauthenticated. Blocking."""
        settings = self._settings
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys.get_signing_key_from_jwt(token).key,
                algorithms=list(settings.oidc_algorithms),
                audience=settings.oidc_audience,
                issuer=settings.oidc_issuer,
                options={"require": ["exp", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"The bearer token is not accepted: {error}.") from None
        claim = claims.get(settings.oidc_scope_claim, "")
        given = claim.split() if isinstance(claim, str) else [str(item) for item in claim]
        subject = str(claims["sub"])
        return Principal(f"oidc:{subject}", frozenset(given) & set(SCOPES), subject), float(claims["exp"])


class Authenticator:
    """Headers → Principal. A look-up in the store happens at most once in `key_cache_seconds` for each secret."""

    def __init__(self, store: KeyStore, settings: GatewaySettings) -> None:
        self._store = store
        self._seconds = settings.key_cache_seconds
        self._oidc = OidcVerifier(settings) if settings.oidc_issuer else None
        self._known: dict[str, tuple[Principal | None, float]] = {}  # secret → (who, until), on the monotonic clock
        self._used: dict[str, float] = {}

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Who sent these raw headers (`Authorization: Bearer …` or `X-API-Key`); raises Unauthenticated."""
        secret = _secret(headers)
        known = self._known.get(secret)
        if known is None or known[1] <= time.monotonic():
            known = await self._look_up(secret)
        principal = known[0]
        if principal is None:
            raise Unauthenticated("The API key is unknown, expired or revoked.")
        self._used[principal.id] = time.time()
        return principal

    def forget(self) -> None:
        """Ask the store again for every key, after one was changed here."""
        self._known.clear()

    async def write_back(self) -> None:
        """Record last uses in the store; called every few seconds and at the end."""
        used, self._used = self._used, {}
        if used:
            await asyncio.to_thread(self._store.used, used)

    async def _look_up(self, secret: str) -> tuple[Principal | None, float]:
        if len(self._known) >= CACHED:
            self._known.clear()
        now = time.time()
        until = time.monotonic() + self._seconds
        if secret.startswith(PREFIX):
            key = await asyncio.to_thread(self._store.find, digest_of(secret))
            valid = key is not None and key.valid_at(now)
            principal = Principal(key.id, key.scopes, key.name) if key is not None and valid else None
            if key is not None and key.expires_at is not None:
                until = min(until, time.monotonic() + key.expires_at - now)
        elif self._oidc is not None and secret.count(".") == 2:
            principal, expiry = await asyncio.to_thread(self._oidc.verify, secret)
            until = min(until, time.monotonic() + expiry - now)
        else:
            principal = None
        self._known[secret] = (principal, until)
        return self._known[secret]


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, secret = value.partition(b" ")
            if scheme.lower() == b"bearer" and 0 < len(secret) <= 8192:
                return secret.strip().decode("latin-1")
            raise Unauthenticated("The Authorization header must be `Bearer <key>`.")
        if name == b"x-api-key" and len(value) <= 8192:
            return value.decode("latin-1")
    raise Unauthenticated("Send an API key: `Authorization: Bearer <key>`.")
