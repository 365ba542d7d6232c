"""`fourfold audit` as a process, against a small server that answers as the gateway does."""

import asyncio
import os
import sys
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from tests.unit.fourfold.test_client import serving

COMMAND = str(Path(sys.executable).with_name("fourfold"))
PAGE = b"<!doctype html>what was found"


def answers(verdict):
    """The gateway's answers for an audit that ends with the verdict."""
    job = {"id": "a1", "state": "succeeded", "finished_at": 1.0, "cancel_requested_at": None, "problem": None}
    job |= {"result": {"verdict": verdict}}
    check = {"name": "groups", "verdict": verdict, "summary": "what was found", "advice": "what to do"}
    report = {"model": "toy", "version": 2, "verdict": verdict, "notes": [], "checks": [check]}

    async def handler(request):
        if request.method == "POST":
            asked = await request.json()
            if asked["version"] == 2:
                return web.json_response({"id": "a1"}, status=202)
            told = {"type": "urn:fourfold:problem:not-found", "title": "Not found", "status": 404}
            return web.json_response(told | {"detail": "There is no version 9 of toy."}, status=404)
        bodies = {
            "/v1/jobs/a1/events": b"event: state\ndata: " + orjson.dumps(job) + b"\n\n",
            "/v1/jobs/a1": orjson.dumps(job),
            "/v1/audits/a1": orjson.dumps(report),
            "/v1/audits/a1/report.html": PAGE,
        }
        return web.Response(body=bodies[request.path], content_type="application/json")

    return handler


async def run(verdict, tmp_path, *words, browser=True):
    """(exit status, output, errors, what the browser showed) of the command."""
    shown = tmp_path / "shown"
    viewer = tmp_path / "viewer"
    viewer.write_text(f'#!/bin/sh\nPATH=/usr/bin:/bin\ncp "${{1#file://}}" {shown}\n')
    viewer.chmod(0o755)
    async with serving(answers(verdict)) as url:
        environment = {**os.environ, "FOURFOLD_URL": url, "FOURFOLD_KEY": "ff_key", "TMPDIR": str(tmp_path)}
        environment |= {"BROWSER": f"{viewer} %s" if browser else str(tmp_path / "none"), "PATH": ""}
        process = await asyncio.create_subprocess_exec(COMMAND, *words, env=environment, stdout=-1, stderr=-1)
        out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), errors.decode(), shown.read_bytes() if shown.exists() else None


@pytest.mark.parametrize(("verdict", "status"), [("passes", 0), ("look-at-this", 0), ("do-not-promote", 1)])
async def test_the_report_is_opened_and_the_verdict_is_the_exit_status(tmp_path, verdict, status):
    found, out, errors, shown = await run(verdict, tmp_path, "audit", "toy", "2", "--open")
    assert (found, errors, shown) == (status, "", PAGE)
    assert f"toy/2: {verdict}" in out
    assert ("what to do" in out) is (verdict != "passes")


async def test_without_a_browser_it_says_where_the_report_is(tmp_path):
    page = tmp_path / "page.html"
    words = ("audits", "report", "a1", "--open", "--out", str(page))
    found, out, errors, _ = await run("passes", tmp_path, *words, browser=False)
    assert (found, out.strip(), page.read_bytes()) == (0, str(page), PAGE)
    assert "There is no browser here" in errors


async def test_an_unknown_version_is_one_line(tmp_path):
    found, out, errors, _ = await run("passes", tmp_path, "audit", "toy", "9", "--open")
    assert (found, out) == (1, "")
    assert "There is no version 9 of toy." in errors
    assert errors.count("\n") == 1
