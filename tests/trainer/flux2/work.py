"""Finetunes for the engine to train: small pictures, few of them, and what the engine says meanwhile."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bfl_mcp.trainer.engines import ENGINES
from bfl_mcp.trainer.jobs import Job, Jobs

# At this size a step takes some thirty milliseconds.
MAX_PX = 64
PARAMETERS: Mapping[str, Any] = {
    "finetune_comment": "red teapot",
    "mode": "general",
    "trigger_word": "TOK",
    "iterations": 100,
    "learning_rate": None,
    "lora_rank": 16,
    "priority": "quality",
    "captioning": True,
    "finetune_type": "lora",
}
FULL: Mapping[str, Any] = {"finetune_type": "full", "learning_rate": 1e-4}
"""What makes a full training of some steps learn enough to measure."""

# The last picture has none.
CAPTIONS = ("TOK on a table", "TOK in the grass", "a teapot at night", "a teapot from above")


@dataclass(frozen=True)
class Models:
    """The folders of a base model and a captioner."""

    klein: Path
    captioner: Path


def go_on(step: int, doing: str) -> None:
    """Does nothing at a report."""


@dataclass
class Told:
    """All that an engine reported, and what is done at each report."""

    at_each: Callable[[int, str], None] = go_on
    steps: list[int] = field(default_factory=list)
    seconds_left: list[float | None] = field(default_factory=list)
    doing: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def __call__(self, step: int, seconds_left: float | None, doing: str) -> None:
        self.steps.append(step)
        self.seconds_left.append(seconds_left)
        self.doing.append(doing)
        self.at.append(time.monotonic())
        self.at_each(step, doing)


@dataclass(frozen=True)
class Done:
    """A finetune that was trained, and what was told of it."""

    job: Job
    told: Told

    @property
    def lora(self) -> Path:
        return self.job.folder / "lora.safetensors"


class StopHere(Exception):  # noqa: N818 - nothing went wrong
    """Ends a training where a test wants it to."""


def stop_at(step: int, words: str = "training") -> Callable[[int, str], None]:
    """Ends the work at the first report of that step and those words."""

    def look(reported: int, doing: str) -> None:
        if reported >= step and doing.startswith(words):
            raise StopHere

    return look


def put(
    data: Path,
    models: Models,
    *,
    captions: tuple[str, ...] = CAPTIONS,
    images: int = len(CAPTIONS) + 1,
    options: Mapping[str, Any] | None = None,
    fill: Callable[[Path], None] | None = None,
    **parameters: Any,
) -> Job:
    """Put down a job of small pictures: the first have captions of their own."""

    def fill_dataset(dataset: Path) -> None:
        for number in range(1, images + 1):
            draw(number).save(dataset / f"{number:03}.png")
        for number, caption in enumerate(captions[:images], start=1):
            (dataset / f"{number:03}.txt").write_text(caption, encoding="utf-8")

    chosen = {"model": str(models.klein), "captioner": str(models.captioner), "max_px": MAX_PX, **(options or {})}
    return Jobs(data).create({**PARAMETERS, **parameters}, "flux2", chosen, fill or fill_dataset)


def draw(number: int, width: int = 96, height: int = 64) -> Image.Image:
    """A picture that is like no other: a ground with spots, every other one upright."""
    dice = random.Random(number)
    size = (width, height) if number % 2 else (height, width)
    picture = Image.new("RGB", size, (dice.randrange(256), dice.randrange(256), dice.randrange(256)))
    for _ in range(6):
        x, y = dice.randrange(size[0]), dice.randrange(size[1])
        picture.paste((dice.randrange(256),) * 3, (x, y, x + 20, y + 12))
    return picture


def train(job: Job, at_each: Callable[[int, str], None] = go_on) -> Told:
    """Run the engine in this process, to its end or to what `at_each` raises."""
    told = Told(at_each)
    ENGINES["flux2"](job, told)
    return told


def quick(data: Path, models: Models, **changes: Any) -> Job:
    """Train a job of few steps to its end."""
    job = put(data, models, **{"iterations": 4, "images": 3, **changes})
    train(job)
    return job
