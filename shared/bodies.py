"""Reads a request's body under a limit, into one growing buffer or into a file."""

from __future__ import annotations

import asyncio
import zlib
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request

from shared.problems import InputError, PayloadTooLarge


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises PayloadTooLarge as soon as it is known to exceed `limit` bytes."""
    declared = request.headers.get("content-length")
    size = int(declared) if declared is not None and declared.isdigit() else None
    if size is not None and size > limit:
        raise PayloadTooLarge(f"The body has {size} bytes; at most {limit} are taken.")
    first = await request.receive()
    if first["type"] == "http.request" and not first.get("more_body", False):
        return first.get("body", b"")
    body = BytesIO()
    message = first
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        chunk = message.get("body", b"")
        if body.tell() + len(chunk) > limit:
            raise PayloadTooLarge(f"The body has more than the {limit} bytes that are taken.")
        body.write(chunk)
        if not message.get("more_body", False):
            return body.getvalue()
        message = await request.receive()


def decompress(body: bytes | bytearray, encoding: str, limit: int) -> bytes:
    """A `gzip` or `deflate` body, decompressed to at most `limit` bytes."""
    wbits = {"gzip": 31, "deflate": 15}.get(encoding)
    if wbits is None:
        raise InputError(f"The content encoding {encoding!r} is not accepted; use gzip, deflate or none.")
    engine = zlib.decompressobj(wbits)
    try:
        plain = engine.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"The body is not valid {encoding}.") from error
    if len(plain) > limit:
        raise PayloadTooLarge(f"The decompressed body has more than the {limit} bytes that are taken.")
    if not engine.eof:
        raise InputError(f"The {encoding} body is cut off.")
    return plain


async def spool_body(request: Request, folder: Path, limit: int) -> Path:
    """Write the body to a new file in `folder` as it arrives; raises PayloadTooLarge, and then leaves no file."""
    draft = folder / uuid4().hex
    size = 0
    try:
        with draft.open("wb", buffering=1 << 20) as target:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise PayloadTooLarge(f"The body has more than the {limit} bytes that are taken.")
                await asyncio.to_thread(target.write, chunk)
    except BaseException:
        draft.unlink()
        raise
    return draft
