"""The Python client for asyncio."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
import orjson

from fourfold import location
from fourfold.errors import ApiError, ConnectionFailed, NothingEarlier
from fourfold.sources import module_of
from fourfold.uploads import files_below, part_digests

Image = str | Path | bytes
Shape = str | Path | bytes
MapForm = Literal["array", "overlay"]
RECONNECTS = 60
PART_BYTES = 32 << 20  # files larger than this are uploaded in parts of it


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
        self,
        method: str,
        path: str,
        *,
        data: Any = None,
        json: Any = None,
        headers: dict[str, str] | None = None,
        raw: bool = False,
        patient: bool = False,
    ) -> Any:
        """One call of the API; the decoded JSON answer, or None for an empty one. `raw`: the answer's bytes.

        `patient`: it may take as long as bytes go either way.
        """
        sent = {"Authorization": f"Bearer {self._key}", **(headers or {})}
        if json is not None:
            data, sent["Content-Type"] = orjson.dumps(json), "application/json"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=3600) if patient else self._timeout
        try:
            call = self._opened().request(method, self.url + path, data=data, headers=sent, timeout=timeout)
            async with call as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ConnectionFailed(f"{self.url} is not answering ({error or type(error).__name__}).") from None
        if answer.status >= 400:
            raise ApiError.from_answer(answer.status, body)
        if raw:
            return body
        return orjson.loads(body) if body else None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        return self._session

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

    # -- data sets

    async def add_dataset(
        self, path: str | Path, kind: str, name: str, *, on_progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Upload a folder (each file that the gateway lacks) or an archive; the data set, perhaps not yet validated."""
        path = Path(path)
        if path.is_file():
            with path.open("rb") as stream:  # noqa: ASYNC230 - as below
                query = f"?kind={quote(kind)}&name={quote(name)}"
                headers = {"Content-Type": "application/octet-stream"}
                return await self.request("POST", f"/v1/datasets{query}", data=stream, headers=headers, patient=True)
        found = await asyncio.to_thread(files_below, path)
        listing = {"kind": kind, "name": name, "files": [entry for _, entry in found]}
        try:
            return await self.request("POST", "/v1/datasets/listings", json=listing)
        except ApiError as error:
            if "missing" not in error.extra:
                raise
            missing = set(error.extra["missing"])
        places = {entry["sha256"]: place for place, entry in found if entry["sha256"] in missing}
        for number, (sha256, place) in enumerate(sorted(places.items()), start=1):
            await self._upload(place, sha256)
            if on_progress is not None:
                on_progress(number, len(places))
        return await self.request("POST", "/v1/datasets/listings", json=listing)

    async def _upload(self, place: Path, sha256: str) -> None:
        """One file; a large one in parts, of which only those are sent that the gateway lacks."""
        size = (await asyncio.to_thread(place.stat)).st_size
        with place.open("rb") as stream:
            if size <= PART_BYTES:
                await self.request("PUT", f"/v1/datasets/files/{sha256}", data=stream, patient=True)
                return
            parts = await asyncio.to_thread(part_digests, place, PART_BYTES)
            path, asked = f"/v1/datasets/files/{sha256}/parts", {"parts": parts}
            try:
                await self.request("POST", path, json=asked)
                return
            except ApiError as error:
                if "missing" not in error.extra:
                    raise
                missing = set(error.extra["missing"])
            for number, part in enumerate(parts):
                if part in missing:
                    stream.seek(number * PART_BYTES)
                    data = await asyncio.to_thread(stream.read, PART_BYTES)
                    await self.request("PUT", f"/v1/datasets/files/{part}", data=data, patient=True)
            await self.request("POST", path, json=asked, patient=True)

    async def dataset(self, reference: str) -> dict[str, Any]:
        """By name, digest, or the digest's first digits."""
        return await self.request("GET", f"/v1/datasets/{quote(reference, safe='')}")

    async def datasets(self) -> list[dict[str, Any]]:
        """The newest fifty."""
        return (await self.request("GET", "/v1/datasets"))["datasets"]

    async def remove_dataset(self, digest: str) -> None:
        await self.request("DELETE", f"/v1/datasets/{quote(digest, safe='')}")

    # -- jobs

    async def train(
        self, domain: str, dataset: str, config: dict[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Submit a training; its `id` and `links`."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        asked = {"dataset": dataset, "config": config or {}}
        return await self.request("POST", f"/v1/{quote(domain, safe='')}/training-jobs", json=asked, headers=headers)

    async def jobs(self, *, state: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest jobs."""
        query = f"?limit={limit}" + (f"&state={quote(state)}" if state else "")
        return (await self.request("GET", f"/v1/jobs{query}"))["jobs"]

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self.request("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    async def job_points(self, job_id: str) -> list[dict[str, Any]]:
        """The job's curves: `step`, `time` and `metrics` of each reported step."""
        return (await self.request("GET", f"/v1/jobs/{quote(job_id, safe='')}/points"))["points"]

    async def cancel_job(self, job_id: str) -> dict[str, Any]:
        return await self.request("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel")

    async def job_log(self, job_id: str, start: int = 0) -> bytes:
        """The log from byte `start` on, up to a mebibyte."""
        return await self.request("GET", f"/v1/jobs/{quote(job_id, safe='')}/logs?start={start}", raw=True)

    async def job_events(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Each event's `event` (`state` or `progress`) and `data`, until the job has ended.

        A connection that breaks is made again, and goes on where it was.
        """
        last: str | None = None
        failures = 0
        while True:
            try:
                async for event in self._stream(f"/v1/jobs/{quote(job_id, safe='')}/events", last):
                    failures = 0
                    last = event.pop("id", None) or last
                    yield event
                    if event["event"] == "state" and event["data"]["finished_at"] is not None:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failures += 1
                if failures > RECONNECTS:
                    raise ConnectionFailed(f"{self.url} is not answering ({error or type(error).__name__}).") from None
                await asyncio.sleep(1)

    async def _stream(self, path: str, last: str | None) -> AsyncIterator[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self._key}", **({"Last-Event-ID": last} if last else {})}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
        async with self._opened().get(self.url + path, headers=headers, timeout=timeout) as answer:
            if answer.status >= 400:
                raise ApiError.from_answer(answer.status, await answer.read())
            event: dict[str, Any] = {}
            async for line in answer.content:
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name in ("event", "id"):
                    event[name] = value
                elif name == "data":
                    event["data"] = orjson.loads(value)
                elif not name and "data" in event:
                    yield event
                    event = {}

    async def job_file(self, job_id: str, name: str) -> bytes:
        """A file that the job made; its `result` names it."""
        return await self.request(
            "GET", f"/v1/jobs/{quote(job_id, safe='')}/files/{quote(name, safe='')}", raw=True, patient=True
        )

    # -- bots

    async def score_accounts(self, accounts: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """For each account its `result` or its `problem`; options are the members of ScoreRequest."""
        answer = await self.request("POST", "/v1/bots/score", json={"accounts": list(accounts), **options})
        return answer["results"]

    async def explain_accounts(self, accounts: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """What speaks for a bot and what against; options are the members of ExplainRequest."""
        answer = await self.request("POST", "/v1/bots/explain", json={"accounts": list(accounts), **options})
        return answer["results"]

    async def score_graph(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Submit the scoring of a whole data set; the job's `id` and `links`."""
        return await self.request("POST", "/v1/bots/graphs", json={"dataset": dataset, "config": config or {}})

    # -- point clouds

    async def reconstruct(self, shape: Shape, *, out: str = "json", **options: Any) -> Any:
        """A mesh of a file of points or a mesh: the members of `Reconstruction`, or the bytes of `out` (ply, npy, glb).

        Options are the query's: points, seed, reduce, non_finite, resolution, measure.
        """
        return await self._shape("reconstruct", shape, raw=out != "json", out=out, **options)

    async def encode(self, shape: Shape, *, out: str = "file", precision: str = "fp16", **options: Any) -> Any:
        """The codeword's file, for `decode`; or with out="json" the members of `Encoding`."""
        return await self._shape("encode", shape, raw=out != "json", out=out, precision=precision, **options)

    async def decode(self, codeword: Shape, *, out: str = "json", resolution: int | None = None) -> Any:
        """What `encode` made, as points and a mesh again, in the units of the file that was encoded."""
        return await self._shape("decode", codeword, raw=out != "json", out=out, resolution=resolution)

    async def search(
        self, shape: Shape, *, index: str | None = None, count: int = 10, **options: Any
    ) -> dict[str, Any]:
        """The nearest shapes of an index (its job, or the data set it was made of; the newest if unset)."""
        return await self._shape("search", shape, index=index, count=count, **options)

    async def classify(self, shape: Shape, *, count: int = 5, **options: Any) -> dict[str, Any]:
        """The most probable classes of a shape."""
        return await self._shape("classify", shape, count=count, **options)

    async def shape_from_image(self, image: Image, *, out: str = "json") -> Any:
        """The points that are seen in a picture."""
        return await self._shape("from-image", image, raw=out != "json", out=out)

    async def index_shapes(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Submit the making of an index of a data set's shapes; the job's `id` and `links`."""
        return await self.request("POST", "/v1/pointcloud/index", json={"dataset": dataset, "config": config or {}})

    async def measure_dispersion(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Submit the dispersion score of a data set; the job's `id` and `links`."""
        asked = {"dataset": dataset, "config": config or {}}
        return await self.request("POST", "/v1/pointcloud/dispersion", json=asked)

    async def _shape(self, route: str, shape: Shape, *, raw: bool = False, **query: Any) -> Any:
        given = {name: value for name, value in query.items() if value is not None}
        data = shape if isinstance(shape, bytes) else await asyncio.to_thread(Path(shape).read_bytes)
        path = f"/v1/pointcloud/{route}?{urlencode(given).replace('True', 'true').replace('False', 'false')}"
        headers = {"Content-Type": "application/octet-stream"}
        return await self.request("POST", path, data=data, headers=headers, raw=raw)

    async def advise(self, module: str | Path, *, flags: Sequence[str] = (), **options: Any) -> dict[str, Any]:
        """Inlining advice on a file of C source, LLVM IR (.ll) or bitcode (.bc): the members of `AdviceResponse`.

        `flags` are the compiler's, for C source; options are further members of AdviceRequest.
        """
        asked = await asyncio.to_thread(module_of, Path(module), flags)
        return await self.request("POST", "/v1/inlining/advice", json={**asked, **options})

    async def tune(self, dataset: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Submit the search for a module's decisions; the job's `id` and `links`. It leaves a replay file."""
        return await self.request("POST", "/v1/inlining/tune", json={"dataset": dataset, "config": config or {}})

    # -- models

    async def models(self) -> list[dict[str, Any]]:
        return (await self.request("GET", "/v1/models"))["models"]

    async def model(self, name: str) -> dict[str, Any]:
        """Versions, aliases and the aliases' history."""
        return await self.request("GET", f"/v1/models/{quote(name, safe='')}")

    async def model_version(self, name: str, version: int) -> dict[str, Any]:
        """The manifest of a version."""
        return await self.request("GET", f"/v1/models/{quote(name, safe='')}/versions/{version}")

    async def compare(self, name: str, version: int) -> dict[str, Any]:
        """Submit a comparison of a version with the champion of now; the job's `id` and `links`."""
        return await self.request("POST", f"/v1/models/{quote(name, safe='')}/versions/{version}/comparisons")

    async def set_alias(
        self,
        name: str,
        alias: str,
        version: int | None,
        *,
        weight: float = 1.0,
        force: bool = False,
        reason: str = "",
        expected_generation: int | None = None,
    ) -> dict[str, Any]:
        """Promote (`champion`) or set a canary; the new alias table. See AliasRequest in the API's document."""
        asked = {"version": version, "weight": weight, "force": force, "reason": reason}
        asked["expected_generation"] = expected_generation
        return await self.request("PUT", f"/v1/models/{quote(name, safe='')}/aliases/{alias}", json=asked)

    async def rollback(self, name: str, *, reason: str = "") -> int:
        """Make the champion before this one the champion again; its version.

        Raises NothingEarlier if there was none.
        """
        model = await self.model(name)
        tables = [table["aliases"] for table in model["history"]]
        champions = [aliases["champion"]["version"] for aliases in tables if "champion" in aliases]
        earlier = [version for version in champions if version != champions[-1]]
        if not earlier:
            raise NothingEarlier(f"{name} had no other champion.")
        generation = model["aliases"]["generation"]
        reason = reason or f"rollback from {champions[-1]}"
        await self.set_alias(name, "champion", earlier[-1], reason=reason, expected_generation=generation)
        return earlier[-1]

    # -- audits

    async def audit(
        self, model: str, version: int, *, idempotency_key: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Submit an audit; the job's `id`, which is the audit's, and `links`. Options: AuditRequest's members."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
        asked = {"model": model, "version": version, **options}
        return await self.request("POST", "/v1/audits", json=asked, headers=headers)

    async def audits(self, model: str | None = None, version: int | None = None) -> list[dict[str, Any]]:
        """The newest two hundred, of a model or of one version if asked."""
        known = {name: value for name, value in (("model", model), ("version", version)) if value is not None}
        return (await self.request("GET", f"/v1/audits?{urlencode({'limit': 200, **known})}"))["audits"]

    async def audit_report(self, audit_id: str) -> dict[str, Any]:
        """The report; raises ApiError (409) while there is none."""
        return await self.request("GET", f"/v1/audits/{quote(audit_id, safe='')}")

    async def audit_page(self, audit_id: str) -> bytes:
        """The report as one HTML page."""
        return await self.request("GET", f"/v1/audits/{quote(audit_id, safe='')}/report.html", raw=True)

    async def policy(self, name: str) -> dict[str, Any]:
        """What a version of the model must have before it becomes champion."""
        return await self.request("GET", f"/v1/models/{quote(name, safe='')}/policy")

    async def set_policy(self, name: str, audit: dict[str, Any]) -> dict[str, Any]:
        """`audit`: required, checks, accept; the new policy."""
        return await self.request("PUT", f"/v1/models/{quote(name, safe='')}/policy", json={"audit": audit})

    async def ready(self) -> dict[str, Any]:
        """Which services are ready; raises ApiError (503) when one is not."""
        return await self.request("GET", "/readyz")


def _read(image: Image) -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, "application/octet-stream"
    guessed = mimetypes.guess_type(str(image))[0] or ""
    return Path(image).read_bytes(), guessed if guessed.startswith("image/") else "application/octet-stream"
