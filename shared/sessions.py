"""Serving sessions: an ONNX graph, a loaded model version, and the host that swaps versions under traffic."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from shared.batching import Batcher
from shared.bundles import Bundle, BundleRejected
from shared.problems import InputError, NotFound, NotReady
from shared.repository import AliasTable, ModelRepository
from shared.settings import ServiceSettings

log = structlog.get_logger(__name__)

Tensors = Mapping[str, NDArray[Any]]

# ONNX Runtime's type names → NumPy. Strings travel as object arrays of str.
ORT_DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(string)": np.dtype(np.object_),
}
# Up to this many bytes a request joins others in one run; above it the copy costs more than the call saves.
CONCATENATE_BYTES = 64 << 10
RETRY_SECONDS = 60.0  # longest wait before a version that cannot be loaded is tried again

MODEL_REQUESTS = Counter("fourfold_model_requests", "Requests taken by a model version.", ["model", "version"])
MODEL_LOADED = Gauge(
    "fourfold_model_loaded", "Copies of each version in memory.", ["model", "version"], multiprocess_mode="livesum"
)


@dataclass(frozen=True)
class GraphTensor:
    """One input or output of a graph; −1 in `shape` is a dynamic dimension."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class OnnxSession:
    """One ONNX graph on ONNX Runtime: one thread, no spinning; scale by processes."""

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        """Raises BundleRejected for a graph that this runtime does not take (unknown operator set, damaged)."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        try:
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=providers)
        except Exception as error:
            raise BundleRejected("ONNX Runtime does not take the model's graph.") from error
        self.device = device
        self.inputs = tuple(_graph_tensor(node) for node in self._session.get_inputs())
        self.outputs = tuple(_graph_tensor(node) for node in self._session.get_outputs())
        self._output_names = [output.name for output in self.outputs]
        # Requests can share a run when every tensor's first dimension is a free batch dimension.
        self.batches = all(tensor.shape and tensor.shape[0] == -1 for tensor in (*self.inputs, *self.outputs))

    def infer(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs for `inputs`; raises InputError for values that the graph cannot take."""
        try:
            values: Any = self._session.run(None, inputs)
            return dict(zip(self._output_names, values, strict=True))
        except Exception as error:
            # The runtime's own words hold node names, never data or paths; they tell the caller which tensor is off.
            raise InputError(f"The model cannot take these inputs: {str(error).splitlines()[0][:300]}") from error

    def infer_many(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray[Any]] | Exception]:
        """One answer a request; small requests that agree in all but the batch dimension share a run."""
        if len(requests) == 1:
            return [self.infer(requests[0])]
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(self._group(index, request), []).append(index)
        answers: list[Any] = [None] * len(requests)
        for indices in groups.values():
            try:
                if len(indices) == 1:
                    answers[indices[0]] = self.infer(requests[indices[0]])
                else:
                    for index, answer in zip(
                        indices, self._infer_together([requests[i] for i in indices]), strict=True
                    ):
                        answers[index] = answer
            except InputError as error:
                if len(indices) == 1:
                    answers[indices[0]] = error
                else:
                    for index in indices:
                        answers[index] = self.infer_or_error(requests[index])
        return answers

    def infer_or_error(self, request: Tensors) -> dict[str, NDArray[Any]] | Exception:
        try:
            return self.infer(request)
        except InputError as error:
            return error

    def _group(self, index: int, request: Tensors) -> Any:
        size = sum(array.nbytes for array in request.values())
        rows = {array.shape[0] if array.ndim else 0 for array in request.values()}
        if not self.batches or len(rows) != 1 or (self.device == "cpu" and size > CONCATENATE_BYTES):
            return index
        return tuple((name, request[name].shape[1:]) for name in sorted(request))

    def _infer_together(self, requests: Sequence[Tensors]) -> list[dict[str, NDArray[Any]]]:
        names = list(requests[0])
        together = self.infer({name: np.concatenate([request[name] for request in requests]) for name in names})
        ends = np.cumsum([request[names[0]].shape[0] for request in requests])[:-1]
        parts = {name: np.split(array, ends) for name, array in together.items()}
        return [{name: parts[name][row] for name in parts} for row in range(len(requests))]


def _graph_tensor(node: Any) -> GraphTensor:
    dtype = ORT_DTYPES.get(node.type)
    if dtype is None:
        raise BundleRejected(f"The graph's tensor {node.name} has the type {node.type}, which is not served.")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape or ())
    return GraphTensor(node.name, dtype, shape)


