"""What the transformer is trained for: to point from a picture to the noise it was mixed with.

Flow matching as in the reference recipe of diffusers: one uniformly drawn timestep for each picture, the scheduler's
own noise level at it, no weighting, no guidance.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch

from bfl_mcp.trainer.engines.flux2.examples import Batch

_STRIDE: Final = 1_000_003


@dataclass(frozen=True, slots=True)
class Mixture:
    """Pictures mixed with noise: what the transformer is shown, at which timestep, and what it should answer."""

    shown: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


class Draws:
    """The chance in a training. What a step draws depends on the seed and the step alone.

    Thus the random state of a checkpoint is its step, and a GPU draws the same numbers as a CPU.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generator = torch.Generator("cpu")

    def for_step(self, step: int) -> torch.Generator:
        return self._generator.manual_seed(self._seed * _STRIDE + step)


def mix(latents: torch.Tensor, scheduler: Any, draws: torch.Generator) -> Mixture:
    """Mix each picture with noise, at a noise level drawn for it."""
    noise = torch.randn(latents.shape, generator=draws).to(latents)
    drawn = torch.rand(latents.shape[0], generator=draws)
    index = (drawn * scheduler.config.num_train_timesteps).long()
    sigma = scheduler.sigmas[index].to(latents).view(-1, 1, 1, 1)
    timesteps = scheduler.timesteps[index].to(latents.device) / scheduler.config.num_train_timesteps
    return Mixture((1 - sigma) * latents + sigma * noise, timesteps, noise - latents)


def flow_loss(transformer: Any, batch: Batch, scheduler: Any, draws: torch.Generator) -> torch.Tensor:
    """The mean squared error of the transformer's answer over one batch."""
    mixture = mix(batch.latents, scheduler, draws)
    _, _, rows, columns = batch.latents.shape
    answer = transformer(
        hidden_states=pack(mixture.shown),
        timestep=mixture.timesteps,
        guidance=None,
        encoder_hidden_states=batch.texts,
        txt_ids=text_ids(batch.texts.shape[1], batch.texts.device),
        img_ids=picture_ids(rows, columns, batch.latents.device),
        return_dict=False,
    )[0]
    return torch.nn.functional.mse_loss(answer.float(), pack(mixture.target).float())


def pack(latents: torch.Tensor) -> torch.Tensor:
    """From (n, channels, rows, columns) to one token for each place, row by row."""
    return latents.flatten(2).transpose(1, 2)


@cache
def text_ids(tokens: int, device: torch.device) -> torch.Tensor:
    ids = torch.zeros(tokens, 4, dtype=torch.int64)
    ids[:, 3] = torch.arange(tokens)
    return ids.to(device)


@cache
def picture_ids(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    ids = torch.zeros(rows, columns, 4, dtype=torch.int64)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.view(-1, 4).to(device)
