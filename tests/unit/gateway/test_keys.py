"""API keys: one suite for the store in memory and the store in the database."""

import stat
import time

import pytest
from pydantic import SecretStr, ValidationError

from gateway.app import ensure_first_key
from gateway.keys import MemoryKeyStore, SqlKeyStore, digest_of, new_key
from gateway.settings import GatewaySettings
from shared.problems import InputError, NotFound


@pytest.fixture(params=["memory", "sqlite"])
def store(request):
    return MemoryKeyStore() if request.param == "memory" else SqlKeyStore(request.getfixturevalue("engine"))


def test_a_key_is_found_by_the_digest_of_its_secret(store):
    key, secret = new_key("mine", ["predict"], expires_at=time.time() + 60)
    store.add(key)
    assert store.find(digest_of(secret)) == key
    assert store.find(digest_of("ff_other")) is None
    assert secret not in repr(key)


def test_revoking_is_final_and_keeps_its_time(store):
    key, _ = new_key("mine", ["admin"])
    store.add(key)
    assert store.revoke(key.id, 5.0).revoked_at == 5.0
    assert store.revoke(key.id, 9.0).revoked_at == 5.0
    assert not store.find(key.digest).valid_at(time.time())
    with pytest.raises(NotFound):
        store.revoke("nobody", 1.0)


def test_pages_follow_one_another(store):
    keys = [new_key(f"{number}", ["predict"])[0] for number in range(5)]
    for key in keys:
        store.add(key)
    first = store.page("", 3)
    second = store.page(first[-1].id, 3)
    assert [key.id for key in [*first, *second]] == sorted(key.id for key in keys)


def test_last_use_is_recorded(store):
    key, _ = new_key("mine", ["predict"])
    store.add(key)
    store.used({key.id: 12.0, "gone": 3.0})
    assert store.find(key.digest).last_used_at == 12.0


@pytest.mark.parametrize("scopes", [[], ["root"], ["predict", "x"]])
def test_unknown_scopes_are_refused(scopes):
    with pytest.raises(InputError):
        new_key("mine", scopes)


def test_an_expired_key_is_not_valid():
    key, _ = new_key("mine", ["predict"], expires_at=100.0)
    assert key.valid_at(99.0)
    assert not key.valid_at(100.0)


def test_the_first_key_is_private_and_made_once(store, tmp_path):
    settings = GatewaySettings(home=tmp_path)
    ensure_first_key(store, settings)
    secret = (tmp_path / "key").read_text().strip()
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert store.find(digest_of(secret)).scopes == {"predict", "train", "admin"}
    ensure_first_key(store, settings)
    assert (tmp_path / "key").read_text().strip() == secret


def test_a_given_first_key_exists_once_whoever_adds_it_and_leaves_no_file(store, tmp_path):
    settings = GatewaySettings(home=tmp_path, first_key=SecretStr("ff_" + "a" * 43))
    for _ in range(2):
        ensure_first_key(store, settings)
    assert [key.scopes for key in store.page("", 10)] == [{"predict", "train", "admin"}]
    assert not (tmp_path / "key").exists()
    store.revoke(store.page("", 1)[0].id, 1.0)
    ensure_first_key(store, settings)
    assert store.page("", 10)[0].revoked_at == 1.0


def test_two_gateways_may_add_the_given_first_key_at_once(engine, tmp_path):
    class Blind(SqlKeyStore):
        def find(self, digest):
            return None

    settings = GatewaySettings(home=tmp_path, first_key=SecretStr("ff_" + "a" * 43))
    for _ in range(2):
        ensure_first_key(Blind(engine), settings)
    assert len(Blind(engine).page("", 10)) == 1


def test_a_short_first_key_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="first_key"):
        GatewaySettings(home=tmp_path, first_key=SecretStr("short"))
