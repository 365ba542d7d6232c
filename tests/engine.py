"""A Docker engine to test images with: the one that is there, or a private one that leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException

CACHE = Path(os.environ.get("FOURFOLD_IMAGES_CACHE", "/var/tmp/fourfold-images"))
_PLUGINS = "docker/cli-plugins"
_PACKAGES = ("docker-compose", "docker-buildx")
_NO_ANSWER = (DockerException, requests.RequestException)


class Missing(Exception):
    """Something that the machine lacks; one line that says what to install."""


class Engine:
    """The engine's client, and Docker's command line for it."""

    def __init__(self, host: str | None, settings: Path | None) -> None:
        self.client = docker.DockerClient(base_url=host, timeout=600) if host else docker.from_env(timeout=600)
        own = {"DOCKER_HOST": host, "DOCKER_CONFIG": settings and str(settings), "DOCKER_BUILDKIT": "1"}
        self._environment = {**os.environ, **{name: value for name, value in own.items() if value}}

    def docker(self, *arguments: str, stdin: Any = None) -> str:
        """What `docker` prints; raises RuntimeError with its last words."""
        return self.run(["docker", *arguments], stdin=stdin)

    def run(
        self,
        command: Sequence[str],
        *,
        variables: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Any = None,
    ) -> str:
        """What a command prints in whose environment `docker` speaks to this engine; raises RuntimeError."""
        environment = {**self._environment, **(variables or {})}
        done = subprocess.run(command, env=environment, cwd=cwd, stdin=stdin, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}")
        return done.stdout


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """The machine's engine if one answers, else a private one below `folder`. Raises Missing."""
    settings = _plugins(folder)
    try:
        docker.from_env(timeout=10).ping()
    except _NO_ANSWER:
        with _private(folder) as host:
            yield Engine(host, settings)
        return
    yield Engine(None, settings)


@contextmanager
def _private(folder: Path) -> Iterator[str]:
    dockerd = shutil.which("dockerd", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if os.geteuid() != 0 or dockerd is None:
        raise Missing("no Docker engine answers and none can be started; as root: apt-get install docker.io")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    forwarded, filters = forwarding.read_text(), _packet_filters()
    host, log = f"unix://{folder / 'docker.sock'}", folder / "dockerd.log"
    command = [dockerd, "--data-root", str(CACHE / "engine"), "--exec-root", str(folder / "exec"), "-H", host]
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--pidfile", str(folder / "pid")], stdout=stream, stderr=stream)
    try:
        for _ in range(120):
            if process.poll() is not None:
                raise Missing(f"dockerd does not start here: {log.read_text()[-300:]}")
            try:
                docker.DockerClient(base_url=host, timeout=5).ping()
                break
            except _NO_ANSWER:
                time.sleep(0.5)
        yield host
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True)
        for restore, rules in filters.items():
            subprocess.run([restore], input=rules, text=True)
        forwarding.write_text(forwarded)


def _packet_filters() -> dict[str, str]:
    """Command → the rules that it puts back. A table without rules is not listed, and is emptied."""
    empty = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
    found: dict[str, str] = {}
    for name in ("iptables", "ip6tables"):
        if shutil.which(f"{name}-save"):
            rules = subprocess.run([f"{name}-save"], capture_output=True, text=True).stdout
            for table, chains in empty.items():
                if f"*{table}" not in rules:
                    rules += "\n".join([f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT\n"])
            found[f"{name}-restore"] = rules
    return found


def _plugins(folder: Path) -> Path | None:
    """A folder of Docker's settings with the plugins of Debian's next release; None where the machine has its own."""
    installed = [Path(place) for place in ("/usr/libexec", "/usr/lib", "/usr/local/lib", "/usr/local/libexec")]
    if any((place / _PLUGINS / "docker-compose").exists() for place in installed):
        return None
    settings, unpacked = CACHE / "settings", CACHE / "packages"
    if settings.exists():
        return settings
    sources = "\n".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.sources"))
    mirror = re.search(r"^URIs: (\S+/debian)$", sources, re.MULTILINE)
    if mirror is None:
        raise Missing("Docker's plugins are missing: install docker-compose-plugin and docker-buildx-plugin")
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb {mirror[1]} trixie main\n")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "--quiet", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    for command in (["update"], ["download", *_PACKAGES]):
        subprocess.run([*apt, *command], cwd=folder, check=True, capture_output=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(unpacked)], check=True)
    settings.mkdir()
    (settings / "cli-plugins").symlink_to(unpacked / "usr/libexec" / _PLUGINS)
    return settings
