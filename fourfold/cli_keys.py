"""`fourfold keys`: the API keys of the gateway."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from fourfold import location

app = typer.Typer(no_args_is_help=True)


@app.command()
def show() -> None:
    """Print the key that this machine uses."""
    print(location.key())


@app.command("list")
def listing() -> None:
    """List every key, without secrets."""
    from rich.console import Console
    from rich.table import Table

    from fourfold.blocking import Client

    table = Table("id", "name", "scopes", "created", "last used", "state")
    now = time.time()
    with Client() as client:
        for key in client.list_keys():
            expired = key["expires_at"] is not None and key["expires_at"] < now
            state = "revoked" if key["revoked_at"] else "expired" if expired else "valid"
            times = [when(key["created_at"]), when(key["last_used_at"])]
            table.add_row(key["id"], key["name"], " ".join(key["scopes"]), *times, state)
    Console().print(table)


@app.command()
def create(
    name: str,
    scope: Annotated[list[str] | None, typer.Option(help="predict, train or admin; repeat for several.")] = None,
    days: Annotated[float | None, typer.Option(help="Days until it expires; never if unset.")] = None,
) -> None:
    """Make a key and print its secret, which is shown this once."""
    from fourfold.blocking import Client

    with Client() as client:
        print(client.create_key(name, scope or ["predict"], expires_in_days=days)["secret"])


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Its id, or its name if only one valid key has it.")]) -> None:
    """End a key."""
    from fourfold.blocking import Client

    with Client() as client:
        known = client.list_keys()
        ids = [item["id"] for item in known if item["name"] == key and not item["revoked_at"]]
        if len(ids) > 1 and key not in {item["id"] for item in known}:
            raise typer.BadParameter(f"{len(ids)} keys have that name: {', '.join(ids)}")
        print(f"revoked {client.revoke_key(ids[0] if len(ids) == 1 else key)['name']}")


def when(seconds: float | None) -> str:
    """Local time to the minute of a time in seconds since 1970; `never` for None."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "never"
