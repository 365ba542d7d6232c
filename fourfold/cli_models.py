"""`fourfold models`: versions and aliases; compare, promote, roll back, canary."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(invoke_without_command=True)
Reason = Annotated[str, typer.Option(help="Kept in the history.")]


@app.callback()
def listing(context: typer.Context) -> None:
    """Models with their versions and aliases."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from fourfold.blocking import Client

    table = Table("model", "versions", "aliases")
    with Client() as client:
        for model in client.models():
            aliases = [
                f"{name} → {alias['version']}" + (f" ({alias['weight']:.0%})" if alias["weight"] < 1 else "")
                for name, alias in sorted(model["aliases"]["aliases"].items())
            ]
            table.add_row(model["name"], " ".join(str(version) for version in model["versions"]), "  ".join(aliases))
    Console().print(table)


@app.command()
def show(name: str, version: Annotated[int | None, typer.Argument()] = None) -> None:
    """A model's history, or the manifest of one version, as JSON."""
    import orjson

    from fourfold.blocking import Client

    with Client() as client:
        found = client.model(name) if version is None else client.model_version(name, version)
    print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


@app.command()
def compare(name: str, version: int) -> None:
    """Measure a version beside the champion of now, on the version's held-out data, for the gate."""
    from fourfold.blocking import Client
    from fourfold.cli_jobs import follow

    with Client() as client:
        job_id = client.compare(name, version)["id"]
        print(job_id)
        follow(client, job_id)


@app.command()
def promote(
    name: str,
    version: int,
    force: Annotated[bool, typer.Option("--force", help="Against the gate's word; needs --reason.")] = False,
    reason: Reason = "",
) -> None:
    """Make a version the champion, unless it is worse than the one served now."""
    from fourfold.blocking import Client

    with Client() as client:
        client.set_alias(name, "champion", version, force=force, reason=reason)
    print(f"{name}/{version} is the champion")


@app.command()
def rollback(name: str, reason: Reason = "") -> None:
    """Make the champion before this one the champion again."""
    from fourfold.blocking import Client

    with Client() as client:
        version = client.rollback(name, reason=reason)
    print(f"{name}/{version} is the champion again")


@app.command()
def canary(
    name: str,
    version: int,
    weight: Annotated[float, typer.Option(help="Share of the requests, 0–1; 0 ends it.", min=0, max=1)] = 0.1,
    reason: Reason = "",
) -> None:
    """Let a version answer a share of the requests beside the champion."""
    from fourfold.blocking import Client

    with Client() as client:
        client.set_alias(name, "canary", version if weight else None, weight=weight or 1.0, reason=reason)
    print(f"{name}/{version} answers {weight:.0%} of the requests" if weight else f"{name} has no canary")


@app.command()
def policy(
    name: str,
    audit: Annotated[
        bool | None, typer.Option("--audit/--no-audit", help="Whether a champion must have passed an audit.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="A check that it must have passed; repeat for several.")
    ] = None,
    accept: Annotated[list[str] | None, typer.Option(help="A verdict that will do; repeat for several.")] = None,
) -> None:
    """Show a model's policy, or set what a promotion needs."""
    from fourfold.blocking import Client

    with Client() as client:
        found = client.policy(name)
        if audit is not None or check or accept:
            asked = found["audit"]
            if audit is not None:
                asked["required"] = audit
            asked |= {"checks": check} if check else {}
            asked |= {"accept": accept} if accept else {}
            found = client.set_policy(name, asked)
    wanted = found["audit"]
    needs = f"an audit of {', '.join(wanted['checks'])} ({' or '.join(wanted['accept'])})"
    print(f"A champion of {name} needs {needs}." if wanted["required"] else f"A champion of {name} needs no audit.")
