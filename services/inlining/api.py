"""Inlining over HTTP: POST /v1/inlining/advice and /tune, and the service itself."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.responses import Response

from services.inlining import predict
from services.inlining.answers import ModuleTooLarge, NotAModule, answer_of
from services.inlining.engine import UnsafeAssembly
from services.inlining.sandbox import CompilerCrashed, CompilerRefused, LimitExceeded, Limits
from services.inlining.schemas import AdviceRequest, AdviceResponse, TrainConfig, TuneConfig
from services.inlining.source import OutsideInclude, SourceInvalid, UnknownFlag
from shared.inference_routes import deadline_of
from shared.problems import (
    DeadlineExceeded,
    InputError,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
    problem_responses,
)
from shared.service import Domain, create_service, host_of
from shared.sessions import ModelHost

SECONDS = 240.0  # of one advice, where the caller set no deadline
MOST_WAITING = 16
AT_ONCE = max(1, (os.cpu_count() or 2) // 2)  # each compiles several candidates at once
router = APIRouter(prefix="/v1/inlining", tags=["inlining"])
_pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="advice")
_waiting: set[object] = set()  # requests that have a place in the pool or before it
_ERRORS = (
    *(InputError, NotAModule, PayloadTooLarge, ModuleTooLarge, Unprocessable, UnsafeAssembly, CompilerCrashed),
    *(CompilerRefused, LimitExceeded, OutsideInclude, SourceInvalid, UnknownFlag),
    *(NotReady, Overloaded, DeadlineExceeded),
)


@router.post("/advice", response_model=AdviceResponse, responses=problem_responses(*_ERRORS))
async def advice(asked: AdviceRequest, request: Request, host: Annotated[ModelHost, Depends(host_of)]) -> Response:
    """Advise on a module: a decision for every call site, and what it makes of the module beside stock.

    For size it is measured, and never worse than stock; for speed it is predicted, and the answer says how well.
    """
    if len(_waiting) >= AT_ONCE + MOST_WAITING:
        raise Overloaded(f"{MOST_WAITING} modules wait for the compiler already.", retry_after=5)
    loop = asyncio.get_running_loop()
    deadline = deadline_of(request)
    with host.lease(request.scope["fourfold.request_id"]) as model:

        def work() -> AdviceResponse:
            left = SECONDS if deadline is None else deadline - loop.time()
            if left < 1:
                raise DeadlineExceeded()
            limits = Limits(seconds=min(SECONDS, left), cpu_seconds=max(1, int(min(60.0, left))))
            return answer_of(asked, model.predictor, model.tag, limits)

        _waiting.add(request)
        try:
            body = await loop.run_in_executor(_pool, work)
        finally:
            _waiting.discard(request)
        content = orjson.dumps(body.model_dump())
        return Response(content, media_type="application/json", headers={"Fourfold-Model": model.tag})


DOMAIN = Domain(
    name="inlining",
    title="Fourfold inlining",
    description="Inlining advice for stock LLVM that never makes code larger.",
    load=predict.load,
    router=router,
    pretrained=Path(__file__).with_name("pretrained"),
    train_config=TrainConfig,
    batches={"tune": TuneConfig},
)


def create_app() -> FastAPI:
    """The ASGI application, for `uvicorn --factory`."""
    return create_service(DOMAIN)
