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
    """A training after as many steps as it has losses."""

    losses: list[float]
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The newest checkpoint of one training. It belongs to one recipe over one dataset, and resumes no other."""

    folder: Path
    belongs_to: str

    def write(self, checkpoint: Checkpoint) -> None:
        """Write it, and only then remove the one before."""
        self.folder.mkdir(exist_ok=True)
        content = {"belongs_to": self.belongs_to, "losses": checkpoint.losses, "state": checkpoint.state}
        path = self.folder / f"step-{len(checkpoint.losses):06}.pt"
        write_whole(path, lambda part: torch.save(content, part))
        for step, older in _list(self.folder):
            if step < len(checkpoint.losses):
                older.unlink(missing_ok=True)

    def read(self) -> Checkpoint | None:
        """Read the newest that can be read and belongs to this training. Tensors stay on disk until they are copied."""
        for _, path in reversed(_list(self.folder)):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, RuntimeError, ValueError, EOFError):
                continue
            if content["belongs_to"] == self.belongs_to:
                return Checkpoint(content["losses"], content["state"])
        return None


def find_newest_step(folder: Path) -> int:
    """How many steps the newest checkpoint in a folder has behind it, 0 without one."""
    return max((step for step, _ in _list(folder)), default=0)


def _list(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*.pt")]
    return sorted((int(match[1]), path) for match, path in found if match)
