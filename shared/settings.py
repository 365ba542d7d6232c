"""Typed settings from the environment, validated once; a bad value stops start-up with one clear line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What every process knows. Variables are `FOURFOLD_<NAME>`; owners of further settings subclass this."""

    model_config = SettingsConfigDict(env_prefix="FOURFOLD_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path.home() / ".fourfold", description="Where all state lives.")
    models_url: str | None = Field(
        default=None, description="fsspec URL of the model repository; a folder of `home` if unset."
    )
    datasets_url: str | None = Field(default=None, description="fsspec URL of the data sets; a folder if unset.")
    jobs_url: str | None = Field(
        default=None, description="fsspec URL of the jobs' checkpoints, logs and files; a folder of `home` if unset."
    )
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; SQLite in `home` if unset.")
    redis_url: str | None = Field(default=None, description="Redis or Valkey; `fourfold up` starts one if unset.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    otlp_endpoint: str | None = Field(
        default=None, description="Collector for OpenTelemetry spans, such as http://localhost:4318; off if unset."
    )
    trace_share: float = Field(default=0.01, ge=0, le=1, description="Part of the requests that is traced.")
    mlflow_url: str | None = Field(
        default=None, description="Tracking server that trainings are mirrored to (extra `mlflow`); off if unset."
    )
    lease_seconds: float = Field(
        default=20.0, ge=0.5, le=3600, description="How long a job stays with a worker that is not heard of."
    )
    job_time_limit_seconds: float = Field(default=86_400.0, gt=0, le=30 * 86_400, description="Of one job.")
    job_files_days: float = Field(
        default=90.0, gt=0, description="How long logs, checkpoints and files of an ended job are kept."
    )
    default_train_queue: Literal["train.cpu", "train.gpu"] = Field(
        default="train.cpu", description="Where trainings go that do not ask for a device."
    )
    max_dataset_bytes: int = Field(default=20 << 30, ge=1024, description="Largest data set, unpacked.")
    max_dataset_files: int = Field(default=200_000, ge=1, description="Most files in a data set.")
    access_log: Literal["all", "problems", "off"] = Field(default="problems", description="Which requests are logged.")

    @property
    def models_location(self) -> str:
        return self.models_url or str(self.home / "models")

    @property
    def datasets_location(self) -> str:
        return self.datasets_url or str(self.home / "datasets")

    @property
    def jobs_location(self) -> str:
        return self.jobs_url or str(self.home / "jobs")

    @property
    def database_location(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'fourfold.db'}"


class ServiceSettings(Settings):
    """What a domain's serving process can be told."""

    max_batch_size: int = Field(default=8, ge=1, le=1024, description="Most requests in one batch.")
    max_batch_delay_ms: float = Field(
        default=0.0, ge=0, le=1000, description="How long a busy server waits to fill a batch."
    )
    queue_capacity: int = Field(
        default=256, ge=1, le=100_000, description="Most waiting requests; one more is answered 503."
    )
    max_body_bytes: int = Field(default=64 << 20, ge=1024, description="Largest request body.")
    device: Literal["cpu", "cuda"] = "cpu"
    processes: int = Field(default=1, ge=1, le=256, description="How many of this service share its address.")
    precision: Literal["int8", "fp32"] = Field(default="int8", description="Which of a bundle's graphs to serve.")
    alias_poll_seconds: float = Field(default=0.5, gt=0, le=60, description="How often promotion is looked for.")


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S]) -> S:
    """Read `kind` from the environment, or end the process with a line for each bad variable."""
    try:
        return kind()
    except ValidationError as error:
        for item in error.errors():
            name = "FOURFOLD_" + "_".join(str(part) for part in item["loc"]).upper()
            print(f"fourfold: {name}: {item['msg']} (got {item.get('input')!r})", file=sys.stderr)
        raise SystemExit(2) from None
