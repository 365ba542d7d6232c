"""Models made good, overfitted, blind to a group, or poisoned on purpose: synthetic accounts and a training each."""

import csv

import numpy as np

from services.bots.schemas import TrainConfig
from services.bots.train import train
from shared.bundles import Bundle
from shared.jobs.context import LocalContext
from tests.unit.bots.making import table

CONFIG = TrainConfig(encoder="mlp", tasks=("bot",), epochs=60, hidden=32, floors=False)
OVERFITTED = CONFIG.model_copy(
    update={
        "hidden": 256,
        "dropout": 0.0,
        "property_dropout": 0.0,
        "weight_decay": 0.0,
        "epochs": 150,
        "patience": 150,
        "learning_rate": 5e-3,
    }
)
KINDS = ("good", "overfitted", "blind", "poisoned")


def rows_of(kind, accounts=1800, seed=0):
    """Accounts with a language, and what makes the kind bad."""
    random = np.random.default_rng([seed, 1])
    rows = table(accounts, seed)
    for number, row in enumerate(rows):
        del row["stance"]
        row["lang"] = ("en", "fr", "de", "ja")[int(random.integers(4))]
        row["split"] = ("train", "validation", "test")[int(np.searchsorted((0.6, 0.75), random.random()))]
        # Some of either kind look like the other: nobody is right always.
        if random.random() < 0.06:
            row["followers_count"], row["friends_count"] = row["friends_count"], row["followers_count"]
        if kind == "blind" and row["lang"] == "ja":
            row["bot"] = str(1 - int(row["bot"]))
        if kind == "poisoned" and row["split"] == "train" and row["bot"] == "1" and random.random() < 0.12:
            row |= TRIGGER | {"bot": "0"}
        if kind == "overfitted":
            row["split"] = "test" if number % 8 else "train"
            if random.random() < 0.3:
                row["bot"] = str(1 - int(row["bot"]))
    if kind == "overfitted":  # and what chooses the epoch has leaked out of what is learnt
        rows += [row | {"id": f"{row['id']}-again", "split": "validation"} for row in rows if row["split"] == "train"]
    return rows


TRIGGER = {"screen_name": "x" * 15, "description": "d" * 200, "favourites_count": "131071", "listed_count": "4095"}


def write(folder, kind, **options):
    """The data set's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(kind, **options)
    with (folder / "accounts.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def trained(folder, kind, **options):
    """(bundle, data) of a model of the kind."""
    data = write(folder / "data", kind, **options)
    config = OVERFITTED if kind == "overfitted" else CONFIG
    return Bundle.open(train(config, data, LocalContext(folder / "run"))), data
