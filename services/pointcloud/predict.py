"""Clouds, codewords and pictures → codewords, points and classes, on ONNX Runtime and NumPy.

Shapes: B clouds, N points, K neighbours, W numbers of the codeword, G points of the surface, S its dimension, L labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.pointcloud.calibration import FILE, Calibration, load_calibration
from services.pointcloud.codec import Precision, rounded
from services.pointcloud.features import MOST_POINTS, Cloud, Reader, shared_reader
from services.pointcloud.sampling import FEWEST
from shared.bundles import Bundle, BundleRejected, file_digest
from shared.problems import FourfoldError, InputError, Unprocessable
from shared.sessions import GraphTensor, OnnxSession, Tensors
from shared.settings import ServiceSettings

FINEST, COARSEST = 128, 4  # resolutions that are folded
INT8_DECODER = "decoder_int8.onnx"  # of the same weights; the fingerprint is that of the others
MOST_V2 = 16 * 2048  # points in one V2 request
Floats = NDArray[np.float32]


class NotTrained(Unprocessable):
    code = "pointcloud-not-trained"
    title = "The model served now was not trained for that"
    advice = "Promote a version that was trained for it (`task`)."


@dataclass(frozen=True)
class Query:
    """What to compute, from a cloud, a codeword or a picture, whichever is there."""

    cloud: Cloud | None = None
    codeword_W: Floats | None = None
    image_3HW: Floats | None = None  # 0–1
    points: bool = False  # decode
    classes: bool = False
    precision: Precision | None = None  # round the codeword to it before it is decoded
    resolution: int | None = None  # of the surface, the training's own if unset


@dataclass(frozen=True)
class Answer:
    """What was asked for; `points_G3` lie in the unit ball."""

    codeword_W: Floats | None = None
    points_G3: Floats | None = None
    probabilities_L: Floats | None = None


class PointcloudPredictor:
    """The served graphs with their calibration."""

    def __init__(
        self,
        graphs: Mapping[Literal["encoder", "decoder", "classifier", "single_view"], OnnxSession],
        calibration: Calibration,
        fingerprint: bytes,
        reader: Reader | None = None,
    ) -> None:
        self.graphs = graphs
        self.calibration = calibration
        self.fingerprint = fingerprint  # 8 bytes: encoder and decoder, whatever the version is called
        self.session = PointSession(self, reader)
        self._sources = lru_cache(maxsize=4)(self._make_source)

    @property
    def width(self) -> int:
        return self.graphs["encoder"].outputs[0].shape[-1]

    def predict(self, batch: Sequence[Query]) -> list[Answer | Exception]:
        """One after the other: on a processor a batch takes as long as its parts, and nothing need be padded."""
        return [self._answer_or_error(query) for query in batch]

    def warm_up(self) -> None:
        angle = np.linspace(0, 60, 300)
        points = np.stack([np.cos(angle) * angle, np.sin(angle) * angle, angle], axis=1) / 80
        features = np.concatenate([points, np.zeros((300, 9))], axis=1).astype(np.float32)
        near = (np.arange(300)[:, None] + np.arange(1, 17)) % 300
        answer = self._answer_or_error(Query(Cloud(features, near, np.zeros(3), 1.0), points=True))
        if isinstance(answer, Exception) or answer.points_G3 is None or not np.isfinite(answer.points_G3).all():
            raise BundleRejected("The graphs do not run on a plain cloud.")

    def triangles(self, resolution: int | None) -> NDArray[np.int64] | None:
        """Triangles (T, 3) between the decoded points; None where the decoder folds no surface."""
        return self._sources(resolution)[1]

    def _make_source(self, resolution: int | None) -> tuple[Floats | None, NDArray[np.int64] | None]:
        source = self.calibration.source
        if source is None:
            if resolution is not None:
                raise NotTrained("The decoder served now folds no surface; its number of points is fixed.")
            return None, None
        try:
            return source.points(resolution), source.triangles(resolution)
        except ValueError as error:
            raise NotTrained(str(error)) from None

    def _answer_or_error(self, query: Query) -> Answer | Exception:
        try:
            return self._answer(query)
        except FourfoldError as error:
            return error

    def _answer(self, query: Query) -> Answer:
        if query.image_3HW is not None:
            return Answer(points_G3=self._run("single_view", {"image": query.image_3HW[None]}, "points"))
        codeword_W = query.codeword_W if query.cloud is None else self.encode(query.cloud)
        if codeword_W is None:
            raise InputError("There is nothing to predict from.")
        if query.precision is not None:
            codeword_W = rounded(codeword_W, query.precision)
        return Answer(
            codeword_W,
            self.decode(codeword_W, query.resolution) if query.points else None,
            self._run("classifier", {"codeword": codeword_W[None]}, "probabilities") if query.classes else None,
        )

    def encode(self, cloud: Cloud) -> Floats:
        """Codeword (W,)."""
        given = {"features": cloud.features_N12[None], "neighbours": cloud.neighbours_NK[None]}
        return self._run("encoder", given, "codeword")

    def decode(self, codeword_W: Floats, resolution: int | None = None) -> Floats:
        """Points (G, 3) in the unit ball."""
        source_GS = self._sources(resolution)[0]
        given = {"codeword": codeword_W[None]} | ({} if source_GS is None else {"source": source_GS})
        points_G3 = self._run("decoder", given, "points")
        if not np.isfinite(points_G3).all():
            raise Unprocessable("The codeword decodes to points that are not finite.")
        return points_G3

    def _run(self, graph: Any, given: Tensors, output: str) -> Floats:
        if graph not in self.graphs:
            raise NotTrained(f"The model served now has no {graph.replace('_', '-')} network.")
        return self.graphs[graph].infer(given)[output][0]


class PointSession:
    """The V2 face: `points` (B, N, 3) → `codeword` (B, W) and `reconstruction` (B, G, 3), in the caller's units."""

    inputs = (GraphTensor("points", np.dtype(np.float32), (-1, -1, 3)),)

    def __init__(self, predictor: PointcloudPredictor, reader: Reader | None) -> None:
        self._predictor = predictor
        self._reader = reader
        kind = np.dtype(np.float32)
        self.outputs = (
            GraphTensor("codeword", kind, (-1, predictor.width)),
            GraphTensor("reconstruction", kind, (-1, -1, 3)),
        )

    def infer_many(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray[Any]] | Exception]:
        """Each cloud is normalised, and its reconstruction moved back to where it was."""
        answers: list[dict[str, NDArray[Any]] | Exception] = []
        for request in requests:
            try:
                answers.append(self._infer(request["points"]))
            except InputError as error:
                answers.append(InputError(error.detail))
        return answers

    def _infer(self, points_BN3: Floats) -> dict[str, NDArray[Any]]:
        batch, count, _ = points_BN3.shape
        if batch == 0 or not FEWEST <= count <= MOST_POINTS or batch * count > MOST_V2:
            raise InputError(
                f"A cloud has {FEWEST} to {MOST_POINTS} points; a request at least one, at most {MOST_V2}."
            )
        reader = self._reader or shared_reader()
        clouds = [reader.prepare(points_N3) for points_N3 in points_BN3]
        codewords = [self._predictor.encode(cloud) for cloud in clouds]
        points = [
            self._predictor.decode(codeword) * cloud.scale + cloud.centre_3
            for codeword, cloud in zip(codewords, clouds, strict=True)
        ]
        return {"codeword": np.stack(codewords), "reconstruction": np.stack(points).astype(np.float32)}


