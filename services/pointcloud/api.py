"""Point clouds over HTTP: POST /v1/pointcloud/reconstruct, encode, decode, search, classify and from-image."""

from __future__ import annotations

import asyncio
import base64
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.responses import Response

from services.pointcloud import codec, pictures, predict, writers
from services.pointcloud.answers import (
    AnswerTooLong,
    distance_of,
    json_response,
    points_response,
    summary_of,
    unusual,
)
from services.pointcloud.codec import BadCodeword, Codeword, ForeignCodeword, Precision, Unencodable
from services.pointcloud.features import MOST_POINTS, POINTS, PROBLEMS, Cloud, shared_reader
from services.pointcloud.index import MOST_HITS, ForeignIndex, Index, Indexes, NoIndex, preview_distances
from services.pointcloud.predict import COARSEST, FINEST, Answer, NotTrained
from services.pointcloud.sampling import FEWEST
from services.pointcloud.schemas import (
    Classification,
    ClassShare,
    Decoding,
    DispersionConfig,
    Distance,
    Encoding,
    FileForm,
    Hit,
    ImageReconstruction,
    IndexConfig,
    Reconstruction,
    SearchAnswer,
    Timings,
    TrainConfig,
)
from shared.bodies import read_body
from shared.inference_routes import deadline_of
from shared.problems import (
    DeadlineExceeded,
    InputError,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    Unprocessable,
    UnsupportedMedia,
    problem_responses,
)
from shared.service import Domain, create_service, host_of, settings_of
from shared.sessions import LoadedModel, ModelHost
from shared.settings import ServiceSettings

router = APIRouter(prefix="/v1/pointcloud", tags=["pointcloud"])
Host = Annotated[ModelHost, Depends(host_of)]
Settings = Annotated[ServiceSettings, Depends(settings_of)]
Out = Annotated[FileForm, Query(description="json for small answers, or a file.")]
Resolution = Annotated[
    int | None, Query(ge=COARSEST, le=FINEST, description="Of the folded surface: its points, squared.")
]
Measure = Annotated[bool, Query(description="Tell how far the decoded points lie from those given.")]

_ALWAYS = (InputError, Unprocessable, PayloadTooLarge, UnsupportedMedia, NotReady, Overloaded, DeadlineExceeded)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = dict.fromkeys(writers.MEDIA_TYPES.values(), _BINARY)
_NOT_FILES = ("multipart/form-data", "application/json")


def _body(*media_types: str) -> dict[str, Any]:
    content = dict.fromkeys((*media_types, "application/octet-stream"), _BINARY)
    return {"requestBody": {"required": True, "content": content}}


_CLOUD = _body("model/stl", "model/gltf-binary", "text/plain")


class Reading:
    """How the file is read, from the query."""

    def __init__(
        self,
        points: Annotated[
            int, Query(ge=FEWEST, le=MOST_POINTS, description="Taken of a mesh or a larger cloud.")
        ] = POINTS,
        seed: Annotated[int, Query(ge=0, lt=2**31, description="Of the sampling.")] = 0,
        reduce: Annotated[
            Literal["sample", "voxel"],
            Query(description="How a larger cloud is thinned: uniformly, or by equal cells."),
        ] = "sample",
        non_finite: Annotated[
            Literal["refuse", "drop"], Query(description="What becomes of points of a cloud that are NaN or infinite.")
        ] = "refuse",
    ) -> None:
        self.options: dict[str, Any] = {"points": points, "seed": seed, "reduce": reduce, "non_finite": non_finite}


How = Annotated[Reading, Depends()]


