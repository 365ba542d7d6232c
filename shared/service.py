"""Makes a domain's serving process: health, metrics, the domain's own routes and the V2 protocol over one ModelHost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.responses import Response

from shared.about import VERSION
from shared.bundles import Bundle
from shared.inference_routes import inference_router
from shared.jobs.config import RecipeConfig
from shared.jobs.submission import job_router, training_router
from shared.problems import NotReady, install_problem_handlers, problem_responses
from shared.repository import ModelRepository
from shared.sessions import ModelHost, Predictor
from shared.settings import ServiceSettings, load_settings
from shared.telemetry import Telemetry, configure_logging, metrics_text
from shared.tracing import tracing


@dataclass(frozen=True)
class Domain:
    """All the kit knows of a domain."""

    name: str  # of the model, of the service and of its path /v1/<name>
    title: str
    description: str
    load: Callable[[Bundle, ServiceSettings], Predictor]
    router: APIRouter
    pretrained: Path | None  # the bundle that becomes version 1 on first start
    train_config: type[RecipeConfig] | None = None  # what POST /v1/<name>/training-jobs takes; None: no training
    batches: Mapping[str, type[RecipeConfig]] = field(default_factory=dict[str, type[RecipeConfig]])
    # ^ POST /v1/<name>/<kind>: jobs of a domain's own, run by its batch.py


class Health(BaseModel):
    status: str
    models: dict[str, list[int]] = {}


def host_of(request: Request) -> ModelHost:
    """The service's ModelHost, as a FastAPI dependency."""
    return request.app.state.host


def settings_of(request: Request) -> ServiceSettings:
    """The service's settings, as a FastAPI dependency."""
    return request.app.state.settings


def create_service(domain: Domain, settings: ServiceSettings | None = None) -> FastAPI:
    """The ASGI application of `domain`. Settings come from the environment unless given."""
    settings = settings or load_settings(ServiceSettings)
    configure_logging(settings, domain.name)
    host = ModelHost(domain.name, ModelRepository(settings.models_location), domain.load, settings, domain.pretrained)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await host.start()
        yield
        await host.stop()

    app = FastAPI(
        title=domain.title,
        description=domain.description,
        version=VERSION,
        lifespan=lifespan,
        middleware=[
            *tracing(settings, domain.name),
            Middleware(Telemetry, service=domain.name, access_log=settings.access_log),
        ],
    )
    app.state.host = host
    app.state.settings = settings
    install_problem_handlers(app)
    app.include_router(_operations(host))
    app.include_router(domain.router)
    if domain.train_config is not None:
        app.include_router(training_router(domain.name, domain.train_config, settings))
    for kind, config_type in domain.batches.items():
        app.include_router(job_router(domain.name, kind, kind, config_type, settings))
    app.include_router(inference_router(host, settings))
    return app


def _operations(host: ModelHost) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process answers."""
        return Health(status="alive")

    @router.get("/readyz", responses=problem_responses(NotReady))
    async def readyz() -> Health:
        """The model is loaded, warm and takes traffic."""
        if not host.ready:
            raise NotReady(f"The model {host.name} is not ready: {host.reason}.", retry_after=1)
        return Health(status="ready", models={host.name: [model.version for model in host.loaded]})

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text form."""
        return Response(metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
