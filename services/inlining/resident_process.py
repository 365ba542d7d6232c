"""The process that keeps a policy loaded and answers the compilers of a whole build, a thread for each.

Run as `python -m services.inlining.resident_process POLICY`, by the first wrapper of a build. It ends after a minute
without work. Threads, because a process forked for each file costs more than most files' decisions; a decision takes
some 20 µs and comes once in a millisecond of a compile, so one core answers about fifty compilers at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from threading import Thread

from services.inlining.channel import Channel, ChannelBroken, host
from services.inlining.features import Decide
from services.inlining.resident import (
    ACCEPT_SECONDS,
    DONE,
    LEFT,
    LONGEST,
    SECONDS,
    TAKEN,
    address,
    deciding,
    new_folder,
    remove_folder,
)
from services.inlining.wrapper import understand

IDLE_SECONDS = 60.0
_TICK_SECONDS = 0.5
_MOST_BYTES = 1 << 16  # of a command's arguments; with more, the launcher does not ask


def serve(policy: str, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer until there was no work for `idle_seconds`, or the socket was taken away or replaced by another's."""
    place = address(policy)
    decide = deciding(policy)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        draft = f"{place}.{os.getpid()}"
        listener.bind(draft)
        listener.listen(128)
        listener.settimeout(_TICK_SECONDS)
        own = os.stat(draft).st_ino
        os.replace(draft, place)  # of two that start together, the second stays
        idle = 0.0
        answering: list[Thread] = []
        while _inode(place) == own or idle == 0:  # who connected before the socket went is still answered
            answering = [thread for thread in answering if thread.is_alive()]
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                idle = 0.0 if answering else idle + _TICK_SECONDS
                if idle >= idle_seconds and _inode(place) == own:
                    os.unlink(place)
            else:
                idle = 0.0
                answering.append(Thread(target=_answer, args=(connection, decide)))
                answering[-1].start()


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def _answer(connection: socket.socket, decide: Decide) -> None:
    """The wrapper hands over its channel. The launcher sends the compiler's arguments instead, and gets a channel."""
    held: list[int] = []
    with connection, contextlib.suppress(OSError):  # of the last word: who asked may be gone
        connection.settimeout(ACCEPT_SECONDS)
        try:
            words, held, _, _ = socket.recv_fds(connection, _MOST_BYTES, 3)
            if held:
                inbound, outbound, ended = held
                connection.send(TAKEN)
                host(inbound, outbound, decide, ended, SECONDS)
            elif understand([os.fsdecode(word) for word in words.split(b"\0")[:-1]]) is None:
                connection.send(LEFT)
                return
            else:
                _lend(connection, decide)
            words = DONE
        except (ChannelBroken, OSError, ValueError, KeyError) as error:
            words = str(error).encode()[:LONGEST]
        finally:
            for descriptor in held:
                os.close(descriptor)
        connection.send(words)


def _lend(connection: socket.socket, decide: Decide) -> None:
    folder = new_folder()
    try:
        base = os.path.join(folder, "channel")
        with Channel(folder, base, default=False) as channel:
            connection.send(TAKEN + os.fsencode(base))
            ended = socket.recv_fds(connection, 1, 1)[1]
            if not ended:
                raise ChannelBroken("the compiler was not started")
            try:
                host(*channel.descriptors, decide, ended[0], SECONDS)
            finally:
                os.close(ended[0])
    finally:
        remove_folder(folder)


if __name__ == "__main__":
    serve(sys.argv[1])
