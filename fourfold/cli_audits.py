"""`fourfold audit` and `fourfold audits`: examine a version before it is promoted, and read what was found."""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from fourfold.cli_jobs import ID_LENGTH, follow
from fourfold.cli_keys import when

app = typer.Typer(invoke_without_command=True)


def audit(
    model: Annotated[str, typer.Argument(help="For example iqa.")],
    version: int,
    checks: Annotated[
        str | None, typer.Option(help="With commas: groups,robustness,landscape,backdoor; all if left out.")
    ] = None,
    baseline: Annotated[int | None, typer.Option(help="A version to compare with.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name or digest; the training's if left out.")] = None,
    seed: int = 0,
    full: Annotated[bool, typer.Option("--full", help="A larger budget: more examples, seeds and steps.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the report's page to this file.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
) -> None:
    """Examine a version; exits with 1 where it must not be promoted. Ctrl-C detaches."""
    from fourfold.blocking import Client

    options: dict[str, Any] = {"seed": seed, "budget": "full" if full else "quick"}
    options |= {name: value for name, value in (("baseline", baseline), ("dataset", dataset)) if value is not None}
    if checks:
        options["checks"] = [name.strip() for name in checks.split(",") if name.strip()]
    with Client() as client:
        audit_id = client.audit(model, version, **options)["id"]
        print(audit_id)
        follow(client, audit_id)
        if client.job(audit_id)["finished_at"] is None:
            return  # detached
        found = client.audit_report(audit_id)
        _print(found)
        if out is not None or open:
            _show(client.audit_page(audit_id), out, open)
    if found["verdict"] == "do-not-promote":
        raise typer.Exit(1)


@app.callback()
def listing(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    version: Annotated[int | None, typer.Option(help="Of this version.")] = None,
) -> None:
    """Audits, newest first."""
    if context.invoked_subcommand is None:
        _listing(model, version)


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    version: Annotated[int | None, typer.Option(help="Of this version.")] = None,
) -> None:
    """Audits, newest first."""
    _listing(model, version)


@app.command()
def show(
    audit_id: str, json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False
) -> None:
    """What an audit found."""
    import orjson

    from fourfold.blocking import Client

    with Client() as client:
        found = client.audit_report(audit_id)
    if json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _print(found)


@app.command()
def report(
    audit_id: str,
    out: Annotated[Path | None, typer.Option(help="Write the page to this file.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
) -> None:
    """The report's page: to a file, to a browser, or to the standard output."""
    from fourfold.blocking import Client

    with Client() as client:
        page = client.audit_page(audit_id)
    if out is None and not open:
        sys.stdout.write(page.decode())
        return
    _show(page, out, open)


def _listing(model: str | None, version: int | None) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from fourfold.blocking import Client

    table = Table(Column("id", min_width=ID_LENGTH, no_wrap=True), "version", "state", "verdict", "checks", "submitted")
    with Client() as client:
        for one in client.audits(model, version):
            checks = "  ".join(f"{name}: {verdict}" for name, verdict in one["checks"].items())
            about = f"{one['model']}/{one['version']}"
            table.add_row(one["id"], about, one["state"], one["verdict"] or "", checks, when(one["created_at"]))
    Console().print(table)


def _print(found: dict[str, Any]) -> None:
    print(f"{found['model']}/{found['version']}: {found['verdict']}")
    for note in found["notes"]:
        print(f"  {note}")
    for check in found["checks"]:
        print(f"  {check['name']:12} {check['verdict']:15} {check['summary']}")
        if check["verdict"] != "passes" and check["advice"]:
            print(f"  {'':28} {check['advice']}")


def _show(page: bytes, out: Path | None, opened: bool) -> None:
    if out is None:
        with tempfile.NamedTemporaryFile(prefix="fourfold-audit-", suffix=".html", delete=False) as stream:
            out = Path(stream.name)
    out.write_bytes(page)
    print(out)
    if opened and not webbrowser.open(out.resolve().as_uri()):
        print("There is no browser here; open the file above.", file=sys.stderr)
