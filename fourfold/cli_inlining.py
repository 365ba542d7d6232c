"""`fourfold advise` and `fourfold clang`: inlining advice for a file, a whole build, or as the build's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def advise(
    path: Annotated[
        Path | None, typer.Argument(help="C source, LLVM IR (.ll) or bitcode (.bc).", dir_okay=False)
    ] = None,
    flags: Annotated[list[str] | None, typer.Argument(help="After `--`: the compiler's flags for C source.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the artefact goes.")] = None,
    artefact: Annotated[str, typer.Option(help="replay, annotated-ir or object.")] = "replay",
    goal: Annotated[str, typer.Option(help="size at -Oz, or speed at -O3, which is predicted.")] = "size",
    best_of: Annotated[int, typer.Option(help="Tries of the policy.", min=1, max=16)] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer.")] = False,
    commands: Annotated[
        Path | None, typer.Option(help="A compile_commands.json: report on every file, compiled here.")
    ] = None,
    clang: Annotated[str, typer.Option(help="With --commands: the compiler.")] = "",
    policy: Annotated[str, typer.Option(help="With --commands: a folder with a policy.")] = "",
    jobs: Annotated[int, typer.Option(help="With --commands: compiles at once; a core each if 0.", min=0)] = 0,
) -> None:
    """Advise on inlining: a file by the service, or every file of a build here."""
    if commands is not None:
        given = [str(commands), *(["--clang", clang] if clang else []), *(["--policy", policy] if policy else [])]
        given += ["--jobs", str(jobs)] if jobs else []
        command = [sys.executable, "-P", "-m", "services.inlining.project", *given]
        raise typer.Exit(subprocess.call(command))
    if path is None:
        raise typer.BadParameter("name a file, or a compile_commands.json with --commands")
    import orjson

    from fourfold.blocking import Client

    with Client() as client:
        found = client.advise(path, flags=flags or [], goal=goal, artefact=artefact, best_of=best_of)
    if json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        _show(found)
    if out is not None:
        _write(out, found)


def tune(
    dataset: Annotated[str, typer.Argument(help="Name or digest of a data set of the kind inlining.")],
    module: Annotated[str, typer.Option(help="Which file of it; its only one if unset.")] = "",
    evaluations: Annotated[int, typer.Option(help="Compiles that may be spent.", min=1)] = 200,
    out: Annotated[Path, typer.Option(help="Where the replay file goes.")] = Path("replay.txt"),
) -> None:
    """Search for a module's best decisions, watch, and fetch the replay file."""
    from fourfold.blocking import Client
    from fourfold.cli_jobs import follow

    with Client() as client:
        job_id = client.tune(dataset, {"module": module, "evaluations": evaluations})["id"]
        print(job_id)
        follow(client, job_id)
        result = client.job(job_id)["result"]
        if result is not None:
            out.write_bytes(client.job_file(job_id, result["file"]))
            print(f"{result['text_stock']} → {result['text_tuned']} bytes of machine code; decisions in {out}")


def clang() -> None:
    """Run clang with advised inlining: fourfold clang [--clang COMMAND] [--policy FOLDER] [--fast] -- -Oz -c a.c

    With --launcher FILE instead of `--` and what follows: make a program that does so without Python's start.
    """


def _show(found: dict[str, Any]) -> None:
    stock, advised = found["text_stock"], found["text_advised"]
    share = f"{100 * (advised - stock) / stock:+.2f} %" if stock else "0 %"
    print(f"{stock} → {advised} bytes of machine code ({share}) by {found['winner']}  ({found['model']})")
    if (predicted := found["instructions"]) is not None:
        model = predicted["model"]
        print(
            f"{predicted['percent']:+.2f} % executed instructions, predicted; what the model chose on "
            "{} programs unseen by it had {:+.2f} % ({:+.2f} to {:+.2f})".format(
                model["programs"], *model["chosen_on_unseen_programs_percent"]
            )
        )
    for row in found["functions"][:20]:
        print(f"  {row['advised'] - row['stock']:+6d}  {row['name']}")
    differing = [site for site in found["sites"] if site["stock"] is not None and site["inline"] != site["stock"]]
    for site in differing[:40]:
        verb = "inline" if site["inline"] else "do not inline"
        print(f"  {site['file']}:{site['line']}:{site['column']}  {verb} {site['callee']} into {site['caller']}")
    if found["artefact"]["options"]:
        print("clang " + " ".join(found["artefact"]["options"]))


def _write(out: Path, found: dict[str, Any]) -> None:
    import base64

    artefact = found["artefact"]
    content = artefact["content"]
    out.write_bytes(base64.b64decode(content) if artefact["encoding"] == "base64" else content.encode())
