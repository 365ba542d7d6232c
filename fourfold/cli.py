"""The `fourfold` command."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from fourfold import (
    cli_audits,
    cli_bots,
    cli_datasets,
    cli_inlining,
    cli_jobs,
    cli_keys,
    cli_models,
    cli_pointcloud,
    location,
)
from fourfold.errors import FourfoldClientError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(cli_jobs.train)
app.command()(cli_audits.audit)
app.command()(cli_inlining.advise)
app.command()(cli_inlining.tune)
app.command()(cli_inlining.clang)
app.add_typer(cli_bots.app, name="bots", help="Accounts: score, explain, graph.")
app.add_typer(cli_pointcloud.app, name="pointcloud", help="Shapes: reconstruct, encode, decode, search, classify …")
app.add_typer(cli_datasets.app, name="datasets", help="Data sets: add, list, show, remove.")
app.add_typer(cli_jobs.app, name="jobs", help="Jobs: list (the default), show, watch, cancel, logs.")
app.add_typer(cli_models.app, name="models", help="Models: list, show, compare, promote, rollback, canary, policy.")
app.add_typer(cli_audits.app, name="audits", help="Audits: list, show, report.")
app.add_typer(cli_keys.app, name="keys", help="API keys: show, list, create, revoke.")


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Where the gateway listens, on 127.0.0.1.")] = location.DEFAULT_PORT,
    processes: Annotated[int, typer.Option(help="Processes of each service.", min=1, max=64)] = 1,
) -> None:
    """Start everything on this machine; Ctrl-C stops it."""
    from fourfold.up import run

    raise typer.Exit(run(location.home(), port, processes))


@app.command()
def serve(
    name: Annotated[str, typer.Argument(help="gateway, or a domain.", envvar="FOURFOLD_DOMAIN")],
    port: Annotated[int | None, typer.Option(help="8080 for the gateway, 8000 for a domain, unless given.")] = None,
) -> None:
    """Serve one part on all interfaces, as an image does; `up` serves everything."""
    from fourfold.serve import GATEWAY, uvicorn_command

    if not name.isidentifier():
        raise typer.BadParameter(f"{name!r} is not the name of a domain.")
    command = uvicorn_command(name, "--host", "0.0.0.0", "--port", str(port or (8080 if name == GATEWAY else 8000)))
    os.execv(command[0], command)


@app.command()
def score(
    photos: Annotated[list[Path], typer.Argument(help="Image files.", exists=True, dir_okay=False)],
    json: Annotated[bool, typer.Option("--json", help="Print the whole answers as JSON lines.")] = False,
    map: Annotated[Path | None, typer.Option(help="Write the quality map over the first image to this PNG.")] = None,
) -> None:
    """Score photographs: 0–100, higher is better, best first."""
    import orjson
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from fourfold.blocking import Client
    from fourfold.errors import ApiError

    failed = False
    rows: list[tuple[float, str, str, str, str]] = []
    with Client() as client:
        console = Console(stderr=True)
        for number, photo in enumerate(track(photos, "Scoring", console=console, disable=len(photos) < 5)):
            try:
                answer = client.score(photo, map="overlay" if map and number == 0 else None)
            except ApiError as error:
                print(f"{photo}: {error}", file=sys.stderr)
                failed = True
                continue
            if map and number == 0:
                map.write_bytes(base64.b64decode(answer["map"].pop("overlay_png")))
            if json:
                print(orjson.dumps({"file": str(photo), **answer}).decode())
            size = f"{answer['original']['width']}×{answer['original']['height']}"
            rows.append((answer["score"], photo.name, answer["distortion"]["kind"], size, answer["model"]))
    if rows and not json:
        table = Table("score", "photo", "looks like", "size", "model", caption="0–100, higher is better")
        for value, photo, kind, size, model in sorted(rows, reverse=True):
            table.add_row(f"{value:.1f}", photo, kind, size, model)
        Console().print(table)
    raise typer.Exit(1 if failed else 0)


@app.command()
def status() -> None:
    """Say what is running."""
    from fourfold.blocking import Client

    with Client() as client:
        print(client.url)
        for name, ready in client.ready()["services"].items():
            print(f"  {name}: {'ready' if ready else 'not ready'}")


def main() -> None:
    """The console script: errors become one line."""
    try:
        app()
    except FourfoldClientError as error:
        print(f"fourfold: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        print(f"fourfold: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
