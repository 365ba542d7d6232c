"""Account objects → properties: every form, dates, and what is refused by row and field."""

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bots.features import PROPERTIES, READERS, BadAccount, form_of, parse_date, read_account, scaled

V1 = {
    "id_str": "12",
    "screen_name": "someone",
    "name": "Some One",
    "description": "words",
    "followers_count": 1023,
    "friends_count": "15",
    "statuses_count": 10.0,
    "listed_count": 0,
    "favourites_count": 3,
    "created_at": "Sat Oct 17 22:35:31 +0000 2015",
    "verified": "FALSE",
    "default_profile": True,
    "default_profile_image": False,
    "profile_background_color": "C0DEED",
    "url": None,
}
V2 = {
    "id": "22",
    "username": "someone",
    "name": "Some One",
    "description": "words",
    "created_at": "2015-10-17T22:35:31.000Z",
    "public_metrics": {"followers_count": 1023, "following_count": 15, "tweet_count": 10, "listed_count": 0},
    "verified": False,
    "profile_image_url": "https://example.org/default_profile_normal.png",
    "url": "",
}
MASTODON = {
    "id": "7",
    "username": "someone",
    "acct": "someone",
    "display_name": "Some One",
    "note": "<p>words</p>",
    "followers_count": 1023,
    "following_count": 15,
    "statuses_count": 10,
    "created_at": "2015-10-17T00:00:00.000Z",
    "avatar": "https://example.org/avatars/original/missing.png",
    "bot": True,
    "fields": [{"name": "site", "value": "<a href='https://example.org'>x</a>"}],
}
BLUESKY = {
    "did": "did:plc:abc",
    "handle": "someone.bsky.social",
    "displayName": "Some One",
    "description": "words",
    "followersCount": 1023,
    "followsCount": 15,
    "postsCount": 10,
    "createdAt": "2015-10-17T22:35:31Z",
}


def value(account, name):
    return account.values_P[PROPERTIES.index(name)]


@pytest.mark.parametrize(
    ("given", "form"), [(V1, "x-v1.1"), (V2, "x-v2"), (MASTODON, "mastodon"), (BLUESKY, "bluesky")]
)
def test_the_same_account_in_every_form(given, form):
    account = read_account(given)
    assert (form_of(given), account.form) == (form, form)
    assert value(account, "followers_count") == pytest.approx(10 / 25.572674)
    assert value(account, "friends_count") == pytest.approx(4 / 21.029877)
    assert value(account, "statuses_count") == pytest.approx(math.log2(11) / 20.386231)
    assert value(account, "followers_friends_ratios") == pytest.approx(math.log2(1 + 1023 / 15) / 11.169299)
    assert value(account, "created_at") == pytest.approx((45.795 - 36.553529) / (51.711108 - 36.553529), abs=1e-3)
    assert value(account, "screen_name_length") == pytest.approx(4 / 12)
    assert value(account, "name_length") == pytest.approx(7 / 49)
    assert value(account, "description_length") == pytest.approx(5 / 204)
    assert account.texts == ["words"]


def test_what_only_some_forms_tell():
    v1, v2, mastodon, bluesky = (read_account(given) for given in (V1, V2, MASTODON, BLUESKY))
    assert value(v1, "default_profile_background_color") == 1
    assert "geo_enabled" not in v1.present
    assert value(v1, "has_URL") == 0
    assert (value(v2, "default_profile_image"), value(v2, "verified"), value(v2, "has_URL")) == (1, 0, 0)
    assert "favourites_count" not in v2.present
    assert (value(mastodon, "default_profile_image"), value(mastodon, "has_URL")) == (1, 1)
    assert (mastodon.declared_automated, v1.declared_automated) == (True, False)
    assert (bluesky.id, value(bluesky, "default_profile_image")) == ("did:plc:abc", 1)


def test_mgtab_rows_are_taken_as_they_are():
    row = np.linspace(0, 1, 788).tolist()
    account = read_account({"id": 5, "features": row})
    assert account.id == "5"
    assert np.allclose(account.values_P, row[:20])
    assert account.embedding_D is not None
    assert account.embedding_D.shape == (768,)


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"followers_count": -1}, "followers_count", "negative"),
        ({"friends_count": "many"}, "friends_count", "not a count"),
        ({"statuses_count": float("nan")}, "statuses_count", "not a count"),
        ({"statuses_count": True}, "statuses_count", "not a count"),
        ({"statuses_count": 10**400}, "statuses_count", "not a count"),
        ({"created_at": "yesterday"}, "created_at", "not a date"),
        ({"created_at": "2099-01-01"}, "created_at", "no account was made"),
        ({"created_at": "1999-01-01"}, "created_at", "no account was made"),
        ({"verified": "perhaps"}, "verified", "neither true nor false"),
        ({"description": ["a"]}, "description", "not a text"),
        ({"description": "x" * 50_000_000}, "description", "50000000 characters"),
        ({"id_str": 8.41e17}, "id_str", "a float has lost digits"),
    ],
)
def test_a_bad_value_is_told_by_row_and_field(change, field, told):
    with pytest.raises(BadAccount, match=told) as bad:
        read_account({**V1, **change}, row=4)
    assert bad.value.extra == {"row": 4, "field": field}
    assert bad.value.detail.startswith(f"Account 4, {field}: ")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "form is not known"),
        ({"x": 1}, "form is not known"),
        ({**V2, "public_metrics": 3}, "not an object"),
        ({"features": [1, 2]}, "shape"),
        ({"features": ["a"] * 20}, "not a list of numbers"),
        ({"features": [2.0] * 20}, "outside 0–1"),
        ({"features": [float("inf")] * 20}, "not finite"),
    ],
)
def test_objects_that_are_no_account(given, told):
    # Also when the form is named.
    for form in READERS:
        with suppress(BadAccount):
            read_account(given, form)
    with pytest.raises(BadAccount, match=told):
        read_account(given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sat Oct 17 22:35:31 +0000 2015", "2015-10-17"),
        ("13/03/2017 22:21", "2017-03-13"),
        ("3/13/2017 23:48", "2017-03-13"),
        ("9/3/2015 22:27", "2015-09-03"),
        ("2015-10-17T22:35:31.000Z", "2015-10-17"),
        ('"2015-10-17"', "2015-10-17"),
        (1445121331, "2015-10-17"),
        ("99/99/2015 1:1", None),
        (True, None),
        (None, None),
    ],
)
def test_dates(text, expected):
    found = parse_date(text)
    assert (found and f"{found:%Y-%m-%d}") == expected


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_scaled_values_stay_within_bounds_and_keep_the_order(one, other):
    low, high = (scaled({"followers_count": math.log2(1 + count)})[3] for count in sorted((one, other)))
    assert 0 <= low <= high <= 1