@router.post(
    "/reconstruct",
    response_model=Reconstruction,
    openapi_extra=_CLOUD,
    responses={200: {"content": _FILES}, **problem_responses(*_ALWAYS, *PROBLEMS.values(), NotTrained, AnswerTooLong)},
)
async def reconstruct(
    request: Request,
    host: Host,
    settings: Settings,
    how: How,
    out: Out = "json",
    resolution: Resolution = None,
    measure: Measure = True,
    input_points: Annotated[
        bool, Query(description="Add the points that the encoder saw to JSON, in the file's units.")
    ] = False,
) -> Response:
    """A file of points or a mesh → the mesh that the network folds of it, in the file's units."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.PointcloudPredictor = model.predictor
        cloud, read_ms = await _read(request, settings, how)
        begun = time.perf_counter()
        answer = await _ask(model, request, predict.Query(cloud, points=True, resolution=resolution))
        inference_ms = _since(begun)
        distance = await _distance(request, cloud, answer) if measure else None
        body = Reconstruction(
            model=model.tag,
            input=summary_of(cloud, request.headers.get("content-type", "")),
            distance=distance,
            out_of_distribution=unusual(predictor.calibration, cloud, distance),
            timings_ms=Timings(read=read_ms, inference=inference_ms),
        )
        points = _decoded(answer) * cloud.scale + cloud.centre_3
        seen = cloud.unit_N3 * cloud.scale + cloud.centre_3 if input_points else None
        make = partial(points_response, model.tag, out, body, points, predictor.triangles(resolution), seen)
        return await asyncio.to_thread(make)


@router.post(
    "/encode",
    response_model=Encoding,
    openapi_extra=_CLOUD,
    responses={
        200: {"content": {codec.MEDIA_TYPE: _BINARY}},
        **problem_responses(*_ALWAYS, *PROBLEMS.values(), Unencodable),
    },
)
async def encode(
    request: Request,
    host: Host,
    settings: Settings,
    how: How,
    precision: Annotated[Precision, Query(description="Of the codeword's numbers.")] = "fp16",
    out: Annotated[
        Literal["file", "json"], Query(description="The codeword's file alone, or with its numbers.")
    ] = "file",
    measure: Measure = False,
) -> Response:
    """A file of points or a mesh → its codeword, which `decode` turns into points again."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.PointcloudPredictor = model.predictor
        cloud, read_ms = await _read(request, settings, how)
        begun = time.perf_counter()
        answer = await _ask(model, request, predict.Query(cloud, points=measure, precision=precision))
        inference_ms = _since(begun)
        if answer.codeword_W is None:
            raise Unprocessable("The cloud has no codeword.")
        codeword = Codeword(answer.codeword_W, cloud.centre_3, cloud.scale, predictor.fingerprint, model.version)
        data = codec.pack(codeword, precision)
        if out == "file":
            return Response(data, media_type=codec.MEDIA_TYPE, headers={"Fourfold-Model": model.tag})
        body = Encoding(
            model=model.tag,
            input=summary_of(cloud, request.headers.get("content-type", "")),
            codeword=answer.codeword_W.tolist(),
            precision=precision,
            encoded=base64.b64encode(data).decode(),
            bytes=len(data),
            ratio=round(12 * len(cloud.unit_N3) / len(data), 2),
            distance=await _distance(request, cloud, answer) if measure else None,
            timings_ms=Timings(read=read_ms, inference=inference_ms),
        )
        return json_response(model.tag, body)


@router.post(
    "/decode",
    response_model=Decoding,
    openapi_extra=_body(codec.MEDIA_TYPE),
    responses={
        200: {"content": _FILES},
        **problem_responses(*_ALWAYS, BadCodeword, ForeignCodeword, NotTrained, AnswerTooLong),
    },
)
async def decode(
    request: Request, host: Host, settings: Settings, out: Out = "json", resolution: Resolution = None
) -> Response:
    """A codeword's file → points and the mesh between them, in the units of the file that was encoded."""
    codeword = codec.unpack(await _file(request, settings))
    version = _version_of(host, codeword.fingerprint)
    if version is None:
        host.choose(request.scope["fourfold.request_id"])  # tells of a model that is not ready
        made = f"version {codeword.version}" if codeword.version else "another version"
        raise ForeignCodeword(f"The codeword was made by {made} of the model, or of another; it is not served now.")
    with host.lease(request.scope["fourfold.request_id"], version) as model:
        predictor: predict.PointcloudPredictor = model.predictor
        if len(codeword.values_W) != predictor.width:
            raise BadCodeword(f"The codeword has {len(codeword.values_W)} numbers; the model's has {predictor.width}.")
        asked = predict.Query(codeword_W=codeword.values_W, points=True, resolution=resolution)
        answer = await _ask(model, request, asked)
        points = _decoded(answer) * codeword.scale + codeword.centre_3
        body = Decoding.model_construct(model=model.tag, precision=codeword.precision)
        make = partial(points_response, model.tag, out, body, points, predictor.triangles(resolution))
        return await asyncio.to_thread(make)


