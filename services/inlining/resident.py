"""How the wrapper has a policy answer its compiler: by the resident process of the build, or by itself.

A build starts the wrapper for every file, and to load NumPy and the policy costs more than many a compile. So the first
wrapper of a build starts a process that keeps them loaded (`resident_process.py`), and each that follows hands it the
open ends of its channel. Its socket lies in a folder that only the user may enter. FOURFOLD_RESIDENT=0 does without it.
"""

from __future__ import annotations

import os
import sys

# Not `socket`: the little of it that is needed does not take the 5 ms of its import, in the wrapper of every file.
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket

from services.inlining.channel import Channel, ChannelBroken, host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from services.inlining.features import Decide

SECONDS = 3600.0  # of one compile
ACCEPT_SECONDS = 10.0
TAKEN, LEFT, DONE = b"+", b"-", b"done"  # its answers; instead of the last it may tell a trouble
LONGEST = 4096


def runtime_folder() -> str:
    """A folder of this user's alone, made if need be; raises OSError if another user could enter it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp"
    folder = os.path.join(base, f"fourfold-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
            raise PermissionError(f"{folder} is not a folder of this user's alone") from None
    return folder


def new_folder() -> str:
    """For one compile's channel, in the runtime folder; raises OSError."""
    folder = os.path.join(runtime_folder(), os.urandom(8).hex())
    os.mkdir(folder)
    return folder


def remove_folder(folder: str) -> None:
    for entry in os.listdir(folder):
        os.unlink(os.path.join(folder, entry))
    os.rmdir(folder)


def address(policy: str) -> str:
    """The socket for the policy as it is now: with other files it is another policy."""
    folder = os.stat(policy)
    newest = max(entry.stat().st_mtime_ns for entry in os.scandir(policy))
    return os.path.join(runtime_folder(), f"{folder.st_dev:x}-{folder.st_ino:x}-{newest:x}")


def host_resident(policy: str, channel: Channel, ended: int) -> None:
    """Host the channel until the compiler, whose pidfd is `ended`, is gone: by the resident process, or here if there
    is none, which is then started for the next file. Raises ChannelBroken, ValueError, KeyError or OSError.
    """
    connection = socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        connection.settimeout(ACCEPT_SECONDS)
        try:
            connection.connect(address(policy))
        except OSError:
            host_here(policy, channel, ended)
            return
        passed = b"".join(number.to_bytes(4, sys.byteorder) for number in (*channel.descriptors, ended))
        connection.sendmsg([TAKEN], [(SOL_SOCKET, SCM_RIGHTS, passed)])
        words = connection.recv(1)
        if words == TAKEN:
            connection.settimeout(SECONDS)
            words = connection.recv(LONGEST)
    finally:
        connection.close()
    if words != DONE:
        raise ChannelBroken(words.decode(errors="replace") or "the resident policy went away")


def host_here(policy: str, channel: Channel, ended: int) -> None:
    """As `host_resident`, in this process, which takes longer; starts the resident one, unless that is refused."""
    import subprocess

    host_it = hosting(policy)
    if os.environ.get("FOURFOLD_RESIDENT") != "0":
        # It keeps nothing of the build's: make waits until the last holder of its pipes is gone.
        subprocess.Popen(
            [sys.executable, "-P", "-m", "services.inlining.resident_process", os.path.realpath(policy)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ).returncode = 0  # it outlives this process: nobody waits for it
    host_it(channel, ended)


def hosting(policy: str) -> Callable[[Channel, int], None]:
    """The policy, loaded, as a host of channels in this process; raises OSError, ValueError or KeyError."""
    decide = deciding(policy)

    def host_it(channel: Channel, ended: int) -> None:
        host(*channel.descriptors, decide, ended, SECONDS)

    return host_it


def deciding(policy: str) -> Decide:
    """The policy, loaded; raises OSError, ValueError or KeyError."""
    # Not above: by now the compiler runs, and NumPy loads beside it.
    from pathlib import Path

    from services.inlining.policy import load_policy

    decide = load_policy(Path(policy)).decide
    return lambda features_F: decide(features_F)[0]
