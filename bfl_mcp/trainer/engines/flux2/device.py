"""What the training runs on: one GPU in bfloat16, or the CPU in float32."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from bfl_mcp.trainer.engines import TrainingError

_NO_MORE_ON_THE_CPU: Final = "can't allocate memory"


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device and the type that weights and activations have on it."""

    device: torch.device
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "the CPU"

    def read_free_bytes(self) -> int | None:
        """How much memory the device has free, None for a CPU: its memory is not ours to divide."""
        return torch.cuda.mem_get_info(self.device)[0] if self.is_gpu else None


def find_hardware() -> Hardware:
    """Take the first GPU that this process sees (ROCm calls itself CUDA too), else the CPU."""
    if torch.cuda.is_available():
        return Hardware(torch.device("cuda", 0), torch.bfloat16)
    return Hardware(torch.device("cpu"), torch.float32)


def release_memory() -> None:
    """Give back what no longer has a name, so that the next stage finds the memory free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explained_shortage(remedy: str) -> Iterator[None]:
    """Turn memory that has run out into a sentence that says what to change.

    Raises:
        TrainingError: The memory was not enough.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(f"The GPU ran out of memory ({_first_sentence(error)}). {remedy}") from None
    except MemoryError:
        raise TrainingError(f"The machine ran out of memory. {remedy}") from None
    except RuntimeError as error:
        if _NO_MORE_ON_THE_CPU not in str(error):
            raise
        said = str(error)[str(error).index(_NO_MORE_ON_THE_CPU) :]
        raise TrainingError(f"The machine ran out of memory ({said.partition('. ')[0]}). {remedy}") from None


def _first_sentence(error: Exception) -> str:
    return ". ".join(str(error).split(". ")[:2]).rstrip(".")
