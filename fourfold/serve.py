"""How one HTTP process of the product is started, on a laptop and in an image."""

from __future__ import annotations

import sys

GATEWAY = "gateway"
GRACEFUL_SECONDS = 25  # what requests under way have to end after a signal


def uvicorn_command(name: str, *where: str) -> list[str]:
    """The command that serves the gateway or a domain at `where`, in uvicorn's own options."""
    application = "gateway.app:create_app" if name == GATEWAY else f"services.{name}.api:create_app"
    return [
        *(sys.executable, "-m", "uvicorn", application, "--factory", *where),
        *("--http", "shared.connections:GuardedProtocol", "--loop", "uvloop", "--ws", "none"),
        *("--no-access-log", "--no-server-header", "--no-date-header", "--log-level", "warning"),
        *("--timeout-keep-alive", "30", "--timeout-graceful-shutdown", str(GRACEFUL_SECONDS), "--backlog", "2048"),
    ]
