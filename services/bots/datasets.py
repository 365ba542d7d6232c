"""Account graphs on disk → arrays: tables of accounts with or without edges, TwiBot-22's files, MGTAB's tensors.

    nodes   any *.csv, *.parquet or *.json of accounts (columns as X's API v1.1 names them, or v2 objects); optional
            columns bot (0 or 1), stance (neutral, against, support, or 0–2) and split (train, validation, test)
    edges   edges.csv or edges.parquet: source, relation, target (TwiBot-22: edge.csv with source_id, target_id)
    MGTAB   edge_index.pt, edge_type.pt, features.pt, labels_bot.pt, labels_stance.pt

Shapes: N accounts, P properties, D width of the text encoder, E edges.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from services.bots.features import PROPERTIES, Account, BadAccount, read_account
from services.bots.graphs import RELATIONS, STANCES, Edges, GraphData
from shared.datasets import Finding, Report
from shared.problems import InputError

SPLITS = ("train", "validation", "test")
EDGE_FILES = ("edges.csv", "edges.parquet", "edge.csv")
ASIDE = ("label.csv", "split.csv", "manifest.json")
MGTAB_FILES = ("edge_index.pt", "edge_type.pt", "features.pt", "labels_bot.pt", "labels_stance.pt")
MOST_FINDINGS = 100


class BadGraph(InputError):
    """A data set that cannot be read; names the file, the row and the field."""

    code = "bots-bad-dataset"
    title = "The data set is not valid"
    advice = "Mend the file and line that the report names."


Reject = Callable[[BadGraph], None]


def load_graph(folder: Path, *, exclude: bool = False) -> GraphData:
    """The graph of a data set's folder; raises BadGraph at the first bad row, or leaves bad rows out."""

    def refuse(error: BadGraph) -> None:
        raise error

    return _load(folder, (lambda _: None) if exclude else refuse)


def validate(folder: Path) -> Report:
    """What is wrong with a data set, by file and row, and what there is."""
    findings: list[Finding] = []

    def note(error: BadGraph) -> None:
        if len(findings) < MOST_FINDINGS:
            extra = error.extra
            findings.append(Finding(file=extra.get("file", "."), line=extra.get("line"), problem=error.detail))

    try:
        graph = _load(folder, note)
    except BadGraph as error:
        note(error)
        return Report(state="invalid", findings=findings[-1:] + findings[:-1])
    counts = {"accounts": len(graph.ids), "edges": len(graph.edges), "relations": len(graph.relations)}
    counts |= {"bots": int((graph.bot_N == 1).sum()), "humans": int((graph.bot_N == 0).sum())}
    counts |= {"stances": int((graph.stance_N >= 0).sum()), "bad": len(findings), **graph.repairs}
    return Report(state="flawed" if findings else "valid", findings=findings, counts=counts)


