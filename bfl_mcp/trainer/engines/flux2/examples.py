"""Which pictures each step sees: it depends on the seed and the step alone, so a resumed training sees the same."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from bfl_mcp.trainer.engines.flux2.buckets import Bucket
from bfl_mcp.trainer.engines.flux2.device import Hardware
from bfl_mcp.trainer.engines.flux2.latents import Placed, read_latents
from bfl_mcp.trainer.engines.flux2.texts import read_embedding


@dataclass(frozen=True, slots=True)
class Batch:
    """Latents of shape (n, channels, rows, columns) and embeddings of shape (n, tokens, channels)."""

    latents: torch.Tensor
    texts: torch.Tensor


class Examples:
    """Encoded pictures with their embedded captions, in batches of one bucket each."""

    def __init__(
        self, placed: list[Placed], captions: dict[str, str], caches: tuple[Path, Path], batch_size: int, seed: int
    ) -> None:
        self._latents, self._texts = caches
        self._captions = captions
        self._batch_size, self._seed = batch_size, seed
        self._by_bucket: dict[Bucket, list[Placed]] = defaultdict(list)
        for each in placed:
            self._by_bucket[each.bucket].append(each)
        self.batches_an_epoch = len(self._shuffle(0))
        self._epoch: tuple[int, list[list[Placed]]] = (0, self._shuffle(0))

    def read_batch(self, step: int, hardware: Hardware) -> Batch:
        """Read the batch of a step, counted from 0, onto the device."""
        epoch, index = divmod(step, self.batches_an_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffle(epoch))
        chosen = self._epoch[1][index]
        latents = torch.cat([read_latents(each, self._latents) for each in chosen])
        texts = torch.cat([read_embedding(self._texts, self._captions[each.picture.stem]) for each in chosen])
        return Batch(latents.to(hardware.device), texts.to(hardware.device))

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