class Session(Protocol):
    """What /v2 serves under the model's name: an OnnxSession, or several graphs that a domain shows as one."""

    @property
    def inputs(self) -> tuple[GraphTensor, ...]: ...

    @property
    def outputs(self) -> tuple[GraphTensor, ...]: ...

    def infer_many(self, requests: Sequence[Tensors]) -> Sequence[dict[str, NDArray[Any]] | Exception]:
        """All outputs, or an InputError, for each request, in order."""
        ...


class Predictor(Protocol):
    """What a domain's `predict.load(bundle, settings)` returns: arrays → results, without HTTP and without torch."""

    @property
    def session(self) -> Session: ...

    def predict(self, batch: Sequence[Any]) -> Sequence[Any]:
        """One result, or one exception, for each item, in order. Called off the event loop, one call at a time."""
        ...

    def warm_up(self) -> None:
        """Run once on typical input, so that the first request is as fast as the second."""
        ...


class LoadedModel:
    """One version in memory with its queue; kept alive by its leases."""

    def __init__(
        self, name: str, version: int, bundle: Bundle, predictor: Predictor, settings: ServiceSettings
    ) -> None:
        self.name = name
        self.version = version
        self.manifest = bundle.manifest
        self.predictor: Any = predictor
        self.session: Session = predictor.session
        self.batcher = Batcher(
            max_size=settings.max_batch_size,
            max_delay=settings.max_batch_delay_ms / 1000,
            capacity=settings.queue_capacity,
        )
        self.leases = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.requests = MODEL_REQUESTS.labels(name, version)
        MODEL_LOADED.labels(name, version).inc()  # a version may be loaded anew while its last requests end

    @property
    def tag(self) -> str:
        """The value of the `Fourfold-Model` header, `<name>/<version>`."""
        return f"{self.name}/{self.version}"

    async def predict(self, item: Any, *, deadline: float | None = None) -> Any:
        """The domain's result for one item, through the queue. `deadline` is a time of the loop's clock."""
        return await self.batcher.submit(self.predictor.predict, item, deadline=deadline)

    async def infer(self, tensors: Tensors, *, deadline: float | None = None) -> dict[str, NDArray[Any]]:
        """The graph's outputs for `tensors`, through the same queue."""
        small = sum(array.nbytes for array in tensors.values()) <= 4096
        run = self.session.infer_many if small else self._infer_large
        return await self.batcher.submit(run, tensors, deadline=deadline, small=small)

    def _infer_large(self, requests: Sequence[Tensors]) -> Sequence[Any]:
        return self.session.infer_many(requests)

    async def retire(self) -> None:
        """Wait until the last lease is returned, then free the model's memory."""
        await self.idle.wait()
        await self.batcher.close()
        MODEL_LOADED.labels(self.name, self.version).dec()
        del self.predictor, self.session
        await asyncio.to_thread(_return_memory)


