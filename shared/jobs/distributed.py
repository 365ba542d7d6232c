"""A training that several processes of one machine share, started by torch's own launcher.

    python -m shared.jobs.distributed --folder FOLDER …      (started by `launch`, not by hand)

The job's own process stays the only one that talks to the stores. It writes what the ranks need into a folder, passes
on what rank 0 reports there (`events.jsonl`), and writes `stop` when the job is to end. A rank that stops or fails ends
with an error, upon which the launcher ends the others, so that none waits for one that is gone. torch is imported in
the processes that are started, never in one that imports this module.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from shared.jobs.config import DistributedConfig, RecipeConfig
from shared.jobs.context import JobStopped, LocalContext, StopReason, TrainingContext, check_stop
from shared.jobs.failures import failure_document
from shared.jobs.lifeline import end_with_parent
from shared.problems import FourfoldError

LOOK_SECONDS = 0.2
_CHECKPOINT = "checkpoint.safetensors"


class RankFailed(FourfoldError):
    """A process of a shared training failed; `document` says how, as `failure_document` does."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document["detail"])
        self.document = document


def run_recipe(module: str, config: RecipeConfig, data: Path, context: TrainingContext) -> Path:
    """`<module>.train(config, data, context)`, in as many processes as the configuration asks for.

    Raises what the recipe raises; from several processes RankFailed or JobStopped.
    """
    if isinstance(config, DistributedConfig) and config.processes > 1:
        return launch(module, config, data, context)
    return import_module(module).train(config, data, context)


def launch(module: str, config: DistributedConfig, data: Path, context: TrainingContext) -> Path:
    """`run_recipe` for several processes."""
    folder = context.artefact("ranks")
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run from a shell
    folder.mkdir()
    champion = context.champion()
    task = {"module": module, "config": config.model_dump(), "data": str(data), "champion": str(champion or "")}
    (folder / "task.json").write_text(json.dumps(task))
    if (state := context.restore()) is not None:
        save_file(state, folder / _CHECKPOINT)
    command = [sys.executable, "-m", "shared.jobs.distributed", "--folder", str(folder)]
    with (folder / "log.txt").open("wb") as log:
        launcher = subprocess.Popen([*command, "--processes", str(config.processes)], stdout=log, stderr=log)
        try:
            _follow(launcher, folder, context)
        finally:
            launcher.terminate()
            launcher.wait()
    result = folder / "result.json"
    if launcher.returncode or not result.exists():
        check_stop(context)
        problem = folder / "problem.json"
        lost = {"title": "A process was lost", "detail": "One of the training's processes ended; the log may say why."}
        raise RankFailed(json.loads(problem.read_text()) if problem.exists() else lost)
    return Path(json.loads(result.read_text()))


def _follow(launcher: subprocess.Popen[bytes], folder: Path, context: TrainingContext) -> None:
    events = folder / "events.jsonl"
    events.touch()
    with events.open() as stream, (folder / "log.txt").open(errors="replace") as log:
        while True:
            ended = launcher.poll() is not None
            while said := log.readline():
                context.logger.info("%s", said.rstrip("\n"))
            while line := stream.readline():
                event = json.loads(line)
                if event is None:
                    context.checkpoint(load_file(folder / _CHECKPOINT))
                else:
                    context.report(**event)
            if ended:
                return
            if (reason := context.should_stop()) is not None:
                (folder / "stop").write_text(reason)
            time.sleep(LOOK_SECONDS)


class RankContext(LocalContext):
    """The TrainingContext of one rank: rank 0 speaks, all listen. The folder is shared by the ranks."""

    def __init__(self, folder: Path, rank: int, champion: Path | None) -> None:
        super().__init__(folder)
        self._speaks = rank == 0
        self._champion = champion

    def report(self, *, step: int, total: int, **metrics: float) -> None:
        self._tell({"step": step, "total": total, **metrics})

    def checkpoint(self, state: Mapping[str, NDArray[Any]]) -> None:
        if self._speaks:
            super().checkpoint(state)
            self._tell(None)

    def _tell(self, event: dict[str, Any] | None) -> None:
        if self._speaks:
            with (self.folder / "events.jsonl").open("a") as stream:
                stream.write(json.dumps(event) + "\n")

    def should_stop(self) -> StopReason | None:
        with suppress(FileNotFoundError, ValueError):  # it is not there, or not yet written
            return StopReason((self.folder / "stop").read_text())
        return None

    def champion(self) -> Path | None:
        return self._champion


def _run_rank(folder: Path) -> None:
    import logging

    import torch
    from torch import distributed

    task = json.loads((folder / "task.json").read_text())
    rank = int(os.environ["RANK"])
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s")
    try:
        module = import_module(task["module"])
        on_gpu = torch.cuda.is_available() and task["config"]["device"] != "cpu"
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if on_gpu else "gloo")
        context = RankContext(folder, rank, Path(task["champion"]) if task["champion"] else None)
        made = module.train(module.TrainConfig.model_validate(task["config"]), Path(task["data"]), context)
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(str(made)))
    except JobStopped:
        sys.exit(1)
    except Exception as error:
        logging.exception("rank %d", rank)
        draft = folder / f"problem.{rank}.json"
        draft.write_text(json.dumps(failure_document(error)))
        with suppress(FileExistsError):  # the first failure is the cause of the others
            os.link(draft, folder / "problem.json")
        sys.exit(1)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def main() -> None:
    end_with_parent()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="start so many; unset in the processes themselves")
    given = parser.parse_args()
    if given.processes is None:
        _run_rank(given.folder)
        return
    import torch
    from torch.distributed.run import main as torchrun

    device = json.loads((given.folder / "task.json").read_text())["config"]["device"]
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    processes = min(given.processes, gpus) if gpus else given.processes
    options = ["--standalone", "--nproc-per-node", str(processes)]
    torchrun([*options, "-m", "shared.jobs.distributed", "--folder", str(given.folder)])


if __name__ == "__main__":
    main()
