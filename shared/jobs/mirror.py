"""Mirrors trainings to an MLflow tracking server that a team already has. A mirror that fails fails no job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.jobs.model import Job

log = logging.getLogger(__name__)


class Mirror:
    """One job's run; without a URL, or without the extra `mlflow`, it does nothing."""

    def __init__(self, url: str | None, job: Job) -> None:
        self._client: Any = None
        self._run = ""
        self._job = job
        if url is not None:
            _attempt(lambda: self._open(url))

    def _open(self, url: str) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=url)
        found = client.get_experiment_by_name(f"fourfold/{self._job.domain}")
        experiment = found.experiment_id if found else client.create_experiment(f"fourfold/{self._job.domain}")
        tags = {"fourfold.job": self._job.id, "fourfold.dataset": self._job.dataset or ""}
        earlier = client.search_runs([experiment], f"tags.`fourfold.job` = '{self._job.id}'", max_results=1)
        run = earlier[0] if earlier else client.create_run(experiment, tags=tags, run_name=self._job.id)
        self._client, self._run = client, run.info.run_id
        for name, value in self._job.config.items():
            client.log_param(self._run, name, value)

    def point(self, step: int, metrics: Mapping[str, float]) -> None:
        """Mirror the metrics of one step."""
        for name, value in metrics.items():
            self._mirror(lambda name=name, value=value: self._client.log_metric(self._run, name, value, step=step))

    def bundle(self, folder: Path) -> None:
        """Mirror the bundle's files."""
        self._mirror(lambda: self._client.log_artifacts(self._run, str(folder), "bundle"))

    def end(self, succeeded: bool) -> None:
        self._mirror(lambda: self._client.set_terminated(self._run, "FINISHED" if succeeded else "FAILED"))

    def _mirror(self, call: Callable[[], Any]) -> None:
        if self._client is not None:
            _attempt(call)


def _attempt(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:
        log.warning("the MLflow mirror failed: %s: %s", type(error).__name__, str(error)[:200])
