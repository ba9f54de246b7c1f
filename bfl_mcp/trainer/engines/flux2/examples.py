"""Which pictures each step sees: it depends on the seed and the step alone, so a resumed training sees the same."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bfl_mcp.trainer.engines.flux2.device import Hardware
from bfl_mcp.trainer.engines.flux2.latents import read_latents
from bfl_mcp.trainer.engines.flux2.pictures import Bucket, Placed
from bfl_mcp.trainer.engines.flux2.recipe import Recipe
from bfl_mcp.trainer.engines.flux2.texts import read_embedding


@dataclass(frozen=True, slots=True)
class Cache:
    """Where encoded pictures and embedded texts lie."""

    latents: Path
    texts: Path


@dataclass(frozen=True, slots=True)
class Batch:
    """Latents of shape (n, channels, rows, columns) and embeddings of shape (n, tokens, channels)."""

    latents: torch.Tensor
    texts: torch.Tensor


class Examples:
    """Encoded pictures with their embedded captions, in batches of one bucket each."""

    def __init__(
        self, placed: Sequence[Placed], captions: Mapping[str, str], cache: Cache, recipe: Recipe, hardware: Hardware
    ) -> None:
        self._captions, self._cache, self._hardware = captions, cache, hardware
        self._batch_size, self._seed = recipe.batch_size, recipe.seed
        self._by_bucket: dict[Bucket, list[Placed]] = defaultdict(list)
        for each in placed:
            self._by_bucket[each.bucket].append(each)
        self._epoch, self._batches = 0, self._shuffle(0)

    def list_batch(self, step: int) -> list[Placed]:
        """The pictures of a step, counted from 0."""
        epoch, index = divmod(step, len(self._batches))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[index]

    def read_batch(self, step: int) -> Batch:
        """Read the batch of a step onto the device."""
        chosen = self.list_batch(step)
        latents = torch.cat([read_latents(self._cache.latents, each) for each in chosen])
        texts = torch.cat([read_embedding(self._cache.texts, self._captions[each.name]) for each in chosen])
        return Batch(latents.to(self._hardware.device), texts.to(self._hardware.device))

    def _shuffle(self, epoch: int) -> list[list[Placed]]:
        """Each picture once. A bucket's last batch may be smaller: no picture is left out."""
        # The order needs no secrecy, only to be the same each time.
        dice = Random(f"{self._seed}:{epoch}")  # noqa: S311
        batches = []
        for bucket in sorted(self._by_bucket):
            pictures = self._by_bucket[bucket].copy()
            dice.shuffle(pictures)
            batches += [pictures[at : at + self._batch_size] for at in range(0, len(pictures), self._batch_size)]
        dice.shuffle(batches)
        return batches