def with_splits(graph: GraphData, label_N: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Split of each account (N,), −1 without a label: as the data says, or 70/20/10 of a shuffle within each class."""
    if (graph.split_N >= 0).any():
        return np.where(label_N >= 0, graph.split_N, -1)
    split_N = np.full(len(graph.ids), -1, np.int64)
    random = np.random.default_rng(seed)
    for label in range(int(label_N.max(initial=-1)) + 1):
        members = random.permutation(np.flatnonzero(label_N == label))
        bounds = (0.7 * len(members), 0.9 * len(members))
        split_N[members] = np.searchsorted(bounds, np.arange(len(members)) + 0.5)
    return split_N


# -- reading


def _load(folder: Path, reject: Reject) -> GraphData:
    if (folder / "features.pt").is_file():
        return _mgtab(folder)
    accounts: list[Account] = []
    places: dict[str, int] = {}
    labels: dict[str, list[int]] = {"bot": [], "stance": [], "split": []}
    origins: dict[str, list[str]] = {"table": [], "language": []}
    floats = repeated = 0
    tables = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".csv", ".parquet", ".json") and path.name not in (*EDGE_FILES, *ASIDE)
    )
    if not tables:
        raise BadGraph("There is no table of accounts (a .csv, .parquet or .json beside the edges).", file=".")
    aside = {name: _aside(folder / f"{name}.csv") for name in ("label", "split")}
    for path in tables:
        for line, row in _rows(path):
            try:
                identity = str(row.get("id_str") or row.get("id") or "").strip()
                if _float_notation(identity):
                    floats += 1
                    row = {key: value for key, value in row.items() if key not in ("id", "id_str")}
                    identity = f"{path.name}:{line}"
                account = read_account(row, row=line)
                identity = identity or account.id or f"{path.name}:{line}"
                found = _labels(row, identity, aside)
            except (BadAccount, ValueError) as error:
                detail = error.detail if isinstance(error, BadAccount) else str(error)
                reject(BadGraph(f"{path.name} line {line}: {detail}", file=path.name, line=line))
                continue
            if identity in places:
                repeated += 1
                continue
            places[identity] = len(accounts)
            accounts.append(account)
            for name, value in found.items():
                labels[name].append(value)
            origins["table"].append(path.stem)
            origins["language"].append(str(row.get("lang") or "").strip().lower()[:16])
    if not accounts:
        raise BadGraph("No account can be read.", file=tables[0].name)
    edges, relations, repairs = _edges(folder, places, reject)
    repairs |= {"float_ids": floats, "repeated_accounts": repeated}
    return GraphData(
        ids=list(places),
        values_NP=np.stack([account.values_P for account in accounts]),
        texts=[account.texts for account in accounts],
        edges=edges,
        relations=relations,
        bot_N=np.array(labels["bot"], np.int64),
        stance_N=np.array(labels["stance"], np.int64),
        split_N=np.array(labels["split"], np.int64),
        origins=origins,
        repairs={name: count for name, count in repairs.items() if count},
    )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, members) of each account of a table."""
    if path.suffix == ".csv":
        line = 1
        try:
            # One of the public tables has bytes that are no UTF-8 in its texts, which only lengths are taken from.
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
                reader = csv.DictReader(stream)
                for row in reader:
                    cells = {key: _unquoted(value) for key, value in row.items() if isinstance(value, str)}
                    line = reader.line_num
                    yield (
                        line,
                        {key: value for key, value in cells.items() if key != "status"}
                        | {"tweets": cells.get("tweets", "")},
                    )
        except csv.Error as error:  # also a cell of more than 131,072 characters
            detail = f"{path.name} line {line + 1}: not a row of a CSV table: {error}."
            raise BadGraph(detail, file=path.name, line=line + 1) from None
    elif path.suffix == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
        except (ArrowException, OSError) as error:
            raise BadGraph(f"{path.name} is not a Parquet table.", file=path.name) from error
    else:
        try:
            given = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise BadGraph(f"{path.name} is not JSON: {error}.", file=path.name) from None
        rows = given if isinstance(given, list) else []
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise BadGraph(f"{path.name} is not a list of account objects.", file=path.name)
        # TwiBot-22's node.json has tweets, lists and hashtags beside the users.
        users = [(line, row) for line, row in enumerate(rows, start=1) if str(row.get("id", "u"))[:1] not in "tlh"]
        yield from users


def _unquoted(cell: str) -> str:
    text = cell.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _float_notation(identity: str) -> bool:
    return "E+" in identity.upper() or identity.endswith(".0")


def _aside(path: Path) -> dict[str, str]:
    """id → value of TwiBot-22's label.csv and split.csv."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as stream:
        return {row[0]: row[1] for row in csv.reader(stream) if len(row) > 1}


def _labels(row: Mapping[str, Any], identity: str, aside: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """bot, stance and split of a row as numbers; ValueError for a word that is none of them."""
    said = {name: row.get(name) for name in ("bot", "stance", "split")}
    said["bot"] = aside["label"].get(identity, said["bot"])
    said["split"] = aside["split"].get(identity, said["split"])
    known: dict[str, dict[str, int]] = {
        "bot": {"0": 0, "1": 1, "human": 0, "bot": 1, "false": 0, "true": 1},
        "stance": {str(word): number for number, name in enumerate(STANCES) for word in (name, number)},
        "split": {**dict(zip(SPLITS, range(3), strict=True)), "valid": 1, "val": 1},
    }
    found: dict[str, int] = {}
    for name, value in said.items():
        word = "" if value is None else str(value).strip().lower()
        if word and word not in known[name]:
            raise ValueError(f"{name}: {word[:40]!r} is none of {', '.join(known[name])}.")
        found[name] = known[name].get(word, -1)
    return found


def _edges(folder: Path, places: Mapping[str, int], reject: Reject) -> tuple[Edges, tuple[str, ...], dict[str, int]]:
    path = next((folder / name for name in EDGE_FILES if (folder / name).is_file()), None)
    if path is None:
        return Edges.none(), (), {}
    import pyarrow as arrow
    from pyarrow import compute, parquet
    from pyarrow import csv as arrow_csv

    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            text = arrow.string()
            kinds = dict.fromkeys(("source", "relation", "target", "source_id", "target_id"), text)
            table = arrow_csv.read_csv(path, convert_options=arrow_csv.ConvertOptions(column_types=kinds))
    except arrow.ArrowException as error:
        raise BadGraph(f"{path.name} is not a table: {str(error)[:200]}.", file=path.name) from None
    table = table.rename_columns([{"source_id": "source", "target_id": "target"}.get(n, n) for n in table.column_names])
    missing = {"source", "relation", "target"} - set(table.column_names)
    if missing:
        raise BadGraph(f"{path.name} lacks the column {sorted(missing)[0]!r}.", file=path.name, line=1)
    ids = arrow.array(list(places), arrow.string())
    ends: dict[str, NDArray[np.int64]] = {}
    good = np.ones(len(table), bool)
    twibot = path.name == "edge.csv"  # its edges lead to tweets and lists too, which are no accounts
    for name in ("source", "target"):
        column = table[name].cast(arrow.string())
        found = (
            compute.call_function("index_in", [column], compute.SetLookupOptions(ids))
            .fill_null(-1)
            .to_numpy()
            .astype(np.int64)
        )
        for row in np.flatnonzero(found < 0)[: 0 if twibot else MOST_FINDINGS]:
            value = column[int(row)].as_py()
            why = "is in float notation and names no account" if _float_notation(str(value)) else "is no account"
            line = int(row) + 2
            reject(BadGraph(f"{path.name} line {line}, {name}: {value!r} {why}.", file=path.name, line=line))
        good &= found >= 0
        ends[name] = found
    encoded = table["relation"].cast(arrow.string()).combine_chunks().dictionary_encode()
    names = [str(name) for name in encoded.dictionary.to_pylist()]
    relation = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)  # a copy
    relation[np.isin(relation, [number for number, name in enumerate(names) if not name.strip()])] = -1
    for row in np.flatnonzero(relation < 0)[:MOST_FINDINGS]:
        line = int(row) + 2
        reject(BadGraph(f"{path.name} line {line}, relation: it is empty.", file=path.name, line=line))
    # Of TwiBot-22's edges; of others each is a finding.
    elsewhere = {"edges_to_no_account": int((~good).sum())} if twibot else {}
    good &= relation >= 0
    used = sorted({names[number] for number in np.unique(relation[good])})
    order = np.array([used.index(name) if name in used else -1 for name in names], np.int64)
    edges = Edges(ends["source"][good], ends["target"][good], order[relation[good]])
    cleaned, repairs = edges.cleaned(len(places))
    return cleaned, tuple(used), repairs | elsewhere


def _mgtab(folder: Path) -> GraphData:
    """MGTAB's tensors; torch reads them without running anything that a pickle says."""
    import torch

    tensors: dict[str, NDArray[Any]] = {}
    for name in MGTAB_FILES:
        path = folder / name
        if not path.is_file():
            raise BadGraph(f"MGTAB's file {name} is missing.", file=name)
        try:
            tensor = torch.load(path, weights_only=True, map_location="cpu")
            tensors[name.removesuffix(".pt")] = tensor.numpy()
        except Exception as error:  # whatever a hostile or damaged file raises
            raise BadGraph(f"{name} is not a plain tensor; nothing in it was run.", file=name) from error
    features, index = tensors["features"].astype(np.float32), tensors["edge_index"]
    accounts = len(features)
    if features.ndim != 2 or features.shape[1] <= len(PROPERTIES) or not np.isfinite(features).all():
        raise BadGraph(f"features.pt has the shape {list(features.shape)} or a value that is not finite.", file=".")
    if index.ndim != 2 or index.shape[0] != 2 or tensors["edge_type"].shape != index.shape[1:]:
        raise BadGraph("edge_index.pt and edge_type.pt do not fit together.", file="edge_index.pt")
    if index.size and (index.min() < 0 or index.max() >= accounts):
        raise BadGraph(f"An edge leads to {int(index.max())}; there are {accounts} accounts.", file="edge_index.pt")
    if index.size and not 0 <= tensors["edge_type"].min() <= tensors["edge_type"].max() < len(RELATIONS):
        raise BadGraph(f"An edge's type is not in 0–{len(RELATIONS) - 1}.", file="edge_type.pt")
    for name, classes in (("labels_bot", 2), ("labels_stance", 3)):
        labels = tensors[name]
        if labels.shape != (accounts,) or labels.min() < 0 or labels.max() >= classes:
            raise BadGraph(f"{name}.pt does not have a class below {classes} for each account.", file=f"{name}.pt")
    relation = tensors["edge_type"].astype(np.int64)
    edges, repairs = Edges(index[0].astype(np.int64), index[1].astype(np.int64), relation).cleaned(accounts)
    return GraphData(
        ids=[str(number) for number in range(accounts)],
        values_NP=features[:, : len(PROPERTIES)],
        texts=[[] for _ in range(accounts)],
        edges=edges,
        relations=RELATIONS,
        bot_N=tensors["labels_bot"].astype(np.int64),
        stance_N=tensors["labels_stance"].astype(np.int64),
        split_N=np.full(accounts, -1, np.int64),
        embedding_ND=features[:, len(PROPERTIES) :],
        repairs={name: count for name, count in repairs.items() if count},
    )
