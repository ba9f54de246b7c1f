"""The jobs of one data folder in the words of BFL's API, whoever asks and however."""

import logging
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal
from urllib.parse import urlencode

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError

from bfl_mcp.contract import (
    DEFAULT_CAPTIONER,
    DEFAULT_LEARNING_RATE,
    DEFAULT_MODEL,
    FILE_PATH,
    FINETUNE_NOT_FOUND,
    MIN_IMAGES,
    NEED_FAULT,
    Engine,
    ResultResponse,
    TrainerNeed,
    TrainerNeedInputs,
    TrainingParameters,
    finite_number,
)
from bfl_mcp.trainer.bodies import invalid, read_inputs
from bfl_mcp.trainer.hardware import Hardware, choose_engine, probe
from bfl_mcp.trainer.jobs import UNFINISHED, Job, JobGoneError, Jobs, Progress
from bfl_mcp.trainer.needs import Asked, Present, Shortage, check_need, describe_need, hub_cache
from bfl_mcp.trainer.uploads import BadArchiveError, unpack
from bfl_mcp.trainer.worker import Workers

logger = logging.getLogger(__name__)

# What an archive may unfold to, in sizes of the largest upload: images are compressed already.
_UNFOLDING: Final = 4
_SEED: Final = 42
_STATUS: Final = {"queued": "Pending", "training": "Pending", "ready": "Ready", "failed": "Error"}

_LEAST_FREE_BYTES: Final = 1_000_000
"""With less than this on the disk not even its progress can be written down."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the person who runs the trainer decides about every training."""

    engine: Literal["auto", Engine] = "practice"
    practice_seconds: float = 10
    model: str = DEFAULT_MODEL
    captioner: str = DEFAULT_CAPTIONER
    max_px: int | None = None
    slots: int = 1
    """How many trainings run at once, each on a GPU of its own."""
    tells_paths: bool = False
    """Whether the customer is on this machine, and is told where files lie rather than where they can be fetched."""


