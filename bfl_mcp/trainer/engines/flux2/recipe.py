"""What one finetune asks for, in the numbers that the training works with."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from bfl_mcp.contract import DEFAULT_LEARNING_RATE, FinetuneType, Mode, Priority
from bfl_mcp.trainer.needs import count_pixels

DEFAULT_SEED: Final = 42
# Sides of pictures are multiples of it: the autoencoder takes 8 pixels together, the transformer 2 of those.
GRID_PX: Final = 16
# A coarser grid brings more pictures together in a batch.
_BATCH_GRID_PX: Final = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training, complete: two runs of the same recipe over the same files make the same LoRA on a CPU."""

    finetune_type: FinetuneType
    mode: Mode
    trigger_word: str
    iterations: int
    learning_rate: float
    rank: int
    priority: Priority
    captioning: bool
    bucket_pixels: int
    batch_size: int
    gradient_checkpointing: bool
    seed: int

    @property
    def bucket_step_px(self) -> int:
        """The grid that the sides of buckets lie on."""
        coarse = self.batch_size > 1 and self.bucket_pixels >= _BATCH_GRID_PX**2
        return _BATCH_GRID_PX if coarse else GRID_PX

    @property
    def sample_side_px(self) -> int:
        """The side of the square pictures that show what was learned: as many pixels as were trained on."""
        return max(GRID_PX, math.isqrt(self.bucket_pixels) // GRID_PX * GRID_PX)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


def build_recipe(
    parameters: Mapping[str, Any],
    *,
    max_px: int | None = None,
    batch_size: int = 1,
    gradient_checkpointing: bool = False,
    seed: int | None = None,
) -> Recipe:
    """Read the parameters of a job. A null learning rate becomes the one of its type."""
    finetune_type = parameters["finetune_type"]
    return Recipe(
        finetune_type=finetune_type,
        mode=parameters["mode"],
        trigger_word=parameters["trigger_word"].strip(),
        iterations=parameters["iterations"],
        learning_rate=parameters["learning_rate"] or DEFAULT_LEARNING_RATE[finetune_type],
        rank=parameters["lora_rank"],
        priority=parameters["priority"],
        captioning=parameters["captioning"],
        bucket_pixels=count_pixels(parameters["priority"], max_px),
        batch_size=batch_size,
        gradient_checkpointing=gradient_checkpointing,
        seed=DEFAULT_SEED if seed is None else seed,
    )
