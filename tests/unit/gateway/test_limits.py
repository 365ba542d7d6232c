"""Admission: so many requests over time, so many at once, each key for itself."""

import asyncio

import pytest

from gateway.limits import Limits
from gateway.settings import GatewaySettings
from shared.problems import RateLimited


async def test_one_more_than_the_rate_is_refused_and_other_keys_are_not_hit():
    limits = Limits(GatewaySettings(rate_limit="3/hour"))
    for _ in range(3):
        async with limits.admit("a"):
            pass
    with pytest.raises(RateLimited, match="3 per 1 hour") as refused:
        async with limits.admit("a"):
            pass
    assert refused.value.retry_after
    async with limits.admit("b"):
        pass


async def test_one_more_at_once_than_allowed_is_refused_until_another_ends():
    limits = Limits(GatewaySettings(max_concurrency=2))
    release = asyncio.Event()

    async def hold():
        async with limits.admit("a"):
            await release.wait()

    held = [asyncio.create_task(hold()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RateLimited, match="2 requests under way"):
        async with limits.admit("a"):
            pass
    async with limits.admit("b"):
        pass
    release.set()
    await asyncio.gather(*held)
    async with limits.admit("a"):
        pass


async def test_a_failed_or_cancelled_request_gives_its_place_back():
    limits = Limits(GatewaySettings(max_concurrency=1))
    with pytest.raises(ZeroDivisionError):
        async with limits.admit("a"):
            raise ZeroDivisionError
    async with limits.admit("a"):
        pass


def test_counting_in_redis_needs_one():
    with pytest.raises(ValueError, match="needs FOURFOLD_REDIS_URL"):
        Limits(GatewaySettings(rate_limit_storage="redis", redis_url=None))
