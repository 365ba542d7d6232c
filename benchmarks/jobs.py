"""The figures of jobs: submission to 202, submission to running, promotion to served, listing after 10,000 jobs.

    python -m benchmarks.jobs

Wall times of what `fourfold up` starts, with a quick recipe in the place of the real one; run it on a quiet machine.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from fourfold import Client
from shared.database import connect
from shared.jobs.model import Job, JobState, new_job_id
from shared.jobs.store import SqlJobStore
from shared.repository import ModelRepository
from tests.running import Up

PRETRAINED = Path(__file__).parents[1] / "services" / "iqa" / "pretrained"


def _milliseconds(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{1000 * statistics.median(values):.1f} ms (worst of {len(values)}: {1000 * ordered[-1]:.1f})"


def main() -> None:
    table = Table("figure", "median", "goal")
    with tempfile.TemporaryDirectory() as folder:
        up = Up(Path(folder) / "home", FOURFOLD_RECIPES="tests.recipes", FOURFOLD_LOG_LEVEL="warning")
        try:
            with Client(up.url, up.key) as client:
                data = Path(folder) / "data"
                data.mkdir()
                (data / "a.txt").write_text("a")
                digest = client.add_dataset(data, "iqa", "bench")["digest"]
                while client.dataset(digest)["state"] == "validating":
                    time.sleep(0.05)
                starts: list[float] = []
                for _ in range(10):
                    job_id = client.train("iqa", digest, {"epochs": 1})["id"]
                    while (job := client.job(job_id))["finished_at"] is None:
                        time.sleep(0.02)
                    starts.append(job["started_at"] - job["created_at"])
                    time.sleep(1)
                submissions: list[float] = []
                for _ in range(50):
                    started = time.perf_counter()
                    job_id = client.train("iqa", digest, {"epochs": 1})["id"]
                    submissions.append(time.perf_counter() - started)
                version = ModelRepository(str(up.home / "models")).publish(PRETRAINED)
                promotions: list[float] = []
                photo = Path(folder) / "noise.png"
                Image.effect_noise((320, 240), 60).convert("RGB").save(photo)
                for number in range(6):
                    wanted = version if number % 2 == 0 else 1
                    started = time.perf_counter()
                    client.set_alias("iqa", "champion", wanted, force=True, reason="bench")
                    while client.score(photo)["model"] != f"iqa/{wanted}":
                        pass
                    promotions.append(time.perf_counter() - started)
                engine = connect(f"sqlite:///{up.home / 'fourfold.db'}")
                store = SqlJobStore(engine)
                for _ in range(10_000):
                    job = Job(new_job_id(), "train", "iqa", "train.cpu", {"epochs": 1}, time.time())
                    store.submit(replace(job, state=JobState.SUCCEEDED, finished_at=time.time()))
                engine.dispose()
                listings: list[float] = []
                for _ in range(50):
                    started = time.perf_counter()
                    client.jobs(limit=50)
                    listings.append(time.perf_counter() - started)
        finally:
            up.stop()
    table.add_row("submission to 202", _milliseconds(submissions), "25 ms")
    table.add_row("submission to running, idle worker", _milliseconds(starts), "1000 ms")
    table.add_row("promotion to served", _milliseconds(promotions), "2000 ms")
    table.add_row("listing 50 of 10,000 finished jobs", _milliseconds(listings), "50 ms")
    Console().print(table)


if __name__ == "__main__":
    main()
