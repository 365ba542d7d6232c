"""The kit around a bare graph: what serving costs without any domain."""

from __future__ import annotations

from fastapi import FastAPI

from shared.service import create_service
from shared.testing import toy_domain


def create_app() -> FastAPI:
    """The application, for `uvicorn --factory`; its model is in FOURFOLD_HOME already."""
    return create_service(toy_domain(None))
