"""Merging the services' documents: only paths that are passed on, no schema overwritten."""

from gateway.openapi import merge

OWN = {
    "paths": {"/healthz": {"get": {"responses": {"200": {}}}}},
    "components": {"schemas": {"Health": {"type": "object", "title": "own"}, "Same": {"type": "integer"}}},
}
SERVICE = {
    "paths": {
        "/healthz": {"get": {"responses": {"200": {"description": "theirs"}}}},
        "/v1/iqa/score": {
            "post": {
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}},
                    "401": {"description": "its own"},
                }
            }
        },
        "/v2/models/{model}/infer": {"post": {"responses": {"200": {}}}},
        "/v1/other/secret": {"get": {"responses": {}}},
    },
    "components": {
        "schemas": {
            "Health": {"type": "object", "title": "theirs", "properties": {"x": {"$ref": "#/components/schemas/Same"}}},
            "Same": {"type": "integer"},
        }
    },
}


def test_only_what_is_passed_on_is_added():
    merged = merge(OWN, {"iqa": SERVICE})
    assert set(merged["paths"]) == {"/healthz", "/v1/iqa/score", "/v2/models/{model}/infer"}
    assert merged["paths"]["/healthz"] == OWN["paths"]["/healthz"]


def test_a_schema_of_the_same_name_but_other_meaning_is_renamed_with_its_references():
    merged = merge(OWN, {"iqa": SERVICE})
    schemas = merged["components"]["schemas"]
    assert schemas["Health"]["title"] == "own"
    assert schemas["iqa_Health"]["title"] == "theirs"
    assert "iqa_Same" not in schemas
    answer = merged["paths"]["/v1/iqa/score"]["post"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/iqa_Health"}


def test_what_the_gateway_may_answer_itself_is_added_to_v1_only():
    merged = merge(OWN, {"iqa": SERVICE})
    score = merged["paths"]["/v1/iqa/score"]["post"]
    assert {"401", "403", "413", "429", "503"} <= set(score["responses"])
    assert score["responses"]["401"] == {"description": "its own"}
    assert score["security"]
    assert set(merged["paths"]["/v2/models/{model}/infer"]["post"]["responses"]) == {"200"}


def test_a_service_that_is_down_is_left_out_and_nothing_given_is_changed():
    before = str(OWN)
    assert merge(OWN, {"iqa": {}})["paths"] == OWN["paths"]
    assert str(OWN) == before