@router.post(
    "/search",
    response_model=SearchAnswer,
    openapi_extra=_CLOUD,
    responses=problem_responses(*_ALWAYS, *PROBLEMS.values(), NoIndex, ForeignIndex),
)
async def search(
    request: Request,
    host: Host,
    settings: Settings,
    how: How,
    index: Annotated[
        str | None, Query(max_length=80, description="A job that made one, or a data set; the newest index if unset.")
    ] = None,
    count: Annotated[int, Query(ge=1, le=MOST_HITS)] = 10,
    preview: Annotated[Literal["png", "points", "none"], Query(description="Of each shape found.")] = "png",
) -> Response:
    """A file of points or a mesh → the shapes of an index whose codewords lie nearest, with previews."""
    found = await asyncio.to_thread(_indexes(request, settings).get, index)
    version = _version_of(host, found.fingerprint)
    if version is None:
        host.choose(request.scope["fourfold.request_id"])
        raise ForeignIndex("The index was made with a version that is not served now; make it again.")
    with host.lease(request.scope["fourfold.request_id"], version) as model:
        cloud, read_ms = await _read(request, settings, how)
        begun = time.perf_counter()
        answer = await _ask(model, request, predict.Query(cloud))
        hits = await asyncio.to_thread(_hits, found, answer, cloud, count, preview)
        body = SearchAnswer(
            model=model.tag,
            index=found.job,
            shapes=len(found),
            input=summary_of(cloud, request.headers.get("content-type", "")),
            hits=hits,
            timings_ms=Timings(read=read_ms, inference=_since(begun)),
        )
        return json_response(model.tag, body)


@router.post(
    "/classify",
    response_model=Classification,
    openapi_extra=_CLOUD,
    responses=problem_responses(*_ALWAYS, *PROBLEMS.values(), NotTrained),
)
async def classify(
    request: Request,
    host: Host,
    settings: Settings,
    how: How,
    count: Annotated[int, Query(ge=1, le=1000, description="Most classes named.")] = 5,
) -> Response:
    """A file of points or a mesh → its most probable classes among those of the training."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.PointcloudPredictor = model.predictor
        cloud, read_ms = await _read(request, settings, how)
        begun = time.perf_counter()
        answer = await _ask(model, request, predict.Query(cloud, classes=True))
        shares = answer.probabilities_L if answer.probabilities_L is not None else np.zeros(0)
        labels = predictor.calibration.labels
        best = np.argsort(-shares, kind="stable")[:count].tolist()
        body = Classification(
            model=model.tag,
            input=summary_of(cloud, request.headers.get("content-type", "")),
            classes=[ClassShare(label=labels[row], probability=float(shares[row])) for row in best],
            out_of_distribution=unusual(predictor.calibration, cloud, None),
            timings_ms=Timings(read=read_ms, inference=_since(begun)),
        )
        return json_response(model.tag, body)


@router.post(
    "/from-image",
    response_model=ImageReconstruction,
    openapi_extra=_body("image/png", "image/jpeg"),
    responses={
        200: {"content": _FILES},
        **problem_responses(
            *_ALWAYS, pictures.NotAPicture, pictures.DamagedPicture, pictures.PictureTooLarge, NotTrained, AnswerTooLong
        ),
    },
)
async def from_image(request: Request, host: Host, settings: Settings, out: Out = "json") -> Response:
    """A picture of one object on white → the point cloud that the single-view network sees in it."""
    with host.lease(request.scope["fourfold.request_id"]) as model:
        predictor: predict.PointcloudPredictor = model.predictor
        views = predictor.calibration.views
        body = await _file(request, settings)
        if views is None:
            raise NotTrained("The model served now has no single-view network.")
        begun = time.perf_counter()
        values, warnings = await asyncio.to_thread(pictures.read_picture, body, views.size)
        read_ms, begun = _since(begun), time.perf_counter()
        answer = await _ask(model, request, predict.Query(image_3HW=values))
        summary = ImageReconstruction.model_construct(
            model=model.tag, warnings=warnings, timings_ms=Timings(read=read_ms, inference=_since(begun))
        )
        make = partial(points_response, model.tag, out, summary, _decoded(answer).astype(np.float64), None)
        return await asyncio.to_thread(make)


# -- what the routes share


async def _file(request: Request, settings: ServiceSettings) -> bytes:
    """The body, whatever it is called but for what cannot be a file."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _NOT_FILES:
        raise UnsupportedMedia(
            f"Send the file's bytes as the body, for example as application/octet-stream, not {media_type}."
        )
    return await read_body(request, settings.max_body_bytes)


