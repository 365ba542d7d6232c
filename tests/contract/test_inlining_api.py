"""POST /v1/inlining/advice over HTTP: C source, IR and bitcode, every artefact, and every row of bad input."""

import base64
from dataclasses import replace

import pytest

from services.inlining.api import DOMAIN
from services.inlining.engine import compile_module
from services.inlining.sizes import text_sizes
from services.inlining.source import to_bitcode
from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import running
from tests.unit.inlining.making import CHECKSUMS, PARSER, QUEUE, SCALED, policy_bundle


@pytest.fixture
async def client(tmp_path):
    domain = replace(DOMAIN, pretrained=policy_bundle(tmp_path / "bundle"))
    async with running(create_service(domain, ServiceSettings(home=tmp_path))) as client:
        yield client


@pytest.fixture
def advise(client):
    async def ask(content, form="c", **options):
        return await client.post("/v1/inlining/advice", json={"format": form, "content": content, **options})

    return ask


async def test_c_source_comes_back_with_advice_that_is_what_it_says(advise):
    answer = await advise(QUEUE, name="queue.c")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Fourfold-Model"] == answer.json()["model"] == "inlining/1"
    found = answer.json()
    bitcode = to_bitcode(QUEUE, name="queue.c")
    assert found["text_stock"] == compile_module(bitcode).text
    replay = found["artefact"]
    assert replay["kind"] == "replay"
    assert compile_module(bitcode, replay=replay["content"]).text == replay["text"] == found["text_advised"]
    assert found["text_advised"] <= found["text_stock"]
    assert {"stock", "policy", "inline-threshold=-10"} <= {row["name"] for row in found["candidates"]}
    sites = {(site["caller"], site["callee"]): site for site in found["sites"]}
    push = sites["push", "grow"]
    assert push["file"] == "queue.c"
    assert QUEUE.splitlines()[push["line"] - 1][push["column"] - 1 :].startswith("grow(q)")
    assert push["place"] == "push:1:18"
    assert 0 <= push["confidence"] <= 1
    assert push["features"]["callee_basic_block_count"] > 1
    changed = {row["name"]: row["advised"] - row["stock"] for row in found["functions"]}
    assert sum(changed.values()) <= 0 or not changed


async def test_every_form_of_a_module_has_the_same_answer(advise):
    bitcode = to_bitcode(PARSER, name="p.c")
    source = (await advise(PARSER, name="p.c")).json()
    binary = (await advise(base64.b64encode(bitcode).decode(), "bitcode")).json()
    assert binary["text_stock"] == source["text_stock"]
    assert binary["sites"] == source["sites"]
    assert binary["artefact"] == source["artefact"]


async def test_annotated_ir_and_object_yield_what_they_promise(advise):
    for source in (QUEUE, CHECKSUMS):
        marked = (await advise(source, artefact="annotated-ir")).json()
        assert compile_module(marked["artefact"]["content"].encode()).text == marked["artefact"]["text"]
        assert marked["artefact"]["text"] <= marked["text_stock"]
        image = (await advise(source, artefact="object")).json()
        assert base64.b64decode(image["artefact"]["content"])[:4] == b"\x7fELF"


async def test_bare_ir_is_given_places_and_comes_back_with_them(advise):
    text = """
target triple = "x86_64-unknown-linux-gnu"
define internal i32 @square(i32 %x) minsize optsize { %r = mul i32 %x, %x
  ret i32 %r }
define i32 @twice(i32 %x) minsize optsize {
  %a = call i32 @square(i32 %x)
  %b = call i32 @square(i32 %a)
  ret i32 %b
}
"""
    found = (await advise(text, "ir")).json()
    assert found["located"] is False
    assert "!dbg" in found["module_ir"]
    assert len(found["sites"]) == 2
    replayed = compile_module(found["module_ir"].encode(), replay=found["artefact"]["content"])
    assert replayed.text == found["artefact"]["text"]


async def test_the_best_of_several_is_never_worse_and_a_seed_repeats(advise):
    one = (await advise(PARSER)).json()
    several = [(await advise(PARSER, best_of=4, seed=5)).json() for _ in range(2)]
    assert several[0]["text_advised"] <= one["text_advised"]
    for answer in several:
        answer.pop("cpu_seconds")
    assert several[0] == several[1]
    assert len(several[0]["candidates"]) == len(one["candidates"]) + 3


async def test_headers_and_flags_of_the_source(advise):
    source = '#include "sub/limits_of.h"\nint top(void) { return LIMIT * SCALE; }\n'
    files = {"sub/limits_of.h": "#define LIMIT 3\n"}
    good = await advise(source, files=files, flags=["-DSCALE=2", "-std=c11", "-Wall"])
    assert good.status_code == 200, good.text
    missing = await advise(source, flags=["-DSCALE=2"])
    assert missing.status_code == 422
    assert "'sub/limits_of.h' file not found" in missing.json()["detail"]


