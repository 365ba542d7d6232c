"""Every service, and the kit's toy, passes the conformance suite."""

import pytest

from services.bots.api import DOMAIN as BOTS
from services.inlining.api import DOMAIN as INLINING
from services.iqa.api import DOMAIN as IQA
from services.pointcloud.api import DOMAIN as POINTCLOUD
from shared.service import create_service
from shared.settings import ServiceSettings
from shared.testing import ServiceConformance, running, toy_bundle, toy_domain


class TestToy(ServiceConformance):
    name = "toy"

    @pytest.fixture
    async def client(self, tmp_path):
        app = create_service(toy_domain(toy_bundle(tmp_path / "bundle")), ServiceSettings(home=tmp_path))
        async with running(app) as client:
            yield client


class TestIqa(ServiceConformance):
    name = "iqa"

    @pytest.fixture
    async def client(self, tmp_path):
        async with running(create_service(IQA, ServiceSettings(home=tmp_path))) as client:
            yield client


class TestBots(ServiceConformance):
    name = "bots"

    @pytest.fixture
    async def client(self, tmp_path):
        async with running(create_service(BOTS, ServiceSettings(home=tmp_path))) as client:
            yield client


class TestPointcloud(ServiceConformance):
    name = "pointcloud"

    @pytest.fixture
    async def client(self, tmp_path):
        async with running(create_service(POINTCLOUD, ServiceSettings(home=tmp_path))) as client:
            yield client


class TestInlining(ServiceConformance):
    name = "inlining"

    @pytest.fixture
    async def client(self, tmp_path):
        async with running(create_service(INLINING, ServiceSettings(home=tmp_path))) as client:
            yield client