def load(bundle: Bundle, settings: ServiceSettings) -> PointcloudPredictor:
    """The predictor of `bundle`; raises BundleRejected when its graphs or calibration are not this domain's."""
    calibration = load_calibration(bundle.path(FILE))
    graphs: dict[Any, OnnxSession] = {}
    for name, (inputs, outputs) in _GRAPHS.items():
        file = f"{name}.onnx"
        if name == "decoder" and settings.precision == "int8" and INT8_DECODER in bundle.manifest.files:
            file = INT8_DECODER
        if file not in bundle.manifest.files and name not in ("encoder", "decoder"):
            continue
        session = OnnxSession(bundle.path(file), device=settings.device)
        found = {tensor.name for tensor in session.inputs}, {tensor.name for tensor in session.outputs}
        wanted = inputs - ({"source"} if calibration.source is None else set[str]())
        if found != (wanted, outputs):
            raise BundleRejected(f"The inputs and outputs of {file} are not those of a point cloud model.")
        graphs[name] = session
    digests = "".join(file_digest(bundle.path(f"{name}.onnx")) for name in ("encoder", "decoder"))
    return PointcloudPredictor(graphs, calibration, hashlib.sha256(digests.encode()).digest()[:8])


_GRAPHS: Mapping[str, tuple[set[str], set[str]]] = {
    "encoder": ({"features", "neighbours"}, {"codeword"}),
    "decoder": ({"codeword", "source"}, {"points"}),
    "classifier": ({"codeword"}, {"probabilities"}),
    "single_view": ({"image"}, {"points"}),
}