@pytest.mark.parametrize(
    ("content", "kind", "options"),
    [
        ('#include "/etc/passwd"\n', "include-refused", {}),
        ("#include <../../../../../../etc/passwd>\n", "include-refused", {}),
        ("#inc\\\nlude </etc/passwd>\n", "include-refused", {}),
        ("%:include </etc/passwd>\n", "include-refused", {}),
        ('#define WHAT "/etc/hostname"\n#include WHAT\n', "include-refused", {}),
        ('char x[] = {\n#embed "/etc/passwd"\n};', "include-refused", {}),
        ('__asm__(".incbin \\"/etc/passwd\\"");', "include-refused", {}),
        ('__asm__(".inc" "bin \\"/etc/passwd\\"");', "source-invalid", {}),
        ('int f(void) { __asm__(".byte 1"); return 0; }', "unsafe-assembly", {}),
        ("int f(", "source-invalid", {}),
        ("int f;", "flag-refused", {"flags": ["-fplugin=/tmp/evil.so"]}),
        ("int f;", "flag-refused", {"flags": ["-Xclang", "-load"]}),
        ("int f;", "flag-refused", {"flags": ["@/etc/passwd"]}),
        ("int f;", "flag-refused", {"flags": ["-mllvm"]}),
        ("int f;", "flag-refused", {"flags": ["-I/etc"]}),
        ("int f;", "flag-refused", {"flags": ["-I../.."]}),
        ("int f;", "flag-refused", {"flags": ["-o/tmp/x"]}),
        ("int f;", "flag-refused", {"flags": ["-Wa,-L"]}),
        ("int f;", "flag-refused", {"flags": ["-fnot-known"]}),
    ],
)  # fmt: skip
async def test_source_that_is_refused(advise, content, kind, options):
    answer = await advise(content, **options)
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == f"urn:fourfold:problem:inlining-{kind}"
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"format": "c", "content": "int f;", "name": "../f.c"}, 400),
        ({"format": "c", "content": "int f;", "files": {"/etc/x.h": ""}}, 400),
        ({"format": "bitcode", "content": "!!!"}, 400),
        ({"format": "bitcode", "content": "aGVsbG8gd29ybGQ="}, 400),
        ({"format": "bitcode", "content": "QkPA3g=="}, 422),
        ({"format": "ir", "content": "hello"}, 422),
        ({"format": "ir", "content": 'target triple = "armv7-none-eabi"'}, 422),
        ({"format": "ir", "content": 'module asm ".incbin \\22/etc/passwd\\22"'}, 422),
        ({"format": "ir", "content": "define void @f() { ret void }", "flags": ["-O2"]}, 400),
        ({"format": "elf", "content": "x"}, 422),
        ({"format": "c", "content": ""}, 422),
        ({"format": "c", "content": "int f;", "best_of": 99}, 422),
        ({"format": "c", "content": "int f;", "unknown": 1}, 422),
        ({}, 422),
    ],
)
async def test_requests_that_are_refused(client, body, status):
    answer = await client.post("/v1/inlining/advice", json=body)
    assert answer.status_code == status, answer.text[:400]
    assert answer.headers["content-type"] == "application/problem+json"


async def test_speed_is_predicted_and_said_to_be(advise):
    found = (await advise(SCALED, goal="speed")).json()
    assert found["winner"].startswith("inline-threshold=")
    assert found["instructions"]["percent"] < 0
    assert found["instructions"]["model"]["programs"] >= 10
    candidates = {row["name"]: row["instructions_percent"] for row in found["candidates"]}
    assert candidates["stock"] == 0
    assert "policy" not in candidates  # that of the version is for size
    assert found["artefact"]["options"][0] == "-O3"
    bitcode = to_bitcode(SCALED, level="3")
    assert found["text_stock"] == compile_module(bitcode, level="3").text
    image = (await advise(SCALED, goal="speed", artefact="object")).json()
    data = base64.b64decode(image["artefact"]["content"])
    assert text_sizes(data)[0] == image["artefact"]["text"] == image["text_advised"]
    assert b"bb_addr_map" not in data
    marked = (await advise(SCALED, goal="speed", artefact="annotated-ir")).json()
    assert marked["artefact"]["options"][0] == "-O3"


async def test_what_was_compiled_for_size_has_no_speed(advise):
    answer = await advise(base64.b64encode(to_bitcode(QUEUE)).decode(), "bitcode", goal="speed")
    assert answer.status_code == 400
    assert "minsize" in answer.json()["detail"]


async def test_a_module_without_calls_is_stock(advise):
    found = (await advise("int one(void) { return 1; }")).json()
    assert found["winner"] == "stock"
    assert found["sites"] == []
    assert found["artefact"]["content"] == ""
