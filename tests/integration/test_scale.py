"""Two of every process against one PostgreSQL, Valkey and S3: either may be killed, and nothing is lost."""

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fourfold import ApiError, Client, ConnectionFailed
from services import iqa
from shared.repository import ModelRepository
from tests.cluster import Cluster
from tests.drill import Traffic
from tests.postgres import postgres_server
from tests.running import Deployed

PRETRAINED = Path(iqa.__file__).parent / "pretrained"
CONFIG = {"epochs": 30, "batch_size": 64}  # 0.3 s an epoch


@pytest.fixture
def cluster(tmp_path, bucket):
    with postgres_server() as url:
        running = Cluster(
            tmp_path,
            f"{url}/postgres" if url else f"sqlite:///{tmp_path / 'house.db'}",
            bucket,
            f"ff_{secrets.token_urlsafe(32)}",
            FOURFOLD_RECIPES="tests.recipes",
            FOURFOLD_LEASE_SECONDS="10",
            FOURFOLD_LOG_LEVEL="warning",
        )
        try:
            running.add("a")
            running.add("b")
            yield running
        finally:
            running.stop()


def until(condition, told, seconds=120.0):
    ends = time.monotonic() + seconds
    while True:
        try:
            if answer := condition():
                return answer
        except (ApiError, ConnectionFailed):
            pass
        assert time.monotonic() < ends, told
        time.sleep(0.1)


class Follower(threading.Thread):
    """Reads a job's events to their end."""

    def __init__(self, client, job_id):
        super().__init__(daemon=True)
        self._events = client.job_events(job_id)
        self.steps = []
        self.last: Any = None
        self.start()

    def run(self):
        for event in self._events:
            self.last = event
            if event["event"] == "progress":
                self.steps.append(event["data"]["step"])


def test_whichever_of_two_is_killed_the_other_goes_on(cluster, bucket, tmp_path):
    key = cluster.environment["FOURFOLD_FIRST_KEY"]
    (tmp_path / "photos").mkdir()
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "photos" / "noise.png")
    photo = tmp_path / "photos" / "noise.png"
    with Client(cluster.url, key) as client, Client(cluster.url, key) as follower:
        # What one gateway makes the other knows; what one promotes every replica serves.
        one, other = (Client(f"http://127.0.0.1:{port}", key) for port in cluster.gateways.ports)
        with one, other:
            secret = one.create_key("for a test", ["predict"])["secret"]
            with Client(other.url, secret) as reader:
                assert reader.score(photo)["model"] == "iqa/1"
            models = ModelRepository(f"{bucket}/models")
            again = models.publish(PRETRAINED)
            for version in (again, 1):
                one.set_alias("iqa", "champion", version, force=True, reason="a test")
                for port in cluster.services.ports:
                    with Client(f"http://127.0.0.1:{port}", key) as replica:
                        until(lambda r=replica, v=version: r.score(photo)["model"] == f"iqa/{v}", "it is not served")
        dataset = client.add_dataset(tmp_path / "photos", "iqa", "photos")["digest"]
        until(lambda: client.dataset(dataset)["state"] == "valid", "the data set was not validated")
        traffic = Traffic(Deployed(cluster.url, key), pause=0.1)
        try:
            job_id = client.train("iqa", dataset, CONFIG)["id"]
            until(lambda: client.job(job_id)["step"] >= 3, "the job did not get on")
            following = Follower(follower, job_id)
            owner = cluster.part_of(client.job(job_id)["worker"])
            for part in (owner, *(cluster.part(f"{role}-a") for role in ("gateway", "iqa", "reaper"))):
                before = traffic.answers
                part.kill()
                until(lambda now=before: traffic.answers > now + 5, f"nothing is answered without {part.name}")
            job = until(lambda: (found := client.job(job_id))["finished_at"] and found, "the job did not end")
            following.join(30)
        finally:
            traffic.stop()
        assert not traffic.wrong
        assert (job["state"], job["attempt"]) == ("succeeded", 2), job["problem"]
        made = {version: models.manifest("iqa", version).job for version in models.versions("iqa")}
        assert made == {1: None, again: None, job["result"]["version"]: job_id}
        # Followed through a gateway that died, every step is told; and none is done again: it went on where it was.
        assert not following.is_alive()
        assert following.last["data"]["state"] == "succeeded"
        assert following.steps == list(range(following.steps[0], CONFIG["epochs"] + 1))
