"""What a training takes: memory of the GPU, and disk. Reckoned, not tried: nothing of PyTorch is loaded here.

GPU memory is parameters times their bytes, plus what grows with the pictures. Activations are counted in bytes for each
token and channel of a block's width. The counts were measured on narrow transformers with the blocks of the real one
(tensors that the backward pass keeps, in bfloat16, LoRA of rank 16); they do not depend on the width. Unverified on a
real card. What comes of it for LoRAs of rank 32, in GiB, the leanest way and the fastest:

    model   lora quality   lora speed     full quality   full speed
    4B      11.2 – 25.2    11.2 – 31.4    19.1 – 35.7    18.2 – 42.7
    9B      21.4 – 46.0    20.9 – 56.4    40.6 – 68.9    39.2 – 80.8
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Final

from bfl_mcp.contract import DEFAULT_CAPTIONER, DEFAULT_MODEL, FinetuneType, Priority
from bfl_mcp.trainer.shapes import KLEIN_4B, KLEIN_9B, Shape, find_shape

GIB: Final = 1 << 30
MAX_TEXT_TOKENS: Final = 512
FULL_PX: Final = 1_000_000
"""A little below the 1024 × 1024 that our own packing keeps, so that no picture of it must be scaled up."""
SPEED_PX: Final = 512 * 512

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

# Of the parts that are downloaded, whole text encoder included. Computed from the parameters in bfloat16.
_DOWNLOAD_BYTES: Final = {KLEIN_4B: 16_000_000_000, KLEIN_9B: 34_700_000_000}
# Source: the sizes on the model's page at the hub.
_CAPTIONER_BYTES: Final = {DEFAULT_CAPTIONER: 4_300_000_000}


# --- memory of the GPU ------------------------------------------------------------------------------------------------


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


def count_pixels(priority: Priority, max_px: int | None) -> int:
    """The most pixels a picture is trained at; `max_px` is the side of a square."""
    pixels = SPEED_PX if priority == "speed" else FULL_PX
    return pixels if max_px is None else min(pixels, max_px * max_px)


# --- disk -------------------------------------------------------------------------------------------------------------

# float32: the weight and AdamW's two moments.
_LORA_CHECKPOINTED: Final = 4 + 8
# While a checkpoint is written, the one before is still there.
_CHECKPOINTS: Final = 2
# Latents have 128 channels of two bytes for each token of 256 pixels.
_LATENT_BYTES_A_PIXEL: Final = 1
# Three hidden states side by side, two bytes each.
_EMBEDDED_BYTES: Final = 3 * 2
# Samples, curve, card, logs.
_REST_BYTES: Final = 100_000_000


def estimate_work_bytes(shape: Shape, finetune_type: FinetuneType, rank: int, pixels: int, images: int) -> int:
    """What a training puts into its folder at most: checkpoints, cached latents and embeddings, the LoRA."""
    lora = rank * shape.lora_parameters_a_rank
    kept = _LORA_CHECKPOINTED * lora if finetune_type == "lora" else _FULL_PARAMETER * shape.parameters
    embedded = MAX_TEXT_TOKENS * shape.text_width * _EMBEDDED_BYTES
    # The empty text is embedded too: sampling is guided away from it.
    cached = images * pixels * _LATENT_BYTES_A_PIXEL + (images + 1) * embedded
    return _CHECKPOINTS * kept + cached + 4 * lora + _REST_BYTES


def estimate_download_bytes(model: str, captioner: str | None) -> int:
    """What is still to be downloaded, as far as that is known; no captioner where none is asked for."""
    shape = None if Path(model).expanduser().is_dir() else find_shape(model)
    wanted = {model: _DOWNLOAD_BYTES.get(shape, 0) if shape else 0}
    if captioner is not None and not Path(captioner).expanduser().is_dir():
        wanted[captioner] = _CAPTIONER_BYTES.get(captioner, 0)
    return sum(max(0, size - _downloaded_bytes(name)) for name, size in wanted.items() if size)


def hub_cache() -> Path:
    """Where the hub's own library keeps what it downloads."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def _downloaded_bytes(name: str) -> int:
    blobs = hub_cache() / f"models--{name.replace('/', '--')}" / "blobs"
    try:
        return sum(entry.stat().st_size for entry in os.scandir(blobs) if entry.is_file())
    except OSError:
        return 0


