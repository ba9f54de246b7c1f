"""What decides the size of a model: by its name at the hub, or read from a folder without loading it."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Source: the default of diffusers' Flux2KleinPipeline, which reads the hidden states 9, 18 and 27. What comes out of
# the last layer of a model is normalised, so one more is loaded.
_TEXT_LAYERS_READ: Final = 28


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the memory of a model. The text encoder counts with the layers that are read."""

    double_blocks: int
    single_blocks: int
    width: int
    parameters: int
    text_encoder_parameters: int
    text_width: int = 4096

    @property
    def lora_parameters_a_rank(self) -> int:
        """In and out of four projections of a double block, and of both fused ones of a single block."""
        return self.width * (self.double_blocks * 8 + self.single_blocks * (1 + 9 + 4 + 1))

    @property
    def largest_matrix(self) -> int:
        return 9 * self.width * self.width


# Source: diffusers' conversion script for the transformers, Qwen's published configurations for the text encoders.
KLEIN_4B: Final = Shape(5, 20, 3072, 3_875_544_576, 3_215_021_568, 2560)
KLEIN_9B: Final = Shape(8, 24, 4096, 9_078_581_248, 6_024_834_048, 4096)


def find_shape(model: str) -> Shape | None:
    """The shape of a model: by its name at the hub, or of a local folder. None where it cannot be told beforehand."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        try:
            return read_shape(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    name = model.lower()
    if "klein" not in name:
        return None
    return KLEIN_4B if "4b" in name else KLEIN_9B if "9b" in name else None


def read_shape(folder: Path) -> Shape:
    """Work out the shape of a model on disk from its configuration and the headers of its files.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file holds something else.
        KeyError: A configuration lacks a number.
    """
    config = json.loads((folder / "transformer" / "config.json").read_bytes())
    text = json.loads((folder / "text_encoder" / "config.json").read_bytes())
    return Shape(
        config["num_layers"],
        config["num_single_layers"],
        config["num_attention_heads"] * config["attention_head_dim"],
        sum(size for _, size in _list_weights(folder / "transformer")),
        sum(size for name, size in _list_weights(folder / "text_encoder") if _is_read(name)),
        text["hidden_size"],
    )


def _is_read(name: str) -> bool:
    """Whether a weight of the text encoder is loaded: neither its head is, nor the layers above the last one read."""
    parts = name.split(".")
    if "lm_head" in parts:
        return False
    return "layers" not in parts or int(parts[parts.index("layers") + 1]) < _TEXT_LAYERS_READ


def _list_weights(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and numbers of parameters, from the head of each safetensors file: eight bytes of length, then JSON."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError(f"{path.name} is no safetensors file")
            header = json.loads(file.read(length))
        yield from ((name, math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")
