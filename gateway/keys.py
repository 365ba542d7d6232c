"""API keys: 256 random bits, kept as SHA-256 only, with scopes, expiry, revocation and last use."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from shared.database import Base
from shared.problems import InputError, NotFound

PREFIX = "ff_"
Scope = Literal["predict", "train", "admin"]
SCOPES: tuple[Scope, ...] = ("predict", "train", "admin")


@dataclass(frozen=True)
class ApiKey:
    """What is stored of a key; times are seconds since 1970."""

    id: str
    name: str
    digest: str
    scopes: frozenset[str]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None

    def valid_at(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def digest_of(secret: str) -> str:
    """SHA-256 in hex; a secret of 256 random bits needs no slower hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key(name: str, scopes: Iterable[str], *, expires_at: float | None = None) -> tuple[ApiKey, str]:
    """A fresh key and its secret, which is never seen again. Raises InputError for an unknown scope or no scope."""
    chosen = frozenset(scopes)
    if not chosen or not chosen <= set(SCOPES):
        raise InputError(f"Scopes are one or more of {', '.join(SCOPES)}.")
    secret = PREFIX + secrets.token_urlsafe(32)
    return replace(key_of(secret, name, chosen), expires_at=expires_at), secret


def key_of(secret: str, name: str, scopes: Iterable[str]) -> ApiKey:
    """The key of a secret, always with the same id, so that two who add it at once add it once."""
    digest = digest_of(secret)
    return ApiKey(digest[:16], name, digest, frozenset(scopes), time.time())


class KeyStore(Protocol):
    """Where keys live. Implementations are safe to call from several threads."""

    def add(self, key: ApiKey) -> None: ...

    def find(self, digest: str) -> ApiKey | None: ...

    def page(self, after: str, limit: int) -> list[ApiKey]:
        """Up to `limit` keys whose id is above `after`, in the order of ids."""
        ...

    def revoke(self, key_id: str, when: float) -> ApiKey:
        """Raises NotFound; revoking twice keeps the first time."""
        ...

    def used(self, times: Mapping[str, float]) -> None:
        """Record when each key id was last used."""
        ...


class MemoryKeyStore:
    """A KeyStore in a dict, for tests and trials."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}

    def add(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    def find(self, digest: str) -> ApiKey | None:
        return next((key for key in self._keys.values() if key.digest == digest), None)

    def page(self, after: str, limit: int) -> list[ApiKey]:
        return [self._keys[key_id] for key_id in sorted(self._keys) if key_id > after][:limit]

    def revoke(self, key_id: str, when: float) -> ApiKey:
        key = self._keys.get(key_id)
        if key is None:
            raise NotFound(f"There is no key {key_id!r}.")
        self._keys[key_id] = key = replace(key, revoked_at=key.revoked_at or when)
        return key

    def used(self, times: Mapping[str, float]) -> None:
        for key_id, when in times.items():
            if key_id in self._keys:
                self._keys[key_id] = replace(self._keys[key_id], last_used_at=when)


class KeyRow(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    last_used_at: Mapped[float | None]

    def as_key(self) -> ApiKey:
        scopes = frozenset(self.scopes.split())
        times = (self.created_at, self.expires_at, self.revoked_at, self.last_used_at)
        return ApiKey(self.id, self.name, self.digest, scopes, *times)


class SqlKeyStore:
    """A KeyStore in the house's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, key: ApiKey) -> None:
        row = KeyRow(
            id=key.id,
            name=key.name,
            digest=key.digest,
            scopes=" ".join(sorted(key.scopes)),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
        )
        with Session(self._engine) as session, session.begin():
            session.add(row)

    def find(self, digest: str) -> ApiKey | None:
        with Session(self._engine) as session:
            row = session.scalar(select(KeyRow).where(KeyRow.digest == digest))
            return row.as_key() if row else None

    def page(self, after: str, limit: int) -> list[ApiKey]:
        with Session(self._engine) as session:
            rows = session.scalars(select(KeyRow).where(KeyRow.id > after).order_by(KeyRow.id).limit(limit))
            return [row.as_key() for row in rows]

    def revoke(self, key_id: str, when: float) -> ApiKey:
        with Session(self._engine) as session, session.begin():
            row = session.get(KeyRow, key_id)
            if row is None:
                raise NotFound(f"There is no key {key_id!r}.")
            row.revoked_at = row.revoked_at or when
            return row.as_key()

    def used(self, times: Mapping[str, float]) -> None:
        with Session(self._engine) as session, session.begin():
            for key_id, when in times.items():
                session.execute(update(KeyRow).where(KeyRow.id == key_id).values(last_used_at=when))
