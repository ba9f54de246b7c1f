"""What happens in a trial, drawn from the seed and its number: pictures, parameters, faults and their moments."""

import random
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from tests.torture.provider import STAGES, Deed, Stage

Kind = Literal[
    "no fault",
    "kill -9",
    "SIGTERM",
    "stdin closed",
    "cancelled",
    "request cut",
    "answer cut",
    "5xx, start made",
    "5xx, start not made",
    "delay",
    "disk full",
    "two processes",
    "refused",
    "list fails",
]

# Kills are what the journal is there for, and there are many moments for them.
_WEIGHTS: Final[dict[Kind, int]] = {
    "no fault": 1,
    "kill -9": 5,
    "SIGTERM": 3,
    "stdin closed": 3,
    "cancelled": 3,
    "request cut": 3,
    "answer cut": 3,
    "5xx, start made": 2,
    "5xx, start not made": 2,
    "delay": 2,
    # Linux alone can take the disk away from a running process.
    "disk full": 4 if hasattr(resource, "prlimit") else 0,
    "two processes": 3,
    "refused": 1,
    "list fails": 2,
}

KINDS: Final[tuple[Kind, ...]] = tuple(_WEIGHTS)

_STRIKES: Final = ("kill -9", "SIGTERM", "stdin closed", "cancelled", "disk full")
_LOST_ANSWERS: Final = ("request cut", "answer cut", "5xx, start made", "5xx, start not made")

Companion = Literal["none", "twin", "other parameters", "other captions"]

_COMMENTS: Final = ("red teapot", "the red teapot, first try", "Teapot", "rotes Kännchen №1 🫖", "teapot " * 9)
_MODES: Final = ("general", "character", "style", "product")
_POOL_PICTURES: Final = 48


@dataclass(frozen=True, slots=True)
class Moment:
    """When a fault strikes: so long after the call, or when an exchange reaches a stage and so long after that."""

    stage: Stage | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, and how the conversation goes on after it."""

    kind: Kind
    moment: Moment
    deed: Deed
    disk_bytes: int
    companion: Companion
    stagger_seconds: float
    list_fails_after: bool
    """Whether the list cannot be read either when it is looked for what came of the start."""
    spelled_anew: bool
    """Whether the companion names the same folder in another way."""
    same_process_next: bool
    """Whether the next request goes to the same process, where that lives."""
    strikes: bool
    """Whether it strikes the server, at its moment; else it is a deed of the provider."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole trial."""

    seed: int
    number: int
    pictures: tuple[tuple[Path, str], ...]
    parameters: dict[str, Any]
    comments: tuple[str, ...]
    faults: tuple[Fault, ...]
    foreign_before: bool
    foreign_between: bool
    duplicate_at_end: bool
    impatient: bool
    """Whether the first request after the restart asks for a second start on purpose."""

    @property
    def name(self) -> str:
        return " + ".join(fault.kind for fault in self.faults)


def make_pictures(folder: Path) -> list[Path]:
    """A pool of small pictures, from smooth ones of a kilobyte to noise of a hundred, made once."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    made = []
    for number in range(_POOL_PICTURES):
        side = rng.choice((32, 64, 96, 200))
        noise = Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3))
        smooth = noise.resize((4, 4)).resize((side, side))
        path = folder / f"{number:02}.jpg"
        (noise if rng.random() < 0.5 else smooth).save(path, quality=90)
        made.append(path)
    return made


def make_plan(seed: int, number: int, pool: Sequence[Path]) -> Plan:
    """The plan of one trial: always the same for a seed and a number."""
    rng = random.Random(f"{seed}:{number}")
    pictures = tuple(
        (path, f"photo of TOK {rng.randrange(10**6)}") for path in rng.sample(pool, rng.choice((1, 1, 2, 3)))
    )
    kinds = rng.choices(KINDS, list(_WEIGHTS.values()), k=1 if rng.random() < 0.7 else 2)
    return Plan(
        seed=seed,
        number=number,
        pictures=pictures,
        parameters=_make_parameters(rng),
        comments=tuple(rng.choice(_COMMENTS) for _ in range(8)),
        faults=tuple(_make_fault(rng, kind) for kind in kinds),
        foreign_before=rng.random() < 0.3,
        foreign_between=rng.random() < 0.3,
        duplicate_at_end=rng.random() < 0.15,
        impatient=rng.random() < 0.1,
    )


def _make_parameters(rng: random.Random) -> dict[str, Any]:
    every: dict[str, Any] = {
        "trigger_word": rng.choice(("TOK", "teapot", "SKS")),
        "iterations": rng.randrange(100, 1001),
        "learning_rate": rng.choice((1e-5, 1e-4, 0.0005)),
        "captioning": rng.random() < 0.5,
        "priority": rng.choice(("speed", "quality", "high_res_only")),
        "finetune_type": rng.choice(("full", "lora")),
        "lora_rank": rng.choice((16, 32)),
    }
    chosen = {name: value for name, value in every.items() if rng.random() < 0.5}
    return {"mode": rng.choice(_MODES), **chosen}


def _make_fault(rng: random.Random, kind: Kind) -> Fault:
    companions: tuple[Companion, ...] = ("none",) * 7 + ("twin", "other parameters", "other captions")
    return Fault(
        kind=kind,
        moment=_make_moment(rng, kind),
        deed=_make_deed(rng, kind),
        disk_bytes=rng.choice((0, 0, rng.randrange(45_000), rng.randrange(45_000))),
        companion=rng.choice(companions),
        stagger_seconds=rng.choice((0.0, 0.0, rng.uniform(0, 0.1), rng.uniform(0, 0.6))),
        list_fails_after=kind in _LOST_ANSWERS and rng.random() < 0.4,
        spelled_anew=rng.random() < 0.3,
        same_process_next=rng.random() < 0.4,
        # Of two processes, the first is sometimes killed as well.
        strikes=kind in _STRIKES or (kind == "two processes" and rng.random() < 0.4),
    )


def _make_moment(rng: random.Random, kind: Kind) -> Moment:
    later = rng.choice((0.0, 0.0, rng.expovariate(300), rng.expovariate(100)))
    if rng.random() < (0.1 if kind == "disk full" else 0.25):
        return Moment(None, rng.choice((0.0, rng.uniform(0, 0.6))))
    return Moment(rng.choice(STAGES), later)


def _make_deed(rng: random.Random, kind: Kind) -> Deed:
    share, reset = rng.random(), rng.random() < 0.5
    match kind:
        case "request cut":
            return Deed("cut request", rng.choice((share, share, 1.0)), reset=reset)
        case "answer cut":
            return Deed("cut answer", rng.choice((0.0, share, share, 1.0)), reset=reset)
        case "5xx, start made" | "5xx, start not made":
            return Deed("error", status=rng.choice((500, 502, 503, 504, 529)), made=kind == "5xx, start made")
        case "refused":
            return Deed("refuse", status=rng.choice((402, 422, 429)))
        case "list fails":
            # Statuses for which a reading is not tried again, so that the list really fails.
            return rng.choice(
                (Deed("error", status=rng.choice((501, 520, 403))), Deed("cut answer", share, reset=reset))
            )
        case "delay":
            return Deed(delay_seconds=rng.uniform(0.1, 2.0))
        case _:
            # What strikes the server needs something to strike.
            return Deed(share=share, delay_seconds=rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5))))
