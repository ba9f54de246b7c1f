"""A LoRA out of weights that were trained in full: the largest part of each change that the rank can hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from bfl_mcp.trainer.engines.flux2.full import FullWeights
from bfl_mcp.trainer.engines.flux2.model import BaseWeights

# Above it the whole decomposition takes minutes for each matrix, and all but the first parts are thrown away.
_EXACT_UP_TO: Final = 1024
_OVERSAMPLED: Final = 2
_POWER_ITERATIONS: Final = 4
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Extraction:
    """Low-rank pairs by the names that PEFT gives them, and the share of the change that they hold, from 0 to 1."""

    layers: dict[str, torch.Tensor]
    kept_energy: float


def extract_lora(
    trained: FullWeights, base: BaseWeights, rank: int, dtype: torch.dtype, tell: Callable[[int, int], None]
) -> Extraction:
    """Part each weight's change into a pair of matrices of at most `rank`."""
    layers: dict[str, torch.Tensor] = {}
    kept = total = 0.0
    names = trained.names()
    for done, name in enumerate(names):
        tell(done, len(names))
        weight = trained.read_weight(name)
        change = weight.float() - base[name].to(weight.device, torch.float32)
        energy = change.double().square().sum().item()
        total += energy
        if energy == 0:
            continue
        up, down, part = _split(change, min(rank, *change.shape))
        kept += part
        module = name.removesuffix(".weight")
        layers[f"{module}.lora_A.weight"] = down.to(dtype).cpu()
        layers[f"{module}.lora_B.weight"] = up.to(dtype).cpu()
    return Extraction(layers, min(1.0, kept / total) if total else 1.0)


def _split(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Two matrices whose product is nearest to the change, and the energy of that product."""
    left, values, right = _decompose(change, rank)
    root = values[:rank].sqrt()
    up = left[:, :rank] * root
    down = root[:, None] * right[:, :rank].T
    return up.contiguous(), down.contiguous(), values[:rank].double().square().sum().item()


def _decompose(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    smaller = min(change.shape)
    if smaller <= _EXACT_UP_TO or 2 * rank >= smaller:
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        return left, values, right.T
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        found = torch.svd_lowrank(change, q=min(smaller, _OVERSAMPLED * rank), niter=_POWER_ITERATIONS)
    return found[0], found[1], found[2]
