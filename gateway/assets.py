"""The console's files, and plotly.js of the plotly wheel: what a browser may load without a key.

A file is served below a digest of all of them, `/console/<digest>/<path>`, so that a browser may keep it for ever; the
page at `/` names the digest. The modules import each other by relative paths, and so stay below it.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

from shared.problems import NotFound

FOLDER = Path(__file__).with_name("console")
PLOTLY = "plotly.min.js"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".c": "text/plain; charset=utf-8",
    ".ply": "application/octet-stream",
    ".stl": "application/octet-stream",
    ".off": "application/octet-stream",
    ".obj": "application/octet-stream",
}
_TEXT = ("text/", "application/json", "image/svg+xml")
# Scripts and styles from here alone and none inline; pictures that a page made itself; nobody may frame it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # The hash is that of an empty style element, which plotly.js makes and fills through the object model.
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOR_EVER, ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"


@dataclass(frozen=True)
class Asset:
    """One file as it is sent: `packed` is its gzip form, where that is smaller."""

    body: bytes
    packed: bytes | None
    media_type: str
    tag: str

    @classmethod
    def of(cls, body: bytes, name: str) -> Asset:
        media_type = MEDIA_TYPES[Path(name).suffix]
        packed = gzip.compress(body, mtime=0) if media_type.startswith(_TEXT) else None
        return cls(body, packed, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


class Console:
    """The files of the console, read once, and again when one of them has changed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._stamp: list[tuple[str, int, int]] = []
        self._plotly: Asset | None = None
        self.files: dict[str, Asset] = {}
        self.digest = ""

    def refresh(self) -> None:
        """Read the files if any is not what it was."""
        places = [path for path in sorted(self._folder.rglob("*")) if path.suffix in MEDIA_TYPES]
        stamp = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in places]
        if stamp == self._stamp:
            return
        bodies = {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in places}
        whole = hashlib.sha256()
        for name, body in bodies.items():
            whole.update(f"{name} {len(body)}\n".encode() + body)
        self.digest = whole.hexdigest()[:16]
        bodies["index.html"] = bodies["index.html"].replace(b"{digest}", self.digest.encode())
        self.files = {name: Asset.of(body, name) for name, body in bodies.items()}
        self._stamp = stamp

    def asset(self, name: str) -> Asset:
        """Raises NotFound."""
        if name == PLOTLY:
            return self._plotly_js()
        found = self.files.get(name)
        if found is None:
            raise NotFound("The console has no such file.")
        return found

    def _plotly_js(self) -> Asset:
        """Read when a page first plots: most gateways never do."""
        if self._plotly is None:
            package = importlib.util.find_spec("plotly")  # not imported: it would bring the whole library
            if package is None or package.origin is None:
                raise NotFound("The package plotly is not installed; the extra `gateway` has it.")
            body = (Path(package.origin).parent / "package_data" / "plotly.min.js").read_bytes()
            self._plotly = Asset.of(body, PLOTLY)
        return self._plotly


def add_console(app: FastAPI, folder: Path = FOLDER) -> None:
    """`/` and `/console/…`. Not in the document: they are pages, not the API."""
    console = Console(folder)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def home(request: Request) -> Response:
        console.refresh()
        return _answer(request, console.asset("index.html"), ASK_AGAIN)

    # A page from before an upgrade gets what there is now, and keeps none of it.
    @app.api_route("/console/{digest}/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def file(request: Request, digest: str, name: str) -> Response:
        if not console.files:
            console.refresh()
        return _answer(request, console.asset(name), FOR_EVER if digest == console.digest else ASK_AGAIN)


def _answer(request: Request, asset: Asset, cache: str) -> Response:
    headers = {**HEADERS, "Cache-Control": cache, "ETag": asset.tag, "Vary": "Accept-Encoding"}
    if asset.tag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    body = asset.body
    if asset.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
        body, headers["Content-Encoding"] = asset.packed, "gzip"
    return Response(body, media_type=asset.media_type, headers=headers)
