"""The console's files: what a browser is told about them."""

import gzip
import os
import re

import pytest

from gateway.app import create_app
from gateway.assets import FOLDER, MEDIA_TYPES, POLICY, Console
from gateway.settings import GatewaySettings
from shared.testing import running


@pytest.fixture
async def client(tmp_path):
    async with running(create_app(GatewaySettings(home=tmp_path / "home"))) as client:
        yield client


async def test_the_page_and_its_files_need_no_key_and_are_guarded(client):
    home = await client.get("/")
    assert home.status_code == 200
    assert home.headers["Cache-Control"] == "no-cache"
    paths = re.findall(r'(?:href|src)="(/console/[^"]+)"', home.text)
    assert any(path.endswith("/app.js") for path in paths)
    for path in paths:
        found = await client.get(path)
        assert found.status_code == 200, path
        assert found.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert found.headers["Content-Security-Policy"] == POLICY
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        again = await client.get(path, headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_head_answers_as_get_does_without_the_page(client):
    page, head = await client.get("/"), await client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert [head.headers[name] for name in ("ETag", "Content-Length")] == [
        page.headers[name] for name in ("ETag", "Content-Length")
    ]


def test_the_policy_lets_nothing_inline_and_nothing_foreign_in():
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert "frame-ancestors 'none'" in POLICY


def test_no_page_has_inline_scripts_styles_or_foreign_addresses():
    for path in FOLDER.rglob("*"):
        if path.suffix in (".html", ".js", ".css"):
            text = path.read_text()
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), path
            assert not re.search(r"[\"'(]https?://(?!127\.0\.0\.1)", text), path
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style| style=| on\w+=|<script(?![^>]* src=)", page)


async def test_compressed_where_it_is_asked_for(client):
    path = re.findall(r'src="(/console/[^"]+/app.js)"', (await client.get("/")).text)[0]
    plain = await client.get(path, headers={"Accept-Encoding": "identity"})
    packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.content == plain.content
    assert int(packed.headers["Content-Length"]) < len(plain.content)


async def test_a_page_of_another_version_gets_what_there_is_and_keeps_nothing(client):
    found = await client.get("/console/0123456789abcdef/app.js")
    assert found.status_code == 200
    assert found.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "%2e%2e/app.py", "pages"])
async def test_other_files_are_not_there(client, name):
    assert (await client.get(f"/console/0/{name}")).status_code == 404


async def test_plotly_comes_from_its_package(client):
    found = await client.get("/console/0/plotly.min.js")
    assert found.status_code == 200
    assert "plotly.js v" in found.text[:200]


def test_the_digest_follows_the_files(tmp_path):
    (tmp_path / "index.html").write_text('<link href="/console/{digest}/a.css">')
    (tmp_path / "a.css").write_text("a{}")
    console = Console(tmp_path)
    console.refresh()
    first = console.digest
    assert console.asset("index.html").body == f'<link href="/console/{first}/a.css">'.encode()
    assert gzip.decompress(console.asset("a.css").packed or b"") == b"a{}"
    (tmp_path / "a.css").write_text("b{}")
    os.utime(tmp_path / "a.css", (1, 1))
    console.refresh()
    assert console.digest != first
    assert console.asset("a.css").body == b"b{}"


def test_every_file_has_a_media_type():
    odd = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc", *MEDIA_TYPES}]
    assert odd == []


def test_every_module_says_its_one_job_and_is_short():
    for path in FOLDER.rglob("*.js"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("// "), path
        assert len(lines) < 250, path