# Of a square that a remedy may name. Nothing smaller than the smallest teaches much.
_LARGEST_SIDE: Final = 960
_SMALLEST_SIDE: Final = 256
_SIDE_STEP: Final = 64


# --- need and present -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A training, as far as what it takes depends on it."""

    finetune_type: FinetuneType
    priority: Priority
    rank: int
    captioning: bool
    images: int
    model: str
    captioner: str
    max_px: int | None = None


@dataclass(frozen=True, slots=True)
class Present:
    """What there is: memory of the smallest GPU, None on a CPU, where nobody counts it; free bytes of the disks."""

    gpu_bytes: int | None
    gpu: str
    work_bytes: int
    """Free where the trainer's data folder lies."""
    download_bytes: int
    """Free where the hub's cache lies."""
    is_one_disk: bool = False


@dataclass(frozen=True, slots=True)
class Shortage:
    """One thing there is too little of, and the request's field that would change most about it."""

    field: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Need:
    """What one training takes. `gpu_bytes` is the leanest way to train; None where the model is not known."""

    gpu_bytes: int | None
    work_bytes: int
    download_bytes: int


def estimate_need(asked: Asked) -> Need:
    """Reckon what a training takes."""
    download = estimate_download_bytes(asked.model, asked.captioner if asked.captioning else None)
    shape = find_shape(asked.model)
    if shape is None:
        return Need(None, _REST_BYTES, download)
    pixels = _pixels(asked)
    plans = list_plans(shape, asked.finetune_type, asked.priority, asked.rank, pixels)
    work = estimate_work_bytes(shape, asked.finetune_type, asked.rank, pixels, asked.images)
    return Need(min(plan.need_bytes for plan in plans), work, download)


def describe_need(asked: Asked, present: Present) -> str:
    """In one or two sentences what a training takes and what is there."""
    need = estimate_need(asked)
    if need.gpu_bytes is None:
        memory = "How much memory this base model takes is not known beforehand"
    elif present.gpu_bytes is None:
        memory = "It trains on the CPU, which is slow: the real base models want a GPU"
    else:
        memory = (
            f"It takes at least {_up(need.gpu_bytes)} GiB of GPU memory; "
            f"{present.gpu} has {_down(present.gpu_bytes)} GiB"
        )
    downloads = f", and {_up(need.download_bytes)} GiB for models to download" if need.download_bytes else ""
    return f"{memory}. On the disk it takes {_up(need.work_bytes)} GiB for its work{downloads}."


def check_need(asked: Asked, present: Present) -> tuple[Shortage, ...]:
    """Everything there is too little of, with what is needed, what is there, and what to change. Empty: it fits."""
    need = estimate_need(asked)
    found = []
    if need.gpu_bytes is not None and present.gpu_bytes is not None and need.gpu_bytes > present.gpu_bytes:
        found.append(_describe_memory(asked, need.gpu_bytes, present.gpu_bytes, present.gpu))
    both = need.work_bytes + need.download_bytes
    if present.is_one_disk and need.download_bytes and both > present.work_bytes:
        what = f"with models to download and its own files it takes {_up(both)} GiB of disk"
        found.append(_describe_disk(asked, what, need.work_bytes, present.work_bytes))
    elif need.work_bytes > present.work_bytes:
        what = f"its checkpoints and caches take {_up(need.work_bytes)} GiB in the trainer's data folder"
        found.append(_describe_disk(asked, what, need.work_bytes, present.work_bytes))
    elif need.download_bytes > present.download_bytes:
        what = f"the models to download take {_up(need.download_bytes)} GiB in the hub's cache (HF_HOME)"
        found.append(_describe_disk(asked, what, need.work_bytes, present.download_bytes))
    return tuple(found)


