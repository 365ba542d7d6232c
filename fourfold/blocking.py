"""The Python client for code without an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from fourfold.client import AsyncClient, Image, MapForm, Shape

T = TypeVar("T")


class Client:
    """The same API for plain code, also inside a notebook. Close it, or use it with `with`."""

    def __init__(self, url: str | None = None, key: str | None = None, *, timeout: float = 300.0) -> None:
        self._inner = AsyncClient(url, key, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fourfold-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._run(_closed(self._inner))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        # Ctrl-C may come anywhere in here. A future's own wait takes its lock in Python, and an interrupt in there
        # leaves it locked for the loop; a SimpleQueue is whole before and after every instruction.
        outcome: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()
        started: list[asyncio.Task[T]] = []

        def start() -> None:
            started.append(self._loop.create_task(call))
            started[0].add_done_callback(outcome.put)

        try:
            self._loop.call_soon_threadsafe(start)
            return outcome.get().result()
        except KeyboardInterrupt:  # nobody waits for it any more
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])
            raise

    @property
    def url(self) -> str:
        return self._inner.url

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self._run(self._inner.request(method, path, **options))

    def score(self, image: Image, *, map: MapForm | None = None) -> dict[str, Any]:
        """See AsyncClient.score."""
        return self._run(self._inner.score(image, map=map))

    def score_many(self, images: Sequence[Image], *, map: MapForm | None = None) -> list[dict[str, Any]]:
        """See AsyncClient.score_many."""
        return self._run(self._inner.score_many(images, map=map))

    def list_keys(self) -> list[dict[str, Any]]:
        return self._run(self._inner.list_keys())

    def create_key(
        self, name: str, scopes: Sequence[str] = ("predict",), *, expires_in_days: float | None = None
    ) -> dict[str, Any]:
        """See AsyncClient.create_key."""
        return self._run(self._inner.create_key(name, scopes, expires_in_days=expires_in_days))

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return self._run(self._inner.revoke_key(key_id))

    def add_dataset(
        self, path: str | Path, kind: str, name: str, *, on_progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """See AsyncClient.add_dataset."""
        return self._run(self._inner.add_dataset(path, kind, name, on_progress=on_progress))

    def dataset(self, reference: str) -> dict[str, Any]:
        """See AsyncClient.dataset."""
        return self._run(self._inner.dataset(reference))

    def datasets(self) -> list[dict[str, Any]]:
        return self._run(self._inner.datasets())

    def remove_dataset(self, digest: str) -> None:
        self._run(self._inner.remove_dataset(digest))

    def train(
        self, domain: str, dataset: str, config: dict[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """See AsyncClient.train."""
        return self._run(self._inner.train(domain, dataset, config, idempotency_key=idempotency_key))

    def jobs(self, *, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        return self._run(self._inner.jobs(state=state, limit=limit))

    def job(self, job_id: str) -> dict[str, Any]:
        return self._run(self._inner.job(job_id))

    def job_points(self, job_id: str) -> list[dict[str, Any]]:
        """See AsyncClient.job_points."""
        return self._run(self._inner.job_points(job_id))

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        return self._run(self._inner.cancel_job(job_id))

    def job_log(self, job_id: str, start: int = 0) -> bytes:
        """See AsyncClient.job_log."""
        return self._run(self._inner.job_log(job_id, start))

    def job_events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """See AsyncClient.job_events."""
        events = self._inner.job_events(job_id)
        while True:
            event = self._run(_next(events))
            if event is None:
                return
            yield event

    def job_file(self, job_id: str, name: str) -> bytes:
        """See AsyncClient.job_file."""
        return self._run(self._inner.job_file(job_id, name))

    def score_accounts(self, accounts: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """See AsyncClient.score_accounts."""
        return self._run(self._inner.score_accounts(accounts, **options))

    def explain_accounts(self, accounts: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """See AsyncClient.explain_accounts."""
        return self._run(self._inner.explain_accounts(accounts, **options))

    def score_graph(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """See AsyncClient.score_graph."""
        return self._run(self._inner.score_graph(dataset, config))

    def reconstruct(self, shape: Shape, **options: Any) -> Any:
        """See AsyncClient.reconstruct."""
        return self._run(self._inner.reconstruct(shape, **options))

    def encode(self, shape: Shape, **options: Any) -> Any:
        """See AsyncClient.encode."""
        return self._run(self._inner.encode(shape, **options))

    def decode(self, codeword: Shape, **options: Any) -> Any:
        """See AsyncClient.decode."""
        return self._run(self._inner.decode(codeword, **options))

    def search(self, shape: Shape, **options: Any) -> dict[str, Any]:
        """See AsyncClient.search."""
        return self._run(self._inner.search(shape, **options))

    def classify(self, shape: Shape, **options: Any) -> dict[str, Any]:
        """See AsyncClient.classify."""
        return self._run(self._inner.classify(shape, **options))

    def shape_from_image(self, image: Image, **options: Any) -> Any:
        """See AsyncClient.shape_from_image."""
        return self._run(self._inner.shape_from_image(image, **options))

    def index_shapes(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """See AsyncClient.index_shapes."""
        return self._run(self._inner.index_shapes(dataset, config))

    def measure_dispersion(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """See AsyncClient.measure_dispersion."""
        return self._run(self._inner.measure_dispersion(dataset, config))

    def advise(self, module: str | Path, *, flags: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """See AsyncClient.advise."""
        return self._run(self._inner.advise(module, flags=flags, **options))

    def tune(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """See AsyncClient.tune."""
        return self._run(self._inner.tune(dataset, config))

    def models(self) -> list[dict[str, Any]]:
        return self._run(self._inner.models())

    def model(self, name: str) -> dict[str, Any]:
        """See AsyncClient.model."""
        return self._run(self._inner.model(name))

    def model_version(self, name: str, version: int) -> dict[str, Any]:
        return self._run(self._inner.model_version(name, version))

    def compare(self, name: str, version: int) -> dict[str, Any]:
        """See AsyncClient.compare."""
        return self._run(self._inner.compare(name, version))

    def set_alias(self, name: str, alias: str, version: int | None, **options: Any) -> dict[str, Any]:
        """See AsyncClient.set_alias."""
        return self._run(self._inner.set_alias(name, alias, version, **options))

    def rollback(self, name: str, *, reason: str = "") -> int:
        """See AsyncClient.rollback."""
        return self._run(self._inner.rollback(name, reason=reason))

    def audit(self, model: str, version: int, **options: Any) -> dict[str, Any]:
        """See AsyncClient.audit."""
        return self._run(self._inner.audit(model, version, **options))

    def audits(self, model: str | None = None, version: int | None = None) -> list[dict[str, Any]]:
        """See AsyncClient.audits."""
        return self._run(self._inner.audits(model, version))

    def audit_report(self, audit_id: str) -> dict[str, Any]:
        """See AsyncClient.audit_report."""
        return self._run(self._inner.audit_report(audit_id))

    def audit_page(self, audit_id: str) -> bytes:
        return self._run(self._inner.audit_page(audit_id))

    def policy(self, name: str) -> dict[str, Any]:
        """See AsyncClient.policy."""
        return self._run(self._inner.policy(name))

    def set_policy(self, name: str, audit: dict[str, Any]) -> dict[str, Any]:
        """See AsyncClient.set_policy."""
        return self._run(self._inner.set_policy(name, audit))

    def ready(self) -> dict[str, Any]:
        return self._run(self._inner.ready())


async def _closed(inner: AsyncClient) -> None:
    """Close the client when what was cancelled has ended."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    await inner.close()


async def _next(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)
