"""`fourfold train` and `fourfold jobs`: submit, watch, list, show, cancel, and read the log."""

from __future__ import annotations

import codecs
import sys
import time
from typing import Annotated, Any

import typer

from fourfold.cli_keys import when

app = typer.Typer(invoke_without_command=True)
ID_LENGTH = 22


def train(
    domain: Annotated[str, typer.Argument(help="What to train, for example iqa.")],
    dataset: Annotated[str, typer.Option(help="Name or digest of a data set.")] = "",
    set: Annotated[list[str] | None, typer.Option(help="A setting, KEY=VALUE; repeat for several.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end; Ctrl-C detaches.")] = False,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key never makes a second job.")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="List what can be set, and train nothing.")] = False,
) -> None:
    """Submit a training."""
    from fourfold.blocking import Client

    if settings:
        return _list_settings(domain)
    if not dataset:
        raise typer.BadParameter("name a data set with --dataset (fourfold datasets list)")
    config = {name: _value(text) for name, _, text in (item.partition("=") for item in set or [])}
    with Client() as client:
        job = client.train(domain, dataset, config, idempotency_key=key)
        print(job["id"])
        if watch:
            follow(client, job["id"])


def _list_settings(domain: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from fourfold.blocking import Client

    with Client() as client:
        document = client.request("GET", "/openapi.json")
    path = document["paths"].get(f"/v1/{domain}/training-jobs")
    if path is None:
        raise typer.BadParameter(f"{domain} takes no trainings")
    schema = path["post"]["requestBody"]["content"]["application/json"]["schema"]
    request = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    table = Table("setting", "default", "values", "meaning")
    for name, about in request["properties"]["config"]["properties"].items():
        default = "" if about.get("default") is None else str(about["default"])
        table.add_row(name, default, _values(about), about.get("description", ""))
    Console().print(table)


def _values(about: dict[str, Any]) -> str:
    """What a setting may be, of its JSON schema."""
    if "enum" in about:
        return " ".join(str(value) for value in about["enum"])
    low = about.get("minimum", about.get("exclusiveMinimum"))
    high = about.get("maximum", about.get("exclusiveMaximum"))
    if low is None and high is None:
        return str(about.get("type", ""))
    return f"{'' if low is None else f'{low:.10g}'}–{'' if high is None else f'{high:.10g}'}"


@app.callback()
def listing(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1, max=500)] = 20,
) -> None:
    """Jobs, newest first."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Column, Table

    from fourfold.blocking import Client

    table = Table(Column("id", min_width=ID_LENGTH, no_wrap=True), "job", "state", "step", "submitted", "result")
    with Client() as client:
        for job in client.jobs(state=state, limit=limit):
            step = f"{job['step']}/{job['total']}" if job["total"] else ""
            what = f"{job['domain']} {job['kind']}"
            table.add_row(job["id"], what, job["state"], step, when(job["created_at"]), _outcome(job))
    Console().print(table)


@app.command()
def show(job_id: str) -> None:
    """Everything about one job, as JSON, with its curves."""
    import orjson

    from fourfold.blocking import Client

    with Client() as client:
        job = {**client.job(job_id), "points": client.job_points(job_id)}
    print(orjson.dumps(job, option=orjson.OPT_INDENT_2).decode())


@app.command()
def cancel(job_id: str) -> None:
    """Ask a job to end."""
    from fourfold.blocking import Client

    with Client() as client:
        job = client.cancel_job(job_id)
    print(f"{job_id} is {job['state']}" + ("; it stops at its next step" if job["state"] == "running" else ""))


@app.command()
def watch(job_id: str) -> None:
    """Follow a job to its end; Ctrl-C detaches."""
    from fourfold.blocking import Client

    with Client() as client:
        follow(client, job_id)


@app.command()
def logs(
    job_id: str, follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False
) -> None:
    """Print a job's log."""
    from fourfold.blocking import Client

    start = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end inside a letter
    with Client() as client:
        while True:
            ended = client.job(job_id)["finished_at"] is not None
            text = client.job_log(job_id, start)
            start += len(text)
            sys.stdout.write(decoder.decode(text))
            sys.stdout.flush()
            if text:
                continue
            if ended or not follow:
                return
            time.sleep(1)


def follow(client: Any, job_id: str) -> None:
    """Print each event; exits with 1 unless the job succeeds."""
    try:
        for event in client.job_events(job_id):
            data = event["data"]
            if event["event"] == "progress":
                figures = "  ".join(f"{name} {value:.4g}" for name, value in data["metrics"].items())
                left = "" if data["seconds_left"] is None else f"  {_duration(data['seconds_left'])} left"
                print(f"{data['step']}/{data['total']}  {figures}{left}", flush=True)
            elif event["event"] == "state":
                asked = data["state"] == "running" and data["cancel_requested_at"]
                print(f"{data['state']}{', stopping' if asked else ''}  {_outcome(data)}".rstrip(), flush=True)
                if data["finished_at"] is not None and data["state"] != "succeeded":
                    raise typer.Exit(1)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on. Follow it with: fourfold jobs watch {job_id}", file=sys.stderr)


def _outcome(job: dict[str, Any]) -> str:
    if job["problem"]:
        return f"{job['problem'].get('title', 'failed')}: {job['problem'].get('detail', '')}"
    result: dict[str, Any] = job["result"] or {}
    if "comparison" in result:
        difference = result["comparison"]["difference"]
        beside = f"{result['comparison']['metric']} beside version {result['comparison']['champion']}"
        return f"{beside}: {difference['value']:+.4f} (95 %: {difference['low']:+.4f} to {difference['high']:+.4f})"
    if "version" in result:
        return f"{result['model']}/{result['version']}"
    return str(result.get("state", ""))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _value(text: str) -> Any:
    """A setting as JSON where it is JSON, else as the word it is."""
    import orjson

    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
