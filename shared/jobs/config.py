"""What every recipe's configuration has, and its reading with an answer that helps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.problems import Unprocessable


class RecipeConfig(BaseModel):
    """The base of a domain's TrainConfig. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bad_files: Literal["refuse", "exclude"] = Field(
        default="refuse", description="What to do about files of the data set that cannot be read."
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, le=256)


class DistributedConfig(RecipeConfig):
    """The base of a TrainConfig whose recipe can be shared by several processes."""

    processes: int = Field(
        default=1, ge=1, le=16, description="Processes that share the training; no more than GPUs where there are any."
    )


class ConfigInvalid(Unprocessable):
    """A configuration with a wrong value or an unknown key; `errors` has one entry for each."""

    code = "config-invalid"
    title = "The training configuration is not valid"
    advice = "Change the settings in `errors`; a misspelt one is told the name meant."


C = TypeVar("C", bound=RecipeConfig)


def read_config(kind: type[C], values: Mapping[str, Any]) -> C:
    """`values` as a `kind`; raises ConfigInvalid, which names the setting probably meant by a misspelt one."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        errors = [_explained(kind, item["type"], item["loc"], item["msg"]) for item in error.errors()[:20]]
        detail = "; ".join(f"{item['field']}: {item['problem']}" for item in errors)
        raise ConfigInvalid(detail, errors=errors) from None


def _explained(kind: type[RecipeConfig], problem: str, place: tuple[int | str, ...], text: str) -> dict[str, str]:
    name = ".".join(str(part) for part in place) or "config"
    if problem == "extra_forbidden":
        near = difflib.get_close_matches(name, kind.model_fields, 1, 0.5)
        text = "there is no such setting" + (f"; did you mean {near[0]!r}?" if near else "")
    return {"field": name, "problem": text}
