"""The gateway's composition root: reads the settings and wires the rest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from starlette.middleware import Middleware
from starlette.responses import Response

from gateway.assets import add_console
from gateway.auth import Authenticator
from gateway.control import audits, datasets, inference, jobs, keys, models, policy
from gateway.control.access import needs
from gateway.control.metrics import jobs_text
from gateway.keys import SCOPES, KeyStore, SqlKeyStore, key_of, new_key
from gateway.limits import Limits
from gateway.openapi import MergedDocument
from gateway.proxy import Proxy, Upstreams
from gateway.routes import SERVICES
from gateway.settings import GatewaySettings
from shared.about import VERSION
from shared.database import connect, upgrade
from shared.datasets import Datasets
from shared.jobs.events import event_log
from shared.jobs.files import JobFiles
from shared.jobs.retention import sweep_spool
from shared.jobs.store import SqlJobStore
from shared.problems import NotFound, NotReady, install_problem_handlers, problem_responses
from shared.repository import ModelRepository
from shared.settings import load_settings
from shared.telemetry import Telemetry, configure_logging, metrics_text
from shared.tracing import tracing

WRITE_BACK_SECONDS = 5.0


class GatewayHealth(BaseModel):
    status: str
    services: dict[str, bool] = {}


def create_app(settings: GatewaySettings | None = None, store: KeyStore | None = None) -> FastAPI:
    """The gateway's ASGI application. `store` stands in for the database's keys in tests."""
    settings = settings or load_settings(GatewaySettings)
    configure_logging(settings, "gateway")
    engine = connect(settings.database_location)
    if store is None:
        store = SqlKeyStore(engine)
        upgrade(settings.database_location)
        ensure_first_key(store, settings)
    auth = Authenticator(store, settings)
    limits = Limits(settings)
    upstreams = Upstreams(settings, SERVICES)
    events = event_log(settings.redis_url)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await upstreams.open()
        await asyncio.to_thread(sweep_spool, settings.home / "spool")
        writing = asyncio.create_task(_write_back(auth))
        yield
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        await auth.write_back()
        await upstreams.close()
        await events.close()

    app = FastAPI(
        title="Fourfold",
        version=VERSION,
        description="Train, audit, serve and roll back models, behind one gateway.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=[
            *tracing(settings, "gateway"),
            Middleware(Telemetry, service="gateway", access_log=settings.access_log),
            Middleware(Proxy, upstreams=upstreams, auth=auth, limits=limits, settings=settings),
        ],
    )
    app.state.settings, app.state.auth, app.state.limits = settings, auth, limits
    app.state.upstreams, app.state.keys, app.state.events = upstreams, store, events
    app.state.jobs, app.state.job_files = SqlJobStore(engine), JobFiles(settings.jobs_location)
    app.state.datasets, app.state.models = Datasets(engine, settings), ModelRepository(settings.models_location)
    install_problem_handlers(app)
    app.include_router(keys.own)
    app.include_router(keys.router)
    for router in (
        datasets.router,
        jobs.router,
        models.router,
        policy.router,
        audits.router,
        inference.router,
        inference.guarded,
    ):
        app.include_router(router)
    _add_operations(app, settings, upstreams, engine)
    add_console(app)
    return app


def ensure_first_key(store: KeyStore, settings: GatewaySettings) -> None:
    """See that there is a key with every scope: the one given, or else, where there is none at all, a new one.

    The new one's secret is left in `<home>/key`, readable by its owner.
    """
    if settings.first_key is not None:
        given = key_of(settings.first_key.get_secret_value(), "first key", SCOPES)
        if store.find(given.digest) is None:
            with suppress(IntegrityError):  # another gateway was faster
                store.add(given)
        return
    if store.page("", 1):
        return
    home = settings.home
    home.mkdir(parents=True, exist_ok=True)
    key, secret = new_key("first key", SCOPES)
    draft = home / f".key-{key.id}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secret + "\n")
    store.add(key)
    draft.replace(home / "key")


async def _write_back(auth: Authenticator) -> None:
    while True:
        await asyncio.sleep(WRITE_BACK_SECONDS)
        await auth.write_back()


def _add_operations(app: FastAPI, settings: GatewaySettings, upstreams: Upstreams, engine: Engine) -> None:
    document = MergedDocument(app, upstreams)

    @app.get("/healthz", tags=["operations"])
    async def healthz() -> GatewayHealth:
        """The gateway answers."""
        return GatewayHealth(status="alive")

    @app.get("/readyz", tags=["operations"], responses=problem_responses(NotReady))
    async def readyz() -> GatewayHealth:
        """Every service answers and has its model."""
        ready = await inference.ready_services(upstreams)
        if not all(ready.values()):
            raise NotReady(
                "Not ready: " + ", ".join(name for name, up in ready.items() if not up), retry_after=1, services=ready
            )
        return GatewayHealth(status="ready", services=ready)

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def metrics(request: Request) -> Response:
        """Prometheus' text form."""
        if settings.protect_metrics:
            await needs("admin")(request)
        jobs = await asyncio.to_thread(jobs_text, engine)
        return Response(metrics_text() + jobs, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/metrics/{service}", tags=["operations"], response_class=Response, responses=problem_responses(NotFound))
    async def metrics_of(service: str, request: Request) -> Response:
        """The same of a service, which on one machine listens where no Prometheus can ask it."""
        if settings.protect_metrics:
            await needs("admin")(request)
        if service not in SERVICES:
            raise NotFound(f"There is no service {service[:80]!r}.")
        body = (await upstreams.fetch(service, "/metrics"))[1]
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return await document.get()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(_DOCS, media_type="text/html")


_DOCS = """<!doctype html><meta charset="utf-8"><title>Fourfold API</title>
<h1>Fourfold</h1><p>The API is described by <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>
<p>Send an API key as <code>Authorization: Bearer …</code>; <code>fourfold keys show</code> prints yours.
<a href="/">The console</a> is a page on the same API.</p>
"""
