"""Account objects of X (API v1.1 and v2), Mastodon, Bluesky and MGTAB → the twenty properties that models take.

Shapes: P = 20 properties, in the order of MGTAB's columns; NaN where an account does not say. Counts are log2(1 + n),
the age is the year of creation, lengths are in characters; each is scaled to 0–1 by the ranges of MGTAB's card and
clipped. That counts are logarithms and the ratio is log2(1 + followers / friends) is inferred from those ranges.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.problems import Unprocessable

# Name → the range of MGTAB's card; None for a flag.
RANGES: dict[str, tuple[float, float] | None] = {
    "profile_use_background_image": None,
    "default_profile": None,
    "verified": None,
    "followers_count": (0.0, 25.572674),
    "default_profile_image": None,
    "listed_count": (0.0, 17.675406),
    "statuses_count": (0.0, 20.386231),
    "friends_count": (0.0, 21.029877),
    "geo_enabled": None,
    "favourites_count": (0.0, 19.711042),
    "created_at": (36.553529, 51.711108),
    "screen_name_length": (3.0, 15.0),
    "name_length": (1.0, 50.0),
    "description_length": (0.0, 204.0),
    "followers_friends_ratios": (0.0, 11.169299),
    "default_profile_background_color": None,
    "default_profile_sidebar_fill_color": None,
    "default_profile_sidebar_border_color": None,
    "has_URL": None,
    "profile_background_image_URL": None,
}
PROPERTIES = tuple(RANGES)
COUNTS = ("followers_count", "listed_count", "statuses_count", "friends_count", "favourites_count")
MGTAB_WIDTH = len(PROPERTIES) + 768  # the properties and LaBSE's mean over the tweets
# What every platform tells of an account.
PROFILE = (
    "followers_count",
    "friends_count",
    "statuses_count",
    "created_at",
    "screen_name_length",
    "name_length",
    "description_length",
    "followers_friends_ratios",
    "default_profile_image",
)
X_V2 = (*PROFILE, "verified", "listed_count", "has_URL")
_DEFAULT_COLOURS = {
    "profile_background_color": "C0DEED",
    "profile_sidebar_fill_color": "DDEEF6",
    "profile_sidebar_border_color": "C0DEED",
}
_SECONDS_OF_A_YEAR = 365.25 * 86_400
_FIRST = datetime(2006, 1, 1, tzinfo=UTC)  # no account of these platforms is older
_EMPTY = ("", "none", "null", "nan")
LONGEST_TEXT = 10_000  # characters


class BadAccount(Unprocessable):
    """An account that cannot be read; `row` and `field` say where."""

    code = "bots-bad-account"
    title = "An account cannot be read"
    advice = "Mend the `field` of the account in `row`; the others are answered."


@dataclass(frozen=True)
class Account:
    """One account as models see it. `texts`: its description and tweets."""

    id: str
    values_P: NDArray[np.float32]
    form: str
    texts: list[str] = field(default_factory=list[str])
    declared_automated: bool = False  # the platform itself says so
    embedding_D: NDArray[np.float32] | None = None  # of the texts, where it was given

    @property
    def present(self) -> frozenset[str]:
        """The names of the properties that the account tells."""
        return frozenset(name for name, known in zip(PROPERTIES, ~np.isnan(self.values_P), strict=True) if known)


def read_account(given: Mapping[str, Any], form: str = "auto", row: int = 0) -> Account:
    """The account of a decoded JSON object; raises BadAccount with the row and the field."""
    if form == "auto":
        form = form_of(given)
    reader = READERS.get(form)
    if reader is None:
        raise BadAccount(f"Account {row}: its form is not known; name one of {', '.join(READERS)}.", row=row)
    try:
        return reader(given)
    except _Bad as bad:
        raise BadAccount(f"Account {row}, {bad.name}: {bad.why}.", row=row, field=bad.name) from None


def form_of(given: Mapping[str, Any]) -> str:
    """Which platform's object this is, by the members that only it has; empty if none."""
    if "features" in given:
        return "mgtab"
    if "public_metrics" in given:
        return "x-v2"
    if "did" in given or "handle" in given or "followersCount" in given:
        return "bluesky"
    if "acct" in given or "display_name" in given:
        return "mastodon"
    return "x-v1.1" if "screen_name" in given or "followers_count" in given else ""


# -- one reader a form


class _Bad(Exception):
    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why


