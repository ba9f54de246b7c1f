"""How much GPU memory a training needs: parameters times their bytes, plus what grows with the pictures.

Activations are counted in bytes for each token and channel of a block's width. The counts were measured on narrow
transformers with the blocks of the real one (tensors that the backward pass keeps, in bfloat16, LoRA of rank 16); they
do not depend on the width. Unverified on a real card.
"""

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from bfl_mcp.contract import FinetuneType, Priority

MAX_TEXT_TOKENS: Final = 512
GIB: Final = 1 << 30
# CUDA's context, the workspaces of its libraries, and what the allocator cannot use between blocks.
_RUNTIME_BYTES: Final = int(1.5 * GIB)
_PIXELS_A_TOKEN: Final = 16 * 16
_DOUBLE: Final = {"lora": 40, "full": 56}
_SINGLE: Final = {"lora": 50, "full": 54}
_ENDS: Final = {"lora": 4, "full": 10}
# With gradient checkpointing a block keeps its input, and one block at a time is worked out again.
_CHECKPOINTED: Final = 2
_ONE_BLOCK: Final = 56
# A LoRA's parameter in bfloat16; in float32 itself, its gradient and AdamW's two moments.
_LORA_PARAMETER: Final = 2 + 4 + 4 + 8
# bfloat16 with the 16 bits it lacks to float32.
_FULL_PARAMETER: Final = 2 + 2
# Of one matrix at a time: gradient in both types, its square, the weight put together and parted again.
_UPDATE: Final = 2 + 4 + 4 + 4 + 8
# Sampling decodes a megapixel: the widest layers of the autoencoder hold 256 channels of it.
_DECODING_BYTES: Final = int(2.5 * GIB)
_SPEED_BATCHES: Final = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the memory of a model. The text encoder counts with the layers that are read."""

    double_blocks: int
    single_blocks: int
    width: int
    parameters: int
    text_encoder_parameters: int

    @property
    def lora_parameters_a_rank(self) -> int:
        """In and out of four projections of a double block, and of both fused ones of a single block."""
        return self.width * (self.double_blocks * 8 + self.single_blocks * (1 + 9 + 4 + 1))

    @property
    def largest_matrix(self) -> int:
        return 9 * self.width * self.width


# Source: diffusers' conversion script for the transformers, Qwen's published configurations for the text encoders.
KLEIN_4B: Final = Shape(5, 20, 3072, 3_875_544_576, 3_215_021_568)
KLEIN_9B: Final = Shape(8, 24, 4096, 9_078_581_248, 6_024_834_048)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a training uses the memory it has: `need_bytes` is the most that any stage takes."""

    batch_size: int
    gradient_checkpointing: bool
    need_bytes: int


def list_plans(shape: Shape, finetune_type: FinetuneType, priority: Priority, rank: int, pixels: int) -> list[Plan]:
    """All ways to train, the fastest first, the leanest last."""
    batches = _SPEED_BATCHES if priority == "speed" else (1,)
    plans = [
        Plan(batch, lean, estimate_bytes(shape, finetune_type, rank, pixels, batch, lean))
        for lean, batch in product((False, True), batches)
    ]
    # Working blocks out again costs a third of a step; pictures together in a batch are worth more than that.
    return sorted(plans, key=lambda plan: (-plan.batch_size, plan.gradient_checkpointing))


def choose_plan(plans: list[Plan], present_bytes: int | None) -> Plan | None:
    """The first plan that fits, None if none does. Where nobody counts the memory, on a CPU, one picture at a time."""
    if present_bytes is None:
        return next(plan for plan in plans if plan.batch_size == 1)
    return next((plan for plan in plans if plan.need_bytes <= present_bytes), None)


def estimate_bytes(
    shape: Shape, finetune_type: FinetuneType, rank: int, pixels: int, batch_size: int, gradient_checkpointing: bool
) -> int:
    """What the hungriest stage takes: embedding texts, training, or sampling."""
    embedding = 2 * shape.text_encoder_parameters
    sampling = 2 * shape.parameters + _DECODING_BYTES
    places = (pixels // _PIXELS_A_TOKEN + MAX_TEXT_TOKENS) * shape.width * batch_size
    if gradient_checkpointing:
        kept = _CHECKPOINTED * (shape.double_blocks + shape.single_blocks)
    else:
        kept = _DOUBLE[finetune_type] * shape.double_blocks + _SINGLE[finetune_type] * shape.single_blocks
    activations = places * (kept + _ENDS[finetune_type] + _ONE_BLOCK)
    if finetune_type == "lora":
        weights = 2 * shape.parameters + _LORA_PARAMETER * rank * shape.lora_parameters_a_rank
    else:
        weights = _FULL_PARAMETER * shape.parameters + _UPDATE * shape.largest_matrix
    return max(embedding, sampling, weights + activations) + _RUNTIME_BYTES


def read_shape(folder: Path) -> Shape:
    """Work out the shape of a model on disk from its configuration and the sizes of its files."""
    config = json.loads((folder / "transformer" / "config.json").read_bytes())
    return Shape(
        config["num_layers"],
        config["num_single_layers"],
        config["num_attention_heads"] * config["attention_head_dim"],
        *(sum(file.stat().st_size for file in (folder / part).glob("*.safetensors")) // 2 for part in _COUNTED),
    )


_COUNTED: Final = ("transformer", "text_encoder")
