"""`fourfold datasets`: upload, list, look, remove."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A folder, or a zip or tar archive.", exists=True)],
    kind: Annotated[str, typer.Option(help="The domain it is for, for example iqa.")],
    name: Annotated[str | None, typer.Option(help="What to call it; the folder's name if unset.")] = None,
) -> None:
    """Upload a data set and wait for its validation. Repeated after a break, it sends what is missing."""
    from rich.console import Console
    from rich.progress import Progress

    from fourfold.blocking import Client

    name = name or path.resolve().name.partition(".")[0]
    with Client() as client:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("Uploading", total=None)
            made = client.add_dataset(
                path, kind, name, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
            )
        while made["state"] == "validating":
            time.sleep(0.3)
            made = client.dataset(made["digest"])
    _print(made)
    raise typer.Exit(1 if made["state"] == "invalid" else 0)


@app.command("list")
def listing() -> None:
    """Data sets, newest first."""
    from rich.console import Console
    from rich.table import Table

    from fourfold.blocking import Client
    from fourfold.cli_keys import when

    table = Table("name", "kind", "digest", "files", "MB", "made", "state")
    with Client() as client:
        for item in client.datasets():
            size = f"{item['bytes'] / 1e6:.1f}"
            made = when(item["created_at"])
            row = (item["name"], item["kind"], item["digest"][:12], str(item["files"]), size, made, item["state"])
            table.add_row(*row)
    Console().print(table)


@app.command()
def show(name: str) -> None:
    """What is known of a data set, with its validation report."""
    from fourfold.blocking import Client

    with Client() as client:
        _print(client.dataset(name))


@app.command()
def remove(name: str) -> None:
    """Forget a data set that nothing refers to."""
    from fourfold.blocking import Client

    with Client() as client:
        client.remove_dataset(client.dataset(name)["digest"])
    print(f"removed {name}")


def _print(dataset: dict[str, Any]) -> None:
    report: dict[str, Any] = dataset["report"]
    counts = "  ".join(f"{name} {count}" for name, count in report.get("counts", {}).items())
    print(
        f"{dataset['name']}  {dataset['digest'][:12]}  {dataset['files']} files  {dataset['state']}  {counts}".rstrip()
    )
    for finding in report.get("findings", []):
        line = f":{finding['line']}" if finding.get("line") else ""
        print(f"  {finding['file']}{line}: {finding['problem']}", file=sys.stderr)
