"""`lora.safetensors`: the LoRA as diffusers loads it, and beside it where it comes from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from bfl_mcp.trainer.engines.flux2.recipe import Recipe
from bfl_mcp.trainer.engines.flux2.store import read_metadata, write_tensors

FILE_NAME: Final = "lora.safetensors"
_PREFIX: Final = "transformer."


def write_lora(
    path: Path,
    layers: Mapping[str, torch.Tensor],
    recipe: Recipe,
    about: Mapping[str, str],
    kept_energy: float | None = None,
) -> None:
    """Write the layers, named as PEFT names them. The strength is 1 without a word: alpha equals the rank."""
    metadata = {
        "rank": str(recipe.rank),
        "trigger_word": recipe.trigger_word,
        "recipe": recipe.to_json(),
        **about,
        **({} if kept_energy is None else {"kept_energy": repr(kept_energy)}),
    }
    write_tensors(path, {_PREFIX + name: tensor for name, tensor in layers.items()}, metadata)


def read_kept_energy(path: Path) -> float | None:
    """The share of a full training's change that a written LoRA holds, None where it was trained as a LoRA."""
    told = read_metadata(path).get("kept_energy")
    return None if told is None else float(told)


def describe_origin(base_model: str, dataset: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """What the file says of itself. Of a model in a folder here it names the folder, not the way to it."""
    return {
        "base_model": public_name(base_model),
        "dataset_sha256": compute_digest(dataset),
        "parameters": json.dumps(dict(parameters), sort_keys=True, ensure_ascii=False),
    }


def public_name(model: str) -> str:
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def compute_digest(dataset: Path) -> str:
    """One SHA-256 of all names and contents of a dataset."""
    digest = hashlib.sha256()
    for path in sorted(dataset.iterdir()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
