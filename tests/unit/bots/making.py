"""Small synthetic account graphs for tests: two kinds of accounts, told apart by their follower counts and friends."""

import csv

import numpy as np
import torch

from services.bots.benchmark import synthetic


def table(accounts, seed=0):
    """Rows as X's API v1.1 names them; every third is a bot, with fewer followers."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(accounts):
        bot = int(number % 3 == 0)
        rows.append(
            {
                "id": f"a{number}",
                "screen_name": "x" * int(random.integers(3, 15)),
                "name": "n" * int(random.integers(1, 30)),
                "description": "d" * int(random.integers(0, 100)),
                "followers_count": str(int(random.integers(0, 200 if bot else 5000))),
                "friends_count": str(int(random.integers(0, 3000 if bot else 500))),
                "statuses_count": str(int(random.integers(0, 10_000))),
                "listed_count": str(int(random.integers(0, 20))),
                "favourites_count": str(int(random.integers(0, 1000))),
                "created_at": f"201{random.integers(0, 9)}-0{random.integers(1, 9)}-11T00:00:00Z",
                "verified": "FALSE",
                "default_profile": str(bool(random.random() < 0.5)),
                "default_profile_image": str(bool(random.random() < (0.4 if bot else 0.05))),
                "url": "https://example.org" if random.random() < 0.5 else "",
                "bot": str(bot),
                "stance": ("neutral", "against", "support")[number % 3],
            }
        )
    return rows


def write_graph(folder, accounts=300, edges=None, change=None, seed=0):
    """accounts.csv, and edges.csv where there are edges (or `edges` = "kind": most between accounts of one kind)."""
    rows = table(accounts, seed)
    for number, changes in (change or {}).items():
        rows[number] |= changes
    with (folder / "accounts.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if edges == "kind":
        random = np.random.default_rng(seed)
        edges = []
        for number in range(accounts):
            for _ in range(4):
                other = (number + 3 * int(random.integers(1, accounts // 3))) % accounts  # the same kind
                edges.append((f"a{number}", ("follow", "friend")[int(random.integers(2))], f"a{other}"))
    if edges:
        lines = ["source,relation,target", *(",".join(edge) for edge in edges)]
        (folder / "edges.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_mgtab(folder, accounts=200, edges=2000, seed=0):
    """MGTAB's five files, synthetic."""
    graph = synthetic(accounts, edges, seed)
    random = np.random.default_rng(seed)
    text = random.normal(size=(accounts, 768)).astype(np.float32) + graph.stance_N[:, None]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    while len(graph.edges) < edges:  # duplicates and loops went; they may come back
        graph.edges = type(graph.edges)(
            *(np.concatenate([column, column[: edges - len(column)]]) for column in vars(graph.edges).values())
        )
    save = {
        "features": torch.from_numpy(np.concatenate([graph.values_NP, text], axis=1)),
        "edge_index": torch.from_numpy(np.stack([graph.edges.source_E, graph.edges.target_E])),
        "edge_type": torch.from_numpy(graph.edges.relation_E.copy()),
        "labels_bot": torch.from_numpy(graph.bot_N),
        "labels_stance": torch.from_numpy(graph.stance_N),
    }
    for name, tensor in save.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder
