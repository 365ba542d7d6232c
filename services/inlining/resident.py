"""A resident policy: one process that keeps the policy loaded and answers the compilers of a whole build.

A build starts the wrapper for every file, and to load NumPy and the policy costs more than many a compile. So the first
wrapper of a build starts this process (`python -m services.inlining.resident POLICY`), and each that follows hands it
the open ends of its channel. It forks a child for each, and ends after a minute without work. Its socket lies in a
folder that only the user may enter. FOURFOLD_RESIDENT=0 does without it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from services.inlining.channel import Channel, ChannelBroken, Decide, host

SECONDS = 3600.0  # of one compile
IDLE_SECONDS = 60.0
_ACCEPT_SECONDS = 10.0
_TICK_SECONDS = 0.5
_TAKEN, _DONE = b"+", b"done"
_LONGEST = 4096


def runtime_folder() -> Path:
    """A folder of this user's alone, made if need be; raises OSError if another user could enter it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = Path(base, f"fourfold-{os.getuid()}")
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
            raise PermissionError(f"{folder} is not a folder of this user's alone") from None
    return folder


def address(policy: Path) -> Path:
    """The socket for the policy as it is now: with other files it is another policy."""
    folder = os.stat(policy)
    newest = max(entry.stat().st_mtime_ns for entry in os.scandir(policy))
    return runtime_folder() / f"{folder.st_dev:x}-{folder.st_ino:x}-{newest:x}"


def host_resident(policy: Path, channel: Channel, ended: int) -> None:
    """Host the channel until the compiler, whose pidfd is `ended`, is gone: by the resident process, or here if there
    is none, which is then started for the next file. Raises ChannelBroken, ValueError, KeyError or OSError.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ACCEPT_SECONDS)
        try:
            connection.connect(str(address(policy)))
        except OSError:
            host_here(policy, channel, ended)
            return
        socket.send_fds(connection, [_TAKEN], [*channel.descriptors, ended])
        words = connection.recv(1)
        if words == _TAKEN:
            connection.settimeout(SECONDS)
            words = connection.recv(_LONGEST)
    if words != _DONE:
        raise ChannelBroken(words.decode(errors="replace") or "the resident policy went away")


def host_here(policy: Path, channel: Channel, ended: int) -> None:
    """As `host_resident`, in this process, which takes longer; starts the resident one, unless that is refused."""
    host_it = hosting(policy)
    if os.environ.get("FOURFOLD_RESIDENT") != "0":
        # It keeps nothing of the build's: make waits until the last holder of its pipes is gone.
        subprocess.Popen(
            [sys.executable, "-P", "-m", "services.inlining.resident", str(policy.resolve())],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).returncode = 0  # it outlives this process: nobody waits for it
    host_it(channel, ended)


def hosting(policy: Path) -> Callable[[Channel, int], None]:
    """The policy, loaded, as a host of channels in this process; raises OSError, ValueError or KeyError."""
    decide = _deciding(policy)

    def host_it(channel: Channel, ended: int) -> None:
        host(*channel.descriptors, decide, ended, SECONDS)

    return host_it


def _deciding(policy: Path) -> Decide:
    # Not above: by now the compiler runs, and NumPy loads beside it.
    from services.inlining.policy import load_policy

    decide = load_policy(policy).decide
    return lambda features_F: decide(features_F[:-1])[0]  # without stock's own decision


def serve(policy: Path, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer until there was no work for `idle_seconds`, or the socket was taken away or replaced by another's."""
    place = address(policy)
    decide = _deciding(policy)
    with socket.socket(socket.AF_UNIX) as listener:
        draft = f"{place}.{os.getpid()}"
        listener.bind(draft)
        listener.listen(128)
        listener.settimeout(_TICK_SECONDS)
        own = os.stat(draft).st_ino
        os.replace(draft, place)  # of two that start together, the second stays
        idle = 0.0
        children: set[int] = set()
        while _inode(place) == own or idle == 0:  # who connected before the socket went is still answered
            try:
                connection = listener.accept()[0]
            except TimeoutError:
                idle = 0.0 if children else idle + _TICK_SECONDS
                if idle >= idle_seconds and _inode(place) == own:
                    place.unlink(missing_ok=True)
            else:
                idle = 0.0
                child = os.fork()
                if child == 0:
                    listener.close()  # a child that outlives this process must not look like it
                    _answer(connection, decide)
                connection.close()
                children.add(child)
            children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _answer(connection: socket.socket, decide: Decide) -> None:
    try:
        connection.settimeout(_ACCEPT_SECONDS)
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
        inbound, outbound, ended = descriptors
        connection.sendall(_TAKEN)
        try:
            host(inbound, outbound, decide, ended, SECONDS)
            words = _DONE
        except (ChannelBroken, OSError, ValueError, KeyError) as error:
            words = str(error).encode()[:_LONGEST]
        connection.sendall(words)
    finally:
        os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
