"""Bots over HTTP: POST /v1/bots/score, /explain and /graphs, and the service itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from services.bots import predict
from services.bots.answers import BadEdge, Reading, explanation_of, read_request, score_of
from services.bots.explain import explain as explain_query
from services.bots.features import BadAccount
from services.bots.schemas import (
    AccountResult,
    ExplainRequest,
    ExplainResponse,
    ExplainResult,
    GraphConfig,
    ScoreRequest,
    ScoreResponse,
    TrainConfig,
)
from services.bots.text import EncoderMissing, WrongEncoder
from shared.inference_routes import deadline_of
from shared.problems import (
    DeadlineExceeded,
    FourfoldError,
    InputError,
    NotReady,
    Overloaded,
    Unprocessable,
    problem_document,
    problem_responses,
    request_id_of,
)
from shared.service import Domain, create_service, host_of
from shared.sessions import LoadedModel, ModelHost

AT_ONCE = 64  # accounts of one request that wait for the model together
R = TypeVar("R")
Host = Annotated[ModelHost, Depends(host_of)]
router = APIRouter(prefix="/v1/bots", tags=["bots"])
_PROBLEMS = problem_responses(
    InputError, Unprocessable, BadAccount, BadEdge, WrongEncoder, NotReady, Overloaded, DeadlineExceeded, EncoderMissing
)


@router.post("/score", response_model=ScoreResponse, responses=_PROBLEMS)
async def score(asked: ScoreRequest, request: Request, host: Host) -> Response:
    """Score one account or many; each has its own result or problem, a lone account's problem is the answer."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.BotsPredictor = model.predictor
        reading = await asyncio.to_thread(read_request, asked, predictor)

        async def one(row: int) -> AccountResult:
            answer = await model.predict(reading.queries[row], deadline=deadline_of(request))
            return AccountResult(row=row, result=score_of(asked, predictor, reading, row, answer))

        results = await _for_each(reading, request, one, lambda row, problem: AccountResult(row=row, problem=problem))
        prior = predictor.calibration.prior
        return _answer(
            model,
            ScoreResponse(model=model.tag, prior=asked.prior or prior, results=results, repairs=reading.repairs),
        )


@router.post("/explain", response_model=ExplainResponse, responses=_PROBLEMS)
async def explain(asked: ExplainRequest, request: Request, host: Host) -> Response:
    """Which properties and edges speak for a bot and which against, with how far the explanation can be trusted."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.BotsPredictor = model.predictor
        if "bot" not in predictor.calibration.tasks:
            raise Unprocessable("The model served now does not score bots; there is nothing to explain.")
        reading = await asyncio.to_thread(read_request, asked, predictor)

        async def one(row: int) -> ExplainResult:
            query = reading.queries[row]
            found = await asyncio.to_thread(explain_query, predictor, query, asked.permutations, asked.seed)
            return ExplainResult(row=row, result=explanation_of(predictor, reading, row, found))

        results = await _for_each(reading, request, one, lambda row, problem: ExplainResult(row=row, problem=problem))
        return _answer(model, ExplainResponse(model=model.tag, results=results))


async def _for_each(
    reading: Reading,
    request: Request,
    one: Callable[[int], Awaitable[R]],
    failed: Callable[[int, dict[str, Any]], R],
) -> list[R]:
    """The result of each row, in order; a lone row's problem is raised."""
    rows = len(reading.queries) + len(reading.problems)

    async def result(row: int) -> R:
        try:
            if row in reading.problems:
                raise reading.problems[row]
            return await one(row)
        except FourfoldError as error:
            if rows == 1 or error.status >= 500:
                raise
            return failed(row, problem_document(error, request_id_of(request)))

    results: list[R] = []
    for start in range(0, rows, AT_ONCE):
        results += await asyncio.gather(*(result(row) for row in range(start, min(rows, start + AT_ONCE))))
    return results


def _answer(model: LoadedModel, body: BaseModel) -> Response:
    content = orjson.dumps(body.model_dump(), option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(content, media_type="application/json", headers={"Fourfold-Model": model.tag})


DOMAIN = Domain(
    name="bots",
    title="Fourfold bots",
    description="Calibrated bot and stance detection on account graphs.",
    load=predict.load,
    router=router,
    pretrained=Path(__file__).with_name("pretrained"),
    train_config=TrainConfig,
    batches={"graphs": GraphConfig},
)


def create_app() -> FastAPI:
    """The ASGI application, for `uvicorn --factory`."""
    return create_service(DOMAIN)
