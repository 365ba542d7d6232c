"""POST /v1/bots/score and /explain on the served default, over HTTP."""

import pytest

from services.bots.api import DOMAIN
from services.bots.features import PROPERTIES
from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import running
from tests.unit.bots.test_features import BLUESKY, MASTODON, V1, V2


@pytest.fixture
async def client(tmp_path):
    async with running(create_service(DOMAIN, ServiceSettings(home=tmp_path))) as client:
        yield client


@pytest.fixture
def score(client):
    async def ask(*accounts, **options):
        return await client.post("/v1/bots/score", json={"accounts": list(accounts), **options})

    return ask


async def test_every_form_is_scored_by_the_view_that_its_evidence_allows(score):
    answer = await score(V1, V2, MASTODON, BLUESKY, {"id": "m", "features": [0.5] * 20})
    assert answer.status_code == 200
    assert answer.headers["Fourfold-Model"] == answer.json()["model"] == "bots/1"
    results = [row["result"] for row in answer.json()["results"]]
    assert [result["evidence"]["view"] for result in results] == ["full", "x-v2", "profile", "profile", "full"]
    for result in results:
        assert 0 < result["probability"] < 1
        assert result["label"] in ("bot", "human")
        assert result["evidence"]["used"]
    assert results[2]["evidence"]["declared_automated"] is True
    assert "favourites_count" in results[1]["evidence"]["missing"]


async def test_the_same_seed_the_same_answer(score):
    first, again = [(await score(V1, seed=3)).json() for _ in range(2)]
    assert first == again


async def test_the_prior_moves_the_answer_and_abstention_holds(score):
    plain = (await score(V1)).json()["results"][0]["result"]
    low = (await score(V1, prior=0.01)).json()["results"][0]["result"]
    high = (await score(V1, prior=0.99)).json()["results"][0]["result"]
    assert low["adjusted_probability"] < plain["adjusted_probability"] < high["adjusted_probability"]
    assert low["probability"] == plain["probability"]
    assert plain["adjusted_probability"] == pytest.approx(plain["probability"])
    unsure = (await score(V1, min_confidence=0.9999)).json()["results"][0]["result"]
    assert unsure["label"] == "abstain"


async def test_an_account_unlike_any_other_is_told(score):
    odd = {**V1, "followers_count": 10**9, "friends_count": 10**7, "statuses_count": 0, "listed_count": 10**6}
    found = (await score(odd)).json()["results"][0]["result"]
    assert found["out_of_distribution"] is True
    assert found["distance"] > 1


async def test_a_lone_bad_account_is_a_problem_and_one_of_many_a_row(score):
    bad = {**V1, "followers_count": -1}
    lone = await score(bad)
    assert (lone.status_code, lone.json()["type"]) == (422, "urn:fourfold:problem:bots-bad-account")
    assert (lone.json()["row"], lone.json()["field"]) == (0, "followers_count")
    many = await score(V1, bad, V2)
    assert many.status_code == 200
    rows = many.json()["results"]
    assert [row["problem"] is None for row in rows] == [True, False, True]
    assert rows[1]["problem"]["row"] == 1


def edge(source, relation, target):
    return {"source": source, "relation": relation, "target": target}


@pytest.mark.parametrize(
    ("neighbourhood", "field", "told"),
    [
        ({"edges": [edge("12", "friends", "nobody")]}, "target", "Edge 0, target: there is no account 'nobody'"),
        ({"edges": [edge("12", "freinds", "12")]}, "relation", "did you mean 'friends'"),
        ({"edges": [edge("12", "sibling", "12")]}, "relation", "unknown 'sibling'; there is followers, friends"),
        (
            {"accounts": [{**V1, "id_str": "13", "friends_count": -2}]},
            "friends_count",
            "Neighbourhood: Account 0, friends_count",
        ),
        ({"accounts": [{**V1, "id_str": ""}]}, "id", "has no id"),
        ({"accounts": [V1]}, "id", "is there twice"),
    ],
)
async def test_neighbourhoods_that_are_refused(score, neighbourhood, field, told):
    answer = await score(V1, neighbourhood=neighbourhood)
    assert answer.status_code == 422
    problem = answer.json()
    assert told in problem["detail"]
    assert (problem["row"], problem["field"]) == (1 if told == "is there twice" else 0, field)


async def test_loops_and_duplicates_are_repaired_and_told(score):
    neighbour = {**V2, "id": "13"}
    edges = [edge("13", "friends", "12"), edge("13", "friends", "12"), edge("12", "friends", "12")]
    answer = await score(V1, neighbourhood={"accounts": [neighbour], "edges": edges})
    assert answer.status_code == 200
    assert answer.json()["repairs"] == {"self_loops": 1, "duplicate_edges": 1}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"[" * 100_000, 400),
        (b'{"accounts": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", 400),
        (b'{"accounts": []}', 422),
        (b'{"accounts": [{}]}', 422),
        (b'{"accounts": [{}], "prior": 0}', 422),
        (b'{"accounts": [{}], "unknown": 1}', 422),
        (b'{"accounts": [{}], "fan_out": [-1]}', 422),
        (b'{"accounts": [1]}', 422),
        (b'{"accounts": [{"screen_name": "a", "followers_count": NaN}]}', 422),
    ],
)
async def test_bodies_that_are_refused(client, body, status):
    answer = await client.post("/v1/bots/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_profile_of_fifty_megabytes(score):
    answer = await score({**V1, "description": "x" * 50_000_000})
    assert answer.status_code == 422
    assert "50000000 characters" in answer.json()["detail"]


async def test_vectors_of_another_encoder_are_refused(score):
    vector = {"encoder": "labse", "values": [0.0] * 768}
    answer = await score(V1, embeddings={"12": vector})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:fourfold:problem:bots-wrong-encoder")


async def test_an_explanation(client):
    answer = await client.post("/v1/bots/explain", json={"accounts": [V1], "permutations": 8})
    assert answer.status_code == 200, answer.text
    found = answer.json()["results"][0]["result"]
    assert {item["property"] for item in found["contributions"]} <= set(PROPERTIES)
    assert found["view"] == "full"
    assert {"without_top", "without_random", "only_top"} == set(found["fidelity"])
    sizes = [abs(item["contribution"]) for item in found["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    bad = await client.post("/v1/bots/explain", json={"accounts": [{**V1, "created_at": "x"}]})
    assert bad.status_code == 422
