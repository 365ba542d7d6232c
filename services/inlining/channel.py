"""Hosts LLVM's interactive inlining channel: reads an observation a call site, writes the decision.

The compiler writes BASE.out: a JSON line that describes the features, then for each call site a JSON line
`{"observation": N}`, the features as int64 and a newline. It reads BASE.in: an int64, 1 to inline.

Shapes: S call sites seen, F features: WIDTH, and stock's own decision last where it was asked for. What only the host
needs is imported in it: a build makes a channel for every file, and another process hosts it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from services.inlining.features import Decide

_REPLIES = (bytes(8), (1).to_bytes(8, "little"))
_READ = 1 << 16


class ChannelBroken(Exception):
    """The compiler speaks another form of the channel, or was silent for too long."""


class Channel:
    """The two FIFOs in `folder`, which the compiler finds as `base`; use it with `with`.

    `default` asks for stock's own decision too, for which the compiler analyses every call site once more. Clang 19
    then writes it over `callee_basic_block_count`, and 0 in its own place; 22 does not.
    """

    def __init__(self, folder: str | os.PathLike[str], base: str = "channel", *, default: bool = True) -> None:
        options = ("-enable-ml-inliner=release", f"-inliner-interactive-channel-base={base}")
        self.options = (*options, "-inliner-interactive-include-default") if default else options
        inbound, outbound = os.path.join(folder, "channel.in"), os.path.join(folder, "channel.out")
        os.mkfifo(inbound, 0o600)
        os.mkfifo(outbound, 0o600)
        # Neither end waits for the other: held for both directions, and not blocking. The plain way, writing end first,
        # hangs for ever when the compiler ends before it opens its side.
        self.descriptors = (  # where to write, and where to read
            os.open(inbound, os.O_RDWR | os.O_CLOEXEC),
            os.open(outbound, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC),
        )

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def host(
    inbound: int, outbound: int, decide: Decide, ended: int, seconds: float
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Answer until the compiler has ended: the features of each site (S, F) and what was decided (S,).

    `ended` is a file descriptor that becomes readable when the compiler is gone.
    """
    import select
    import time

    import numpy as np

    from services.inlining.features import WIDTH

    poller = select.poll()
    poller.register(outbound, select.POLLIN)
    poller.register(ended, select.POLLIN)
    deadline = time.monotonic() + seconds
    rows: list[bytes] = []
    decided = bytearray()
    columns: NDArray[np.intp] | None = None
    width, size = WIDTH + 1, 8 * (WIDTH + 1)
    held, over, hung_up = b"", False, False
    while True:
        events = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            raise ChannelBroken("The compiler did not go on in time.")
        for descriptor, event in events:
            over, hung_up = over or descriptor == ended, hung_up or event & select.POLLHUP != 0
        try:
            more = os.read(outbound, _READ)
        except BlockingIOError:
            more = b""
        if not more:
            if over or hung_up:
                break
            continue
        held = held + more if held else more
        while (end := held.find(b"\n")) >= 0:
            if held.startswith(b'{"observation"'):
                if len(held) < end + size + 2:
                    break
                row = held[end + 1 : end + 1 + size]
                held = held[end + 2 + size :]
                values = np.frombuffer(row, np.int64)
                if columns is not None:
                    values = values[columns]
                    row = values.tobytes()
                answer = 1 if decide(values) else 0
                rows.append(row)
                decided.append(answer)
                os.write(inbound, _REPLIES[answer])
                continue
            if held.startswith(b'{"features"'):
                columns, width, size = _layout(held[:end])
            held = held[end + 1 :]
        if len(held) > 2 * _READ:
            raise ChannelBroken("The compiler's stream cannot be read.")
    features = np.frombuffer(b"".join(rows), np.int64).reshape(len(rows), width)
    return features, np.frombuffer(bytes(decided), np.int8)


def _layout(header: bytes) -> tuple[NDArray[np.intp] | None, int, int]:
    """Where our features are in a row of the stream (None: as ours are), how many, and the bytes of a row."""
    import json

    import numpy as np

    from services.inlining.features import DEFAULT, FEATURES

    try:
        names = [item["name"] for item in json.loads(header)["features"]]
        columns = [names.index(name) for name in (*FEATURES, DEFAULT) if name != DEFAULT or DEFAULT in names]
    except (ValueError, KeyError, TypeError):
        raise ChannelBroken("This compiler's features are not those that are known.") from None
    same = columns == list(range(len(names)))
    return None if same else np.array(columns), len(columns), 8 * len(names)