def _describe_memory(asked: Asked, need: int, present: int, gpu: str) -> Shortage:
    fitting = [f"{words} ({_up(size)} GiB)" for words, size in _list_single(asked, present) if _fits(size, present)]
    words, least = min(_list_all(asked), key=lambda each: each[1], default=("", need))
    if fitting:
        remedy = f"It fits with {' or '.join(fitting)}; or take a GPU with more memory."
    elif _fits(least, present):
        remedy = f"It fits with {words} ({_up(least)} GiB); or take a GPU with more memory."
    elif least < need:
        remedy = f"Not even {words} fits, which takes {_up(least)} GiB: take a GPU with at least that."
    else:
        remedy = f"No other choice takes less: take a GPU with at least {_up(need)} GiB."
    sentence = (
        f'finetune_type="{asked.finetune_type}" with priority="{asked.priority}" takes {_up(need)} GiB of GPU memory; '
        f"{gpu} has {_down(present)} GiB. {remedy}"
    )
    return Shortage("finetune_type" if asked.finetune_type == "full" else "priority", sentence)


def _list_single(asked: Asked, present: int) -> Iterator[tuple[str, int]]:
    """What one change alone would take: first those of the request, then those of the trainer."""
    if asked.finetune_type == "full":
        yield 'finetune_type="lora"', _leanest(replace(asked, finetune_type="lora"))
    if asked.priority != "speed":
        yield 'priority="speed"', _leanest(replace(asked, priority="speed"))
    smaller = (replace(asked, max_px=side) for side in range(_LARGEST_SIDE, _SMALLEST_SIDE - 1, -_SIDE_STEP))
    for each in smaller:
        if _pixels(each) < _pixels(asked) and _fits(size := _leanest(each), present):
            yield f"BFL_TRAINER_MAX_PX={each.max_px}", size
            break
    if find_shape(asked.model) == KLEIN_9B:
        yield f"BFL_TRAINER_MODEL={DEFAULT_MODEL}", _leanest(replace(asked, model=DEFAULT_MODEL))


def _list_all(asked: Asked) -> Iterator[tuple[str, int]]:
    """What all that the request can change would take together."""
    changes = []
    if asked.finetune_type == "full":
        changes.append('finetune_type="lora"')
    if asked.priority != "speed":
        changes.append('priority="speed"')
    if changes:
        yield " with ".join(changes), _leanest(replace(asked, finetune_type="lora", priority="speed"))


def _pixels(asked: Asked) -> int:
    return count_pixels(asked.priority, asked.max_px)


def _leanest(asked: Asked) -> int:
    need = estimate_need(asked).gpu_bytes
    assert need is not None  # noqa: S101 - only asked where the need is known
    return need


def _describe_disk(asked: Asked, what: str, work: int, free: int) -> Shortage:
    remedy = "Free some disk, or put BFL_MCP_HOME (for the trainer --data) and HF_HOME where there is more."
    lora = estimate_need(replace(asked, finetune_type="lora"))
    if asked.finetune_type == "full" and lora.work_bytes < work:
        remedy += f' finetune_type="lora" takes {_up(lora.work_bytes)} GiB in place of {_up(work)} GiB for its files.'
    return Shortage("finetune_type", f"There is too little disk: {what}; {_down(free)} GiB are free. {remedy}")


def _fits(size: int, present: int) -> bool:
    """Whether it does in the numbers that are shown, too."""
    return float(_up(size)) <= float(_down(present))


def _up(size: int) -> str:
    return f"{math.ceil(size / GIB * 10) / 10:.1f}"


def _down(size: int) -> str:
    return f"{math.floor(size / GIB * 10) / 10:.1f}"