async def _read(request: Request, settings: ServiceSettings, how: Reading) -> tuple[Cloud, float]:
    """The cloud of the body's file, and the milliseconds that reading took."""
    data = await _file(request, settings)
    begun = time.perf_counter()
    reader = shared_reader()
    call = reader.submit(lambda seconds: reader.read(data, seconds=seconds, **how.options), deadline_of(request))
    return await asyncio.wrap_future(call), _since(begun)


async def _ask(model: LoadedModel, request: Request, query: predict.Query) -> Answer:
    return await model.predict(query, deadline=deadline_of(request))


async def _distance(request: Request, cloud: Cloud, answer: Answer) -> Distance:
    reader, points = shared_reader(), _decoded(answer)
    call = reader.submit(lambda seconds: reader.distances(cloud.unit_N3, points, seconds=seconds), deadline_of(request))
    there, back = await asyncio.wrap_future(call)
    return distance_of(there, back, cloud.scale)


def _decoded(answer: Answer) -> predict.Floats:
    if answer.points_G3 is None:
        raise Unprocessable("Nothing was decoded.")
    return answer.points_G3


def _version_of(host: ModelHost, fingerprint: bytes) -> str | None:
    """The loaded version with these graphs: champion or canary."""
    for model in host.loaded:
        if model.predictor.fingerprint == fingerprint:
            return str(model.version)
    return None


def _hits(index: Index, answer: Answer, cloud: Cloud, count: int, preview: str) -> list[Hit]:
    if answer.codeword_W is None:
        raise Unprocessable("The cloud has no codeword.")
    found = index.search(answer.codeword_W, count)
    rows = np.random.default_rng(0).permutation(len(cloud.unit_N3))[:256]
    distances = preview_distances(cloud.unit_N3[rows], [item.preview_P3 for item in found])
    hits: list[Hit] = []
    for item, chamfer in zip(found, distances, strict=True):
        png = base64.b64encode(pictures.preview_png(item.preview_P3)).decode() if preview == "png" else None
        points: Any = np.round(item.preview_P3, 4).tolist() if preview == "points" else None
        hits.append(
            Hit(
                name=item.name,
                label=item.label,
                distance=item.distance,
                chamfer=chamfer,
                preview_png=png,
                preview_points=points,
            )
        )
    return hits


def _indexes(request: Request, settings: ServiceSettings) -> Indexes:
    state = request.app.state
    if not hasattr(state, "indexes"):
        state.indexes = Indexes.of(settings)
    return state.indexes


def _since(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 2)


DOMAIN = Domain(
    name="pointcloud",
    title="Fourfold point clouds",
    description="Point clouds and meshes: reconstructed, compressed, searched, classified; shapes from one picture.",
    load=predict.load,
    router=router,
    pretrained=Path(__file__).with_name("pretrained"),
    train_config=TrainConfig,
    batches={"index": IndexConfig, "dispersion": DispersionConfig},
)


def create_app() -> FastAPI:
    """The ASGI application, for `uvicorn --factory`."""
    return create_service(DOMAIN)
