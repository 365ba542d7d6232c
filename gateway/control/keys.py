"""API keys over HTTP: create, list, revoke, which needs the scope admin; and what one's own key may do."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from gateway.auth import Principal
from gateway.control.access import control_router, needs
from gateway.keys import ApiKey, KeyStore, Scope, new_key
from shared.problems import (
    NotFound,
    problem_responses,
)

router = control_router("keys", "admin")
own = control_router("keys")  # for any key


class KeyRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    scopes: list[Scope] = Field(min_length=1)
    expires_in_days: float | None = Field(default=None, gt=0, le=36_500)


class KeyInfo(BaseModel):
    """A key without its secret; times are seconds since 1970."""

    id: str
    name: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None


class NewKey(KeyInfo):
    secret: str = Field(description="Shown this once.")


class KeyPage(BaseModel):
    keys: list[KeyInfo]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null at the end.")


class Caller(BaseModel):
    """Who asks: a key, or the subject of an issuer's token."""

    id: str
    name: str
    scopes: list[str]


def _store(request: Request) -> KeyStore:
    return request.app.state.keys


def _info(key: ApiKey) -> KeyInfo:
    return KeyInfo(
        id=key.id,
        name=key.name,
        scopes=sorted(key.scopes),
        created_at=key.created_at,
        expires_at=key.expires_at,
        revoked_at=key.revoked_at,
        last_used_at=key.last_used_at,
    )


@router.post("", status_code=201)
async def create(asked: KeyRequest, store: Annotated[KeyStore, Depends(_store)]) -> NewKey:
    """A new key; its secret is in this answer and nowhere else."""
    expires = time.time() + asked.expires_in_days * 86_400 if asked.expires_in_days else None
    key, secret = new_key(asked.name, asked.scopes, expires_at=expires)
    await asyncio.to_thread(store.add, key)
    return NewKey(**_info(key).model_dump(), secret=secret)


@router.get("")
async def listing(
    store: Annotated[KeyStore, Depends(_store)],
    cursor: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> KeyPage:
    """Keys in the order of their ids."""
    keys = await asyncio.to_thread(store.page, cursor, limit)
    return KeyPage(keys=[_info(key) for key in keys], next_cursor=keys[-1].id if len(keys) == limit else None)


@own.get("/self")
async def self(who: Annotated[Principal, Depends(needs())]) -> Caller:
    """What the key of this request is called, and what it may do."""
    return Caller(id=who.id, name=who.name, scopes=sorted(who.scopes))


@router.delete("/{key_id}", responses=problem_responses(NotFound))
async def revoke(key_id: str, request: Request, store: Annotated[KeyStore, Depends(_store)]) -> KeyInfo:
    """End a key; other gateways notice within their cache's few seconds."""
    key = await asyncio.to_thread(store.revoke, key_id, time.time())
    request.app.state.auth.forget()
    return _info(key)
