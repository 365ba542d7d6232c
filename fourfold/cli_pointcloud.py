"""`fourfold pointcloud`: shapes to meshes, codewords, classes and shapes that resemble them; the domain's jobs."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(no_args_is_help=True)
Shape = Annotated[
    Path, typer.Argument(help="PLY, PCD, XYZ, OFF, OBJ, STL, GLB, LAS, LAZ or NPY.", exists=True, dir_okay=False)
]
MeshOut = Annotated[Path, typer.Option(help="What to write; .ply, .npy or .glb says in which form.")]
Seed = Annotated[int, typer.Option(help="Of the sampling of meshes and large clouds.")]
Points = Annotated[int, typer.Option(help="Taken of a mesh or a larger cloud.")]
Resolution = Annotated[int | None, typer.Option(help="Of the folded surface: its points, squared.", min=4, max=128)]
Json = Annotated[bool, typer.Option("--json", help="The whole answer.")]
Dataset = Annotated[str, typer.Argument(help="Name or digest of a data set of the kind pointcloud.")]
FORMS = ("ply", "npy", "glb")


@app.command()
def reconstruct(
    path: Shape,
    out: MeshOut = Path("reconstruction.glb"),
    points: Points = 2048,
    seed: Seed = 0,
    resolution: Resolution = None,
) -> None:
    """The mesh that the network folds of a shape, in the shape's own units."""
    from fourfold.blocking import Client

    form = _form(out)
    with Client() as client:
        told = client.reconstruct(path, points=points, seed=seed)
        mesh = client.reconstruct(path, out=form, points=points, seed=seed, resolution=resolution, measure=False)
    out.write_bytes(mesh)
    given, off = told["input"], told["distance"]
    how = {"area": "sampled by area from", "sample": "drawn from", "voxel": "by cells from", "none": "all of"}
    size = f"{given['triangles']} triangles" if given["triangles"] else f"{given['points']} points"
    print(f"{path.name}: {given['format']}, {given['taken']} points {how[given['reduction']]} {size}")
    print(
        f"{out}: off by {off['chamfer']:.4g} on average, {off['relative']:.1%} of the shape's radius ({told['model']})"
    )
    _warn(given["warnings"])
    if told["out_of_distribution"]:
        print("unlike the shapes of the training", file=sys.stderr)


@app.command()
def encode(
    path: Shape,
    out: Annotated[Path | None, typer.Option(help="Codeword's file; the shape's name with .ffcw if unset.")] = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="Of its numbers.")] = "fp16",
    points: Points = 2048,
    seed: Seed = 0,
) -> None:
    """Compress a shape to its codeword."""
    from fourfold.blocking import Client

    out = out or path.with_suffix(".ffcw")
    with Client() as client:
        told = client.encode(path, out="json", precision=precision, points=points, seed=seed)
    out.write_bytes(base64.b64decode(told["encoded"]))
    taken = told["input"]["taken"]
    print(f"{out}: {told['bytes']} bytes, {told['ratio']:.1f} times smaller than {taken} points as float32")
    _warn(told["input"]["warnings"])


@app.command()
def decode(
    path: Annotated[Path, typer.Argument(help="A codeword's file.", exists=True, dir_okay=False)],
    out: MeshOut = Path("decoded.glb"),
    resolution: Resolution = None,
) -> None:
    """The mesh of a codeword, in the units of the shape that was encoded."""
    from fourfold.blocking import Client

    with Client() as client:
        out.write_bytes(client.decode(path, out=_form(out), resolution=resolution))
    print(out)


@app.command()
def search(
    path: Shape,
    index: Annotated[str | None, typer.Option(help="A data set or the job of an index; the newest if unset.")] = None,
    count: Annotated[int, typer.Option(help="Shapes to find.", min=1, max=100)] = 10,
    previews: Annotated[Path | None, typer.Option(help="Folder for pictures of them.", file_okay=False)] = None,
    json: Json = False,
) -> None:
    """The shapes of an index that resemble this one most."""
    from fourfold.blocking import Client

    with Client() as client:
        found = client.search(path, index=index, count=count, preview="png" if previews or json else "none")
    if previews is not None:
        previews.mkdir(parents=True, exist_ok=True)
        for rank, hit in enumerate(found["hits"], start=1):
            (previews / f"{rank:02}.png").write_bytes(base64.b64decode(hit.get("preview_png", "")))
    if json:
        return _dump(found)
    for hit in found["hits"]:
        label = f"  ({hit['label']})" if hit.get("label") else ""
        print(f"{hit['distance']:8.3f}  {hit['chamfer']:.3f}  {hit['name']}{label}")
    print(f"of {found['shapes']} shapes: distance of the codewords, and of the points in the unit ball")


@app.command()
def classify(
    path: Shape, count: Annotated[int, typer.Option(help="Classes to name.", min=1)] = 5, json: Json = False
) -> None:
    """The most probable classes of a shape."""
    from fourfold.blocking import Client

    with Client() as client:
        found = client.classify(path, count=count)
    if json:
        return _dump(found)
    for row in found["classes"]:
        print(f"{row['probability']:6.1%}  {row['label']}")
    if found.get("out_of_distribution"):
        print("unlike the shapes of the training", file=sys.stderr)


@app.command()
def from_image(
    path: Annotated[Path, typer.Argument(help="A picture of one object on white.", exists=True, dir_okay=False)],
    out: MeshOut = Path("seen.ply"),
) -> None:
    """The points that the single-view network sees in a picture."""
    from fourfold.blocking import Client

    with Client() as client:
        out.write_bytes(client.shape_from_image(path, out=_form(out)))
    print(out)


@app.command()
def index(dataset: Dataset) -> None:
    """Make an index of a data set's shapes, for `search`."""
    _job("index_shapes", dataset, None)


@app.command()
def dispersion(
    dataset: Dataset,
    out: Annotated[Path | None, typer.Option(help="Where the report goes; its own name if unset.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Medoids.", min=1)] = None,
) -> None:
    """How scattered a data set's pictures, shapes and predictions are: does a network recognise or reconstruct?"""
    _job("measure_dispersion", dataset, out, fetch=True, **({} if clusters is None else {"clusters": clusters}))


def _job(submit: str, dataset: str, out: Path | None, *, fetch: bool = False, **config: Any) -> None:
    from fourfold.blocking import Client
    from fourfold.cli_jobs import follow

    with Client() as client:
        job_id = getattr(client, submit)(dataset, config)["id"]
        print(job_id)
        follow(client, job_id)
        result = client.job(job_id)["result"]
        if result is None:
            raise typer.Exit(1)
        if fetch:
            out = out or Path(result["file"])
            out.write_bytes(client.job_file(job_id, result["file"]))
            result["file"] = str(out)
        for name, value in result.items():
            print(f"{name}: {value}")


def _form(out: Path) -> str:
    form = out.suffix.removeprefix(".").lower()
    if form not in FORMS:
        raise typer.BadParameter(f"{out} should end in one of .{', .'.join(FORMS)}")
    return form


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(warning, file=sys.stderr)


def _dump(answer: dict[str, Any]) -> None:
    import orjson

    print(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode())
