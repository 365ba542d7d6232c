"""Headers → principal, with keys and with tokens of an issuer."""

import asyncio
import functools
import http.server
import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from gateway.auth import Authenticator
from gateway.keys import MemoryKeyStore, new_key
from gateway.routes import match
from gateway.settings import GatewaySettings
from shared.problems import Forbidden, Unauthenticated


def bearer(secret):
    return [(b"authorization", f"Bearer {secret}".encode())]


@pytest.fixture
def store():
    return MemoryKeyStore()


async def test_both_headers_work_and_use_is_noted(store):
    key, secret = new_key("mine", ["predict"])
    store.add(key)
    auth = Authenticator(store, GatewaySettings())
    assert (await auth.authenticate(bearer(secret))).id == key.id
    assert (await auth.authenticate([(b"x-api-key", secret.encode())])).scopes == {"predict"}
    await auth.write_back()
    assert store.find(key.digest).last_used_at == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Basic abc")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer " + b"x" * 10_000)],
        bearer("ff_wrong"),
        bearer("nothing.like.it"),
        [(b"x-api-key", "ff_ü".encode("latin-1"))],
    ],
)
async def test_everything_else_is_refused(store, headers):
    with pytest.raises(Unauthenticated):
        await Authenticator(store, GatewaySettings()).authenticate(headers)


async def test_revocation_takes_effect_within_the_cache_time(store):
    key, secret = new_key("mine", ["predict"])
    store.add(key)
    auth = Authenticator(store, GatewaySettings(key_cache_seconds=0.05))
    await auth.authenticate(bearer(secret))
    store.revoke(key.id, time.time())
    await asyncio.sleep(0.06)
    with pytest.raises(Unauthenticated):
        await auth.authenticate(bearer(secret))


async def test_expiry_is_not_outlived_by_the_cache(store):
    key, secret = new_key("mine", ["predict"], expires_at=time.time() + 0.1)
    store.add(key)
    auth = Authenticator(store, GatewaySettings(key_cache_seconds=60))
    await auth.authenticate(bearer(secret))
    await asyncio.sleep(0.12)
    with pytest.raises(Unauthenticated):
        await auth.authenticate(bearer(secret))


async def test_a_scope_is_required_and_admin_has_all(store):
    for scopes, allowed in ((["predict"], {"predict"}), (["admin"], {"predict", "train", "admin"})):
        key, secret = new_key("mine", scopes)
        store.add(key)
        principal = await Authenticator(store, GatewaySettings()).authenticate(bearer(secret))
        for scope in ("predict", "train", "admin"):
            if scope in allowed:
                principal.require(scope)
            else:
                with pytest.raises(Forbidden):
                    principal.require(scope)


@pytest.fixture(scope="module")
def issuer_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def files(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_tokens_of_the_issuer(store, issuer_key, tmp_path, files):
    public = json.loads(RSAAlgorithm.to_jwk(issuer_key.public_key()))
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps({"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]}))
    settings = GatewaySettings(oidc_issuer="https://id", oidc_audience="fourfold", oidc_jwks_url=f"{files}/jwks.json")
    auth = Authenticator(store, settings)

    def token(key=issuer_key, algorithm="RS256", **changes):
        claims = {"iss": "https://id", "aud": "fourfold", "sub": "me", "exp": time.time() + 60, "scope": "predict x"}
        return jwt.encode({**claims, **changes}, key, algorithm=algorithm, headers={"kid": "one"})

    principal = await auth.authenticate(bearer(token()))
    assert (principal.id, principal.scopes) == ("oidc:me", {"predict"})
    forged = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for bad in (
        token(exp=time.time() - 5),
        token(aud="other"),
        token(iss="https://evil"),
        token(key=forged),
        token(key="s" * 32, algorithm="HS256"),
        token(key=None, algorithm="none"),
    ):
        with pytest.raises(Unauthenticated):
            await auth.authenticate(bearer(bad))


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/iqa/score", "predict"),
        ("POST", "/v1/iqa/training-jobs", "train"),
        ("POST", "/v2/models/iqa/infer", "predict"),
        ("POST", "/v2/repository/models/iqa/unload", "admin"),
        ("GET", "/v1/keys", None),
        ("GET", "/v1/iqaa/score", None),
        ("GET", "/v2/models/other", None),
        ("GET", "/", None),
    ],
)
def test_the_route_table(method, path, scope):
    target = match(method, path)
    assert (target.scope if target else None) == scope