def _x_v1(given: Mapping[str, Any]) -> Account:
    at = _Fields(given)
    values: dict[str, float | None] = {name: at.count(name) for name in COUNTS}
    values["listed_count"] = at.count("listed_count") if "listed_count" in given else at.count("listedcount")
    flags = ("profile_use_background_image", "default_profile", "verified", "default_profile_image", "geo_enabled")
    values |= {name: at.flag(name) for name in flags}
    for name, usual in _DEFAULT_COLOURS.items():
        colour = at.text(name)
        values[f"default_{name}"] = None if colour is None else float(colour.lstrip("#").upper() == usual)
    values["created_at"] = at.when("created_at")
    values |= _lengths(at.text("screen_name"), at.text("name"), at.text("description", empty=True))
    values["has_URL"] = at.has("url")
    values["profile_background_image_URL"] = at.has("profile_background_image_url")
    return _account(at.identity("id_str", "id"), "x-v1.1", values, _texts(at.text("description")))


def _x_v2(given: Mapping[str, Any]) -> Account:
    at = _Fields(given)
    metrics = at.within("public_metrics")
    values: dict[str, float | None] = {
        "followers_count": metrics.count("followers_count"),
        "friends_count": metrics.count("following_count"),
        "statuses_count": metrics.count("tweet_count"),
        "listed_count": metrics.count("listed_count"),
        "favourites_count": metrics.count("like_count"),
        "verified": at.flag("verified"),
        "created_at": at.when("created_at"),
        "has_URL": at.has("url"),
    }
    if (image := at.text("profile_image_url")) is not None:
        values["default_profile_image"] = float("default_profile" in image)
    values |= _lengths(at.text("username"), at.text("name"), at.text("description", empty=True))
    return _account(at.identity("id"), "x-v2", values, _texts(at.text("description")))


def _mastodon(given: Mapping[str, Any]) -> Account:
    at = _Fields(given)
    note = at.text("note", empty=True)
    description = None if note is None else re.sub(r"<[^>]*>", "", note)
    values: dict[str, float | None] = {
        "followers_count": at.count("followers_count"),
        "friends_count": at.count("following_count"),
        "statuses_count": at.count("statuses_count"),
        "created_at": at.when("created_at"),
    }
    if (image := at.text("avatar")) is not None:
        values["default_profile_image"] = float(image.endswith("missing.png"))
    if isinstance(given.get("fields"), list):
        values["has_URL"] = float("http" in str(given["fields"]))
    values |= _lengths(at.text("username"), at.text("display_name", empty=True), description)
    account = _account(at.identity("id", "acct"), "mastodon", values, _texts(description), at.flag("bot") == 1)
    return account


def _bluesky(given: Mapping[str, Any]) -> Account:
    at = _Fields(given)
    values: dict[str, float | None] = {
        "followers_count": at.count("followersCount"),
        "friends_count": at.count("followsCount"),
        "statuses_count": at.count("postsCount"),
        "created_at": at.when("createdAt"),
        "default_profile_image": 1.0 - (at.has("avatar") or 0.0),
    }
    handle = at.text("handle")
    name = (handle or "").partition(".")[0] or None
    description = at.text("description", empty=True)
    values |= _lengths(name, at.text("displayName", empty=True), description or "")
    labels = str(given.get("labels", ""))[:LONGEST_TEXT]
    return _account(at.identity("did", "handle"), "bluesky", values, _texts(description), "'bot'" in labels)


def _mgtab(given: Mapping[str, Any]) -> Account:
    at = _Fields(given)
    try:
        row = np.asarray(given.get("features"), np.float32)
    except (ValueError, TypeError, OverflowError):
        raise _Bad("features", "it is not a list of numbers") from None
    if row.shape not in ((len(PROPERTIES),), (MGTAB_WIDTH,)):
        raise _Bad("features", f"it has the shape {list(row.shape)}, not [{len(PROPERTIES)}] or [{MGTAB_WIDTH}]")
    if not np.isfinite(row).all():
        raise _Bad("features", "a value is not finite")
    if (row[: len(PROPERTIES)] < 0).any() or (row[: len(PROPERTIES)] > 1).any():
        raise _Bad("features", "a property lies outside 0–1; MGTAB's properties are scaled")
    embedding = row[len(PROPERTIES) :] if len(row) > len(PROPERTIES) else None
    return Account(at.identity("id"), row[: len(PROPERTIES)].copy(), "mgtab", embedding_D=embedding)


READERS: dict[str, Callable[[Mapping[str, Any]], Account]] = {
    "x-v1.1": _x_v1,
    "x-v2": _x_v2,
    "mastodon": _mastodon,
    "bluesky": _bluesky,
    "mgtab": _mgtab,
}


# -- from what they say to numbers