class Provider:
    """Takes finetunes, tells how they stand, and sees to it that somebody trains them."""

    def __init__(self, data: Path, max_upload_mb: float, choices: Choices, hardware: Hardware | None = None) -> None:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.jobs = Jobs(data)
        self.max_upload_bytes = int(max_upload_mb * 1_000_000)
        self._choices = choices
        self._hardware = hardware
        self._workers = Workers(data, choices.slots)
        # An upload needs up to three times its size in memory while it is read; mostly less than two.
        self._reading = threading.Lock()

    @property
    def engine(self) -> Engine:
        """What the next finetune is trained with. The first look at the GPUs may take seconds."""
        return choose_engine(self._choices.engine, self._hardware)

    def wake_workers(self) -> None:
        if self.jobs.unfinished():
            self._wake()

    def create(self, upload: BinaryIO) -> dict[str, Any]:
        with self._reading:
            inputs, archive = read_inputs(upload)
            engine = self.engine
            # Before the archive is looked at, which may take a minute, as if it held one image.
            self._refuse_shortage(engine, inputs, MIN_IMAGES)
            parameters = inputs.model_dump(mode="json", exclude={"file_data", "webhook_url", "webhook_secret"})
            notes = ("this trainer sends no notifications: webhook_url is ignored",) if inputs.webhook_url else ()

            def fill(dataset: Path) -> None:
                try:
                    unpack(archive, dataset, _UNFOLDING * self.max_upload_bytes)
                except BadArchiveError as error:
                    raise invalid("value_error", "file_data", f"Value error, {error}") from None
                self._refuse_shortage(engine, inputs, sum(path.suffix != ".txt" for path in dataset.iterdir()))

            job = self.jobs.create(parameters, engine, self._options(engine), fill, notes)
        self._wake()
        return {"finetune_id": job.finetune_id, "engine": job.engine}

    def describe_need(self, inputs: TrainerNeedInputs) -> TrainerNeed:
        """Say what a training would take, as a start would judge it now."""
        engine = self.engine
        if engine == "practice":
            sentence = "Practice goes through the motions, trains nothing, and takes next to nothing."
            hardware = self._hardware or probe()
            if self._choices.engine == "auto" and hardware.is_installed and hardware.problem:
                # Whoever installed the packages wants to know why nothing is trained all the same.
                sentence += f" It does not train because {hardware.problem}."
            return TrainerNeed(engine=engine, fits=True, sentence=sentence)
        if shortages := self._find_shortages(engine, inputs, inputs.images):
            sentence = " ".join(shortage.sentence for shortage in shortages)
            return TrainerNeed(engine=engine, fits=False, sentence=sentence)
        asked = self._asked(inputs, inputs.images)
        return TrainerNeed(engine=engine, fits=True, sentence=describe_need(asked, self._present()))

    def details(self, finetune_id: str) -> dict[str, Any]:
        job, progress = self._look_at(finetune_id)
        rate = job.parameters["learning_rate"] or DEFAULT_LEARNING_RATE[job.parameters["finetune_type"]]
        details: dict[str, Any] = {
            **job.parameters,
            "learning_rate": rate,
            "timestamp": job.created,
            "engine": job.engine,
            "state": progress.state,
        }
        if progress.state in UNFINISHED and shutil.disk_usage(self.jobs.data).free < _LEAST_FREE_BYTES:
            details["doing"] = "waiting for room: the disk of the trainer's data folder is full"
        elif progress.state == "training" and progress.doing:
            details["doing"] = progress.doing
        if progress.state == "queued":
            details["queue_position"] = sum(other.order < job.order for other in self.jobs.unfinished()) + 1
        if progress.seconds_left is not None:
            details["seconds_left"] = round(progress.seconds_left, 1)
        if progress.state == "ready":
            details.update(self._outcome(job))
        return details

    def result(self, finetune_id: str) -> ResultResponse:
        job, progress = self._look_at(finetune_id)
        return ResultResponse(
            id=finetune_id,
            status=_STATUS[progress.state],
            progress=progress.step / (job.parameters.get("iterations") or 1),
            details={"error": progress.error} if progress.error else None,
        )

    def find_file(self, finetune_id: str, name: str) -> Path:
        """A file of a ready finetune, by a name its engine listed."""
        job, progress = self._look_at(finetune_id)
        path = job.find_files().get(name) if progress.state == "ready" else None
        if path is None:
            raise HTTPException(404, "This finetune has no file of that name; its details list the names, once ready.")
        return path

    def _options(self, engine: Engine) -> Mapping[str, Any]:
        """What is fixed with the job: a trainer that is started otherwise changes nothing about it."""
        if engine == "practice":
            return {"practice_seconds": self._choices.practice_seconds}
        return {
            "model": _absolute(self._choices.model),
            "captioner": _absolute(self._choices.captioner),
            "max_px": self._choices.max_px,
            "seed": _SEED,
        }

    def _refuse_shortage(self, engine: Engine, parameters: TrainingParameters, images: int) -> None:
        if shortages := self._find_shortages(engine, parameters, images):
            raise RequestValidationError(
                [{"type": NEED_FAULT, "loc": ("body", each.field), "msg": each.sentence} for each in shortages]
            )

    def _find_shortages(self, engine: Engine, parameters: TrainingParameters, images: int) -> tuple[Shortage, ...]:
        if engine == "practice":
            return ()
        hardware = self._hardware or probe()
        if not hardware.is_installed:
            # Asked for by name, or `auto` would have chosen practice.
            sentence = (
                f"The engine flux2 cannot train here: {hardware.problem}. Install them on the trainer's machine, as "
                "the README says, or set BFL_TRAINER_ENGINE=practice to rehearse."
            )
            return (Shortage("finetune_type", sentence),)
        return check_need(self._asked(parameters, images), self._present())

    def _asked(self, parameters: TrainingParameters, images: int) -> Asked:
        return Asked(
            finetune_type=parameters.finetune_type,
            priority=parameters.priority,
            rank=parameters.lora_rank,
            captioning=parameters.captioning,
            images=images,
            model=self._choices.model,
            captioner=self._choices.captioner,
            max_px=self._choices.max_px,
        )

    def _present(self) -> Present:
        device = (self._hardware or probe()).smallest(self._choices.slots)
        data, cache = self.jobs.data, _existing(hub_cache())
        return Present(
            gpu_bytes=device.total_bytes if device else None,
            gpu=device.name if device else "the CPU",
            work_bytes=shutil.disk_usage(data).free,
            download_bytes=shutil.disk_usage(cache).free,
            is_one_disk=os.stat(data).st_dev == os.stat(cache).st_dev,  # noqa: PTH116 - both alike
        )

    def _outcome(self, job: Job) -> dict[str, Any]:
        outcome = job.read_outcome()
        facts: dict[str, Any] = {name: outcome[name] for name in ("base_model", "seed") if name in outcome}
        for name in ("loss_first", "loss_last", "kept_energy"):
            if (value := finite_number(outcome.get(name))) is not None:
                facts[name] = value
        if isinstance(outcome.get("captions"), dict):
            facts["captions_used"] = outcome["captions"]
        if files := {name: self._where(job, name, path) for name, path in job.find_files().items()}:
            facts["files"] = files
            if lora := next((where for name, where in files.items() if name.endswith(".safetensors")), None):
                facts["lora"] = lora
        return facts

    def _where(self, job: Job, name: str, path: Path) -> str:
        if self._choices.tells_paths:
            return str(path)
        return f"{FILE_PATH}?{urlencode({'finetune_id': job.finetune_id, 'name': name})}"

    def _look_at(self, finetune_id: str) -> tuple[Job, Progress]:
        job = self.jobs.find(finetune_id)
        try:
            if job is None:
                raise JobGoneError(finetune_id)
            progress = job.read_progress()
        except JobGoneError:
            raise HTTPException(404, FINETUNE_NOT_FOUND) from None
        if progress.state in UNFINISHED:
            # Whoever sees that nobody works on it sets somebody to work.
            self._wake()
        return job, progress

    def _wake(self) -> None:
        try:
            self._workers.wake()
        except OSError:
            # The finetune is safe on disk, and the next look tries again.
            logger.exception("no worker could be started for %s", self.jobs.data)


def _absolute(name: str) -> str:
    """A folder's whole path: the worker is somewhere else. A name at the hub as it is."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)
