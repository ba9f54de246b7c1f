"""Files that are whole or not there: written beside, synced, then renamed."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside, and put it in place when it is on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left, at any depth."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; the same content gives the same bytes."""
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = _ordered(save(ready, metadata={"format": "pt", **(metadata or {})}))
    write_whole(path, lambda part: part.write_bytes(content))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(path)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What stands beside the tensors of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return metadata


def write_tensor(path: Path, tensor: torch.Tensor) -> None:
    write_tensors(path, {"tensor": tensor})


def read_tensor(path: Path) -> torch.Tensor:
    return read_tensors(path)["tensor"]


def _ordered(content: bytes) -> bytes:
    """Sort the metadata in a file's header: safetensors itself writes them in an order of chance."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The tensors behind it begin at a multiple of eight bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]
