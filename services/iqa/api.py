"""Image quality over HTTP: POST /v1/iqa/score, and the service itself."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from services.iqa import features, overlay, predict
from services.iqa.schemas import (
    Distortion,
    FileResult,
    ImageScore,
    Level,
    QualityMap,
    ScoreList,
    Size,
    Timings,
    TrainConfig,
)
from shared.bodies import read_body
from shared.inference_routes import deadline_of
from shared.problems import (
    DeadlineExceeded,
    FourfoldError,
    InputError,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    UnsupportedMedia,
    problem_document,
    problem_responses,
    request_id_of,
)
from shared.service import Domain, create_service, host_of, settings_of
from shared.sessions import LoadedModel, ModelHost
from shared.settings import ServiceSettings

MAX_FILES = 64
MapForm = Literal["false", "true", "array", "overlay"]
router = APIRouter(prefix="/v1/iqa", tags=["iqa"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
                            "type": "array",
                            "maxItems": MAX_FILES,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
        },
    }
}


@router.post(
    "/score",
    response_model=ImageScore | ScoreList,
    openapi_extra=_BODY,
    responses=problem_responses(
        InputError,
        features.EmptyImage,
        features.DamagedImage,
        PayloadTooLarge,
        features.ImageTooLarge,
        UnsupportedMedia,
        features.NotAnImage,
        features.ImageTooSmall,
        NotReady,
        Overloaded,
        DeadlineExceeded,
    ),
)
async def score(
    request: Request,
    host: Annotated[ModelHost, Depends(host_of)],
    settings: Annotated[ServiceSettings, Depends(settings_of)],
    map: Annotated[MapForm, Query(description="Add the quality map: as an array (also `true`) or as a PNG.")] = "false",
) -> Response:
    """Score one image (the raw body) or several (multipart: each file has its own result or problem)."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    with host.lease(request.scope["fourfold.request_id"]) as model:
        if media_type == "multipart/form-data":
            answer = await _score_files(request, model, settings, map)
        elif media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
            body = await read_body(request, settings.max_body_bytes)
            answer = await _score_one(body, media_type, model, deadline_of(request), map)
        else:
            raise UnsupportedMedia(
                f"Send the image's bytes as image/* or files as multipart/form-data, not {media_type}."
            )
        # Dumped here: going through the response model would validate every number a second time.
        content = orjson.dumps(answer.model_dump(exclude_none=True))
        return Response(content, media_type="application/json", headers={"Fourfold-Model": model.tag})


async def _score_files(
    request: Request, model: LoadedModel, settings: ServiceSettings, form_of_map: MapForm
) -> ScoreList:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > settings.max_body_bytes:
        raise PayloadTooLarge(f"The body has {declared} bytes; at most {settings.max_body_bytes} are taken.")
    async with request.form(max_files=MAX_FILES, max_fields=0, max_part_size=settings.max_body_bytes) as form:
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        if not files:
            raise InputError("The form holds no file.")

        async def one(file: UploadFile) -> FileResult:
            name = file.filename or "unnamed"
            try:
                if (file.size or 0) > settings.max_body_bytes:
                    raise PayloadTooLarge(f"The file has more than {settings.max_body_bytes} bytes.")
                data = await file.read()
                result = await _score_one(data, file.content_type, model, deadline_of(request), form_of_map)
                return FileResult(name=name, result=result)
            except FourfoldError as error:
                return FileResult(name=name, problem=problem_document(error, request_id_of(request)))

        return ScoreList(results=[await one(file) for file in files])


async def _score_one(
    data: bytes | bytearray, content_type: str | None, model: LoadedModel, deadline: float | None, form_of_map: MapForm
) -> ImageScore:
    started = time.perf_counter()
    image = await asyncio.to_thread(features.decode, data, content_type=content_type)
    decoded = time.perf_counter()
    quality: predict.Quality = await model.predict(image.pixels, deadline=deadline)
    finished = time.perf_counter()
    predictor: predict.IqaPredictor = model.predictor
    best = int(quality.distortions_K.argmax())
    quality_map = None
    if form_of_map == "overlay":
        png = await asyncio.to_thread(overlay.overlay_png, image.pixels, quality.map_hw)
        quality_map = QualityMap(overlay_png=base64.b64encode(png).decode())
    elif form_of_map != "false":
        quality_map = QualityMap(values=quality.map_hw.round(3).tolist())
    return ImageScore(
        model=model.tag,
        score=round(quality.score, 4),
        levels=[
            Level(value=value, probability=share)
            for value, share in zip(predictor.level_values.tolist(), quality.levels_L.tolist(), strict=True)
        ],
        confidence=round(quality.confidence, 4),
        distortion=Distortion(
            kind=predictor.kinds[best],
            probabilities=dict(zip(predictor.kinds, quality.distortions_K.round(6).tolist(), strict=True)),
        ),
        original=Size(width=image.original_size[0], height=image.original_size[1]),
        scored=Size(width=image.scored_size[0], height=image.scored_size[1]),
        format=image.format,
        warnings=image.warnings,
        timings_ms=Timings(
            decode=round((decoded - started) * 1000, 2), inference=round((finished - decoded) * 1000, 2)
        ),
        map=quality_map,
    )


DOMAIN = Domain(
    name="iqa",
    title="Fourfold image quality",
    description="Blind image quality: a full-reference proxy score for photographs.",
    load=predict.load,
    router=router,
    pretrained=Path(__file__).with_name("pretrained"),
    train_config=TrainConfig,
)


def create_app() -> FastAPI:
    """The ASGI application, for `uvicorn --factory`."""
    return create_service(DOMAIN)
