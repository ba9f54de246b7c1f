"""How far a training had come: weights, optimizer, losses and step in one file, whole or not there.

The random state is the step itself, because what a step draws depends on nothing else.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from bfl_mcp.trainer.engines.flux2.store import write_whole

_NAME: Final = re.compile(r"step-(\d{6})\.pt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training after `step` steps. It belongs to one recipe over one dataset, and resumes no other."""

    step: int
    losses: list[float]
    state: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, belongs_to: str) -> None:
    """Write it, and only then remove the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "belongs_to": belongs_to,
        "step": checkpoint.step,
        "losses": checkpoint.losses,
        "state": checkpoint.state,
    }
    path = folder / f"step-{checkpoint.step:06}.pt"
    write_whole(path, lambda part: torch.save(content, part))
    for older in folder.glob("step-*.pt"):
        if older != path:
            older.unlink(missing_ok=True)


def read_checkpoint(folder: Path, belongs_to: str) -> Checkpoint | None:
    """Read the newest that can be read and belongs to this training. Tensors stay on disk until they are copied."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        if not _NAME.fullmatch(path.name):
            continue
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, ValueError, EOFError):
            continue
        if content["belongs_to"] == belongs_to:
            return Checkpoint(content["step"], content["losses"], content["state"])
    return None
