"""The Python client: `AsyncClient`, and `Client`, which runs it for code without an event loop."""

from __future__ import annotations

import asyncio
import mimetypes
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import aiohttp
import orjson

from fourfold import location
from fourfold.errors import ApiError, ConnectionFailed

T = TypeVar("T")
Image = str | Path | bytes
MapForm = Literal["array", "overlay"]


class AsyncClient:
    """The gateway's API for asyncio. Use it with `async with`.

    `url` and `key` default to FOURFOLD_URL and FOURFOLD_KEY, then to what `fourfold up` left on this machine.
    Every method raises ApiError for a problem that the gateway answers, and ConnectionFailed when nobody does.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, timeout: float = 300.0) -> None:
        self.url = (url or location.url()).rstrip("/")
        self._key = key or location.key()
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=5)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self, method: str, path: str, *, data: Any = None, json: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """One call of the API; the decoded JSON answer, or None for an empty one."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        sent = {"Authorization": f"Bearer {self._key}", **(headers or {})}
        if json is not None:
            data, sent["Content-Type"] = orjson.dumps(json), "application/json"
        try:
            async with self._session.request(method, self.url + path, data=data, headers=sent) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ConnectionFailed(f"{self.url} is not answering ({error or type(error).__name__}).") from None
        if answer.status >= 400:
            raise ApiError.from_answer(answer.status, body)
        return orjson.loads(body) if body else None

    async def score(self, image: Image, *, map: MapForm | None = None) -> dict[str, Any]:
        """Quality of one image (a path, or the file's bytes): the members of `ImageScore` in the API's document."""
        data, media_type = _read(image)
        query = f"?map={map}" if map else ""
        return await self.request("POST", f"/v1/iqa/score{query}", data=data, headers={"Content-Type": media_type})

    async def score_many(self, images: Sequence[Image], *, map: MapForm | None = None) -> list[dict[str, Any]]:
        """Several images in one request: for each its `name`, and its `result` or its `problem`."""
        form = aiohttp.FormData()
        for number, image in enumerate(images):
            data, media_type = _read(image)
            name = Path(image).name if isinstance(image, str | Path) else f"image-{number}"
            form.add_field("images", data, filename=name, content_type=media_type)
        query = f"?map={map}" if map else ""
        answer = await self.request("POST", f"/v1/iqa/score{query}", data=form)
        return answer["results"]

    async def list_keys(self) -> list[dict[str, Any]]:
        """Every API key, without secrets."""
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            page = await self.request("GET", f"/v1/keys?cursor={cursor}")
            found += page["keys"]
            if page["next_cursor"] is None:
                return found
            cursor = page["next_cursor"]

    async def create_key(
        self, name: str, scopes: Sequence[str] = ("predict",), *, expires_in_days: float | None = None
    ) -> dict[str, Any]:
        """A new key; its `secret` is in this answer and nowhere else."""
        asked = {"name": name, "scopes": list(scopes), "expires_in_days": expires_in_days}
        return await self.request("POST", "/v1/keys", json=asked)

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        return await self.request("DELETE", f"/v1/keys/{key_id}")

    async def ready(self) -> dict[str, Any]:
        """Which services are ready; raises ApiError (503) when one is not."""
        return await self.request("GET", "/readyz")


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
            self._run(self._inner.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

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

    def ready(self) -> dict[str, Any]:
        return self._run(self._inner.ready())


def _read(image: Image) -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, "application/octet-stream"
    guessed = mimetypes.guess_type(str(image))[0] or ""
    return Path(image).read_bytes(), guessed if guessed.startswith("image/") else "application/octet-stream"