def _account(
    identity: str, form: str, values: Mapping[str, float | None], texts: list[str], automated: bool = False
) -> Account:
    known = dict(values)
    followers, friends = known.get("followers_count"), known.get("friends_count")
    if followers is not None and friends is not None:
        known["followers_friends_ratios"] = math.log2(1 + followers / max(friends, 1.0))
    for name in COUNTS:
        if (number := known.get(name)) is not None:
            known[name] = math.log2(1 + number)
    return Account(identity, scaled(known), form, texts, automated)


def scaled(values: Mapping[str, float | None]) -> NDArray[np.float32]:
    """(P,) values in 0–1, NaN where there is none; counts and the ratio are logarithms already."""
    row = np.full(len(PROPERTIES), np.nan, np.float32)
    for index, (name, limits) in enumerate(RANGES.items()):
        if (value := values.get(name)) is not None:
            low, high = limits or (0.0, 1.0)
            row[index] = min(1.0, max(0.0, (value - low) / (high - low)))
    return row


def _lengths(screen_name: str | None, name: str | None, description: str | None) -> dict[str, float | None]:
    texts = {"screen_name_length": screen_name, "name_length": name, "description_length": description}
    return {key: None if text is None else float(len(text)) for key, text in texts.items()}


def _texts(*texts: str | None) -> list[str]:
    return [text for text in texts if text]


class _Fields:
    """Reads members of one object, each strictly; None where a member is absent or empty."""

    def __init__(self, given: Mapping[str, Any], prefix: str = "") -> None:
        self._given = given
        self._prefix = prefix

    def _bad(self, name: str, why: str) -> _Bad:
        return _Bad(self._prefix + name, why)

    def _value(self, name: str) -> Any:
        value = self._given.get(name)
        return None if isinstance(value, str) and value.strip().lower() in _EMPTY else value

    def within(self, name: str) -> _Fields:
        value = self._value(name)
        if value is None:
            return _Fields({}, f"{name}.")
        if not isinstance(value, dict):
            raise self._bad(name, "it is not an object")
        return _Fields(value, f"{name}.")

    def identity(self, *names: str) -> str:
        for name in names:
            value = self._value(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value)[:200]
            if value is not None:
                raise self._bad(name, "an id is a string or an integer; a float has lost digits")
        return ""

    def count(self, name: str) -> float | None:
        value = self._value(name)
        if value is None:
            return None
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._bad(name, f"{str(value)[:40]!r} is not a count")
        if number < 0:
            raise self._bad(name, f"a count cannot be negative ({number:g})")
        return number

    def flag(self, name: str) -> float | None:
        value = self._value(name)
        if value is None:
            return None
        known = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
        number = known.get(str(value).strip().lower())
        if number is None:
            raise self._bad(name, f"{str(value)[:40]!r} is neither true nor false")
        return number

    def text(self, name: str, *, empty: bool = False) -> str | None:
        """A string; `empty`: an empty one is known to be empty, not absent."""
        value = self._given.get(name)
        if value is None or (not empty and isinstance(value, str) and not value.strip()):
            return None
        if not isinstance(value, str):
            raise self._bad(name, "it is not a text")
        if len(value) > LONGEST_TEXT:
            raise self._bad(name, f"it has {len(value)} characters; at most {LONGEST_TEXT} are taken")
        return value

    def has(self, name: str) -> float | None:
        """1 or 0: whether a member that may be empty says something; None if the object lacks it."""
        if name not in self._given:
            return None
        return float(self._value(name) is not None)

    def when(self, name: str) -> float | None:
        """Years since 1970."""
        value = self._value(name)
        if value is None:
            return None
        moment = parse_date(value)
        if moment is None:
            raise self._bad(name, f"{str(value)[:40]!r} is not a date")
        if not _FIRST.timestamp() <= moment.timestamp() <= time.time() + 86_400:
            raise self._bad(name, f"no account was made on {moment:%Y-%m-%d}")
        return moment.timestamp() / _SECONDS_OF_A_YEAR


def parse_date(value: Any) -> datetime | None:
    """A moment from ISO 8601, X's form, day/month/year or month/day/year with a time, or seconds since 1970.

    Where both orders are possible (3/4/2015), the month comes first. None if it is none of these.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC) if 0 <= value < 1e11 else None
    if not isinstance(value, str):
        return None
    text = value.strip().strip('"')
    try:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        pass
    for pattern in ("%a %b %d %H:%M:%S %z %Y", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y"):
        try:
            moment = datetime.strptime(text, pattern)
        except ValueError:
            continue
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