def _return_memory() -> None:
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only: hand freed arenas back to the system
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class ModelHost:
    """Serves a model's `champion`, and a share of requests from its `canary`, following the repository's aliases."""

    def __init__(
        self,
        name: str,
        repository: ModelRepository,
        load: Callable[[Bundle, ServiceSettings], Predictor],
        settings: ServiceSettings,
        pretrained: Path | None = None,
    ) -> None:
        self.name = name
        self.repository = repository
        self.settings = settings
        self.wanted = True  # False after an explicit unload
        self.reason = "loading"  # why the model is not ready, or why the wanted version is not the one served
        self._load = load
        self._pretrained = pretrained
        self._table = AliasTable()
        self._tried = AliasTable()
        self._again = 0.0  # when to try it again if it failed, on the monotonic clock
        self._models: dict[int, LoadedModel] = {}
        self._champion: LoadedModel | None = None
        self._canary: tuple[LoadedModel, float] | None = None
        self._failures = 0  # in a row; each costs a load, so they grow rarer
        self._changing = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    # -- life

    async def start(self) -> None:
        """Import the pretrained bundle if the model is new, load what the aliases name, and keep following them."""
        if self._pretrained is not None:
            await asyncio.to_thread(self.repository.seed, self._pretrained)
        await self._follow_once(first=True)
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Stop following, drain and free everything."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        async with self._changing:
            self._serve(None, None)
        await asyncio.gather(*self._retiring)

    async def load(self) -> None:
        """Serve again after `unload`, or look at the aliases now; raises NotReady with the reason on failure."""
        self.wanted = True
        await self._follow_once(first=True)
        if not self.ready:
            raise NotReady(self.reason, retry_after=1)

    async def unload(self) -> None:
        """Stop serving and free the memory; requests under way finish."""
        async with self._changing:
            self.wanted = False
            self.reason = "unloaded"
            self._serve(None, None)
        await asyncio.gather(*self._retiring)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.settings.alias_poll_seconds)
            await self._follow_once()

    async def _follow_once(self, *, first: bool = False) -> None:
        """Bring what is served in line with the aliases. A failure keeps what is served and says why."""
        async with self._changing:
            if not self.wanted:
                return
            try:
                newer = await asyncio.to_thread(self._newer_table, first)
                if newer is None or (newer == self._tried and not first and time.monotonic() < self._again):
                    return
                if newer != self._tried:
                    self._tried, self._failures = newer, 0
                await self._follow_table(newer)
                self._table, self._failures = newer, 0
                self.reason = ""
            except Exception as error:
                self._failures += 1
                pause = self.settings.alias_poll_seconds * 2 ** min(self._failures, 10)
                self._again = time.monotonic() + min(pause, RETRY_SECONDS)
                reason = f"{type(error).__name__}: {error}"
                if reason != self.reason:
                    log.error("cannot follow the aliases", model=self.name, exc_info=error)
                self.reason = reason

    def _newer_table(self, first: bool) -> AliasTable | None:
        return (
            self.repository.aliases(self.name)
            if first
            else self.repository.newer_aliases(self.name, self._table.generation)
        )

    async def _follow_table(self, table: AliasTable) -> None:
        champion = table.champion
        canary = table.aliases.get("canary")
        if champion is None:
            raise NotFound(f"The model {self.name} has no champion yet.")
        champion_model = await self._loaded(champion)
        try:
            canary_model = (await self._loaded(canary.version), canary.weight) if canary else None
        except Exception:
            self._serve(champion_model, None)  # a bad canary keeps nobody from promoting or rolling back
            raise
        self._serve(champion_model, canary_model)
        log.info("serving", model=self.name, champion=champion, canary=canary.version if canary else None)

    async def _loaded(self, version: int) -> LoadedModel:
        model = self._models.get(version)
        if model is None:
            model = await asyncio.to_thread(self._load_version, version)
            self._models[version] = model
        return model

    def _load_version(self, version: int) -> LoadedModel:
        with self.repository.fetch(self.name, version) as bundle:
            predictor = self._load(bundle, self.settings)
            predictor.warm_up()
            return LoadedModel(self.name, version, bundle, predictor, self.settings)

    def _serve(self, champion: LoadedModel | None, canary: tuple[LoadedModel, float] | None) -> None:
        """The swap itself: two assignments between awaits; what is no longer named retires when its leases end."""
        self._champion, self._canary = champion, canary
        keep = {model.version for model in (champion, canary[0] if canary else None) if model is not None}
        for version in [version for version in self._models if version not in keep]:
            task = asyncio.create_task(self._models.pop(version).retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    # -- use

    @property
    def ready(self) -> bool:
        return self._champion is not None

    @property
    def loaded(self) -> list[LoadedModel]:
        """The versions that take traffic, champion first."""
        models = [self._champion, self._canary[0] if self._canary else None]
        return [model for model in models if model is not None]

    def choose(self, request_id: str, version: str | None = None) -> LoadedModel:
        """The loaded version for a request: the one asked for, or champion or canary by a hash of the request id."""
        if version is not None:
            for model in self.loaded:
                if str(model.version) == version:
                    return model
            raise NotFound(f"Version {version} of the model {self.name} is not being served.")
        if self._champion is None:
            raise NotReady(f"The model {self.name} is not ready: {self.reason}.", retry_after=1)
        if self._canary is not None and _share(request_id) < self._canary[1]:
            return self._canary[0]
        return self._champion

    @contextmanager
    def lease(self, request_id: str, version: str | None = None) -> Iterator[LoadedModel]:
        """`choose`, and keep the version in memory until the `with` ends."""
        model = self.choose(request_id, version)
        model.leases += 1
        model.idle.clear()
        model.requests.inc()
        try:
            yield model
        finally:
            model.leases -= 1
            if model.leases == 0:
                model.idle.set()


def _share(request_id: str) -> float:
    """A number in [0, 1) that depends on the request id alone."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8]) / 2**64
