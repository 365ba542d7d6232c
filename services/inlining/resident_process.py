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

from services.inlining.channel import ChannelBroken, host
from services.inlining.features import Decide
from services.inlining.resident import ACCEPT_SECONDS, DONE, LONGEST, SECONDS, TAKEN, address, deciding

IDLE_SECONDS = 60.0
_TICK_SECONDS = 0.5


def serve(policy: str, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer until there was no work for `idle_seconds`, or the socket was taken away or replaced by another's."""
    place = address(policy)
    decide = deciding(policy)
    with socket.socket(socket.AF_UNIX) as listener:
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
    descriptors: list[int] = []
    with connection, contextlib.suppress(OSError):  # of the last word: the wrapper may be gone
        connection.settimeout(ACCEPT_SECONDS)
        try:
            descriptors = socket.recv_fds(connection, 1, 3)[1]
            inbound, outbound, ended = descriptors
            connection.sendall(TAKEN)
            host(inbound, outbound, decide, ended, SECONDS)
            words = DONE
        except (ChannelBroken, OSError, ValueError, KeyError) as error:
            words = str(error).encode()[:LONGEST]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.sendall(words)


if __name__ == "__main__":
    serve(sys.argv[1])
