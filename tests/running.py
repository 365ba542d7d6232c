"""`fourfold up` as a process, and a product that runs elsewhere, for end-to-end tests and drills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shared.testing import free_port

COMMAND = str(Path(sys.executable).with_name("fourfold"))


def run(environment, *arguments, timeout):
    return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=timeout)


class Deployed:
    """A gateway at a URL, with the pieces of `Up` that ask it and nothing of its processes."""

    def __init__(self, url, key):
        self.url, self.key = url, key
        self.port = int(url.rpartition(":")[2])
        self.environment = {**os.environ, "FOURFOLD_URL": url, "FOURFOLD_KEY": key}

    def until(self, condition, seconds):
        end = time.monotonic() + 4 * seconds  # several networks and files that are further away
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    def run(self, *arguments, timeout=60):
        return run(self.environment, *arguments, timeout=4 * timeout)


class Up:
    def __init__(self, home, *options, folder=None, **environment):
        """`folder` is where it is started: from a copy of the tree, the copy."""
        self.home = home
        self.port = free_port()
        self.environment = {**os.environ, "FOURFOLD_HOME": str(home), **environment}
        self.log = home.with_suffix(".log")
        with self.log.open("w") as stream:
            command = [COMMAND, "up", "--port", str(self.port), *options]
            self.process = subprocess.Popen(command, cwd=folder, env=self.environment, stdout=stream, stderr=stream)
        self.until(lambda: "Ctrl-C stops" in self.text, 90)

    @property
    def text(self):
        return self.log.read_text()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self):
        return (self.home / "key").read_text().strip()

    def until(self, condition, seconds):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)

    def run(self, *arguments, timeout=60):
        return run(self.environment, *arguments, timeout=timeout)

    def stop(self, number=signal.SIGINT):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)
