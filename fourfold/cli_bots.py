"""`fourfold bots`: score and explain accounts, score a whole graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)
Accounts = Annotated[Path, typer.Argument(help="JSON: an account, a list of them, or a whole request.", exists=True)]
Prior = Annotated[float | None, typer.Option(help="The share of bots that you expect.", min=0, max=1)]
Json = Annotated[bool, typer.Option("--json", help="The whole answer.")]


@app.command()
def score(path: Accounts, prior: Prior = None, json: Json = False) -> None:
    """How probably each account is a bot."""
    from fourfold.blocking import Client

    asked = _request(path)
    if prior is not None:
        asked["prior"] = prior
    with Client() as client:
        results = client.score_accounts(asked.pop("accounts"), **asked)
    if json:
        return _dump(results)
    for row in results:
        if row["problem"] is not None:
            print(row["problem"]["detail"], file=sys.stderr)
            continue
        found = row["result"]
        stance = f"  {found['stance']['label']}" if found["stance"] else ""
        far = "  unlike the training accounts" if found["out_of_distribution"] else ""
        share = "" if found["adjusted_probability"] is None else f"{found['adjusted_probability']:6.1%}"
        print(f"{share}  {found['label'] or ''}{stance}  {found['id']}  ({found['evidence']['view']}){far}")
    raise typer.Exit(1 if any(row["problem"] for row in results) else 0)


@app.command()
def explain(path: Accounts, json: Json = False) -> None:
    """Which properties speak for a bot, and which against."""
    from fourfold.blocking import Client

    asked = _request(path)
    with Client() as client:
        results = client.explain_accounts(asked.pop("accounts"), **asked)
    if json:
        return _dump(results)
    for row in results:
        if row["problem"] is not None:
            print(row["problem"]["detail"], file=sys.stderr)
            continue
        found = row["result"]
        print(f"{found['id']}  {found['probability']:.1%} ({found['baseline']:.1%} of an unknown account)")
        for item in found["contributions"]:
            print(f"  {item['contribution']:+7.3f} ± {item['error']:.3f}  {item['property']}")
        for item in found["edges"][:10]:
            print(f"  {item['importance']:+7.3f}  {item['source']} {item['relation']}")
    raise typer.Exit(1 if any(row["problem"] for row in results) else 0)


@app.command()
def graph(
    dataset: Annotated[str, typer.Argument(help="Name or digest of a data set of the kind bots.")],
    out: Annotated[Path, typer.Option(help="Where the scores go.")] = Path("scores.parquet"),
    prior: Prior = None,
) -> None:
    """Score every account of an uploaded graph, and fetch the table."""
    from fourfold.blocking import Client
    from fourfold.cli_jobs import follow

    with Client() as client:
        job_id = client.score_graph(dataset, {} if prior is None else {"prior": prior})["id"]
        print(job_id)
        follow(client, job_id)
        job = client.job(job_id)
        if job["result"] is not None:
            out.write_bytes(client.job_file(job_id, job["result"]["file"]))
            print(f"{job['result']['rows']} accounts in {out}")


def _request(path: Path) -> dict[str, Any]:
    import orjson

    try:
        given = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from None
    if isinstance(given, list):
        return {"accounts": given}
    return given if "accounts" in given else {"accounts": [given]}


def _dump(results: list[dict[str, Any]]) -> None:
    import orjson

    print(orjson.dumps(results, option=orjson.OPT_INDENT_2).decode())
