"""The training itself: batch after batch, with an eye on the loss, and a checkpoint often enough to lose little."""

import math
import statistics
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch

from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.checkpoint import Checkpoint, Checkpoints
from bfl_mcp.trainer.engines.flux2.examples import Examples
from bfl_mcp.trainer.engines.flux2.objective import Draws, flow_loss
from bfl_mcp.trainer.engines.flux2.recipe import Recipe

CHECKPOINT_EVERY: Final = 50
# Single losses jump with the noise level drawn: only many of them tell a training that falls apart.
_WINDOW: Final = 25
_DIVERGED_AT: Final = 3.0


class Trainee(Protocol):
    """The weights that learn, with their optimizer."""

    def learn(self, loss: torch.Tensor) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def train(
    transformer: Any,
    trainee: Trainee,
    examples: Examples,
    scheduler: Any,
    recipe: Recipe,
    checkpoints: Checkpoints,
    tell: Callable[[list[float]], None],
) -> list[float]:
    """Train from the newest checkpoint to the last iteration and give the loss of every step.

    `tell` is called after each step with all losses so far.

    Raises:
        TrainingError: The loss is no number any more, or has grown far beyond where it began.
    """
    losses = _resume(trainee, checkpoints)
    if recipe.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    draws = Draws(recipe.seed)
    for step in range(len(losses), recipe.iterations):
        loss = flow_loss(transformer, examples.read_batch(step), scheduler, draws.for_step(step))
        value = loss.item()
        check_loss(losses, value, recipe)
        trainee.learn(loss)
        losses.append(value)
        if len(losses) % CHECKPOINT_EVERY == 0 or len(losses) == recipe.iterations:
            checkpoints.write(Checkpoint(losses, trainee.state()))
        tell(losses)
    return losses


def _resume(trainee: Trainee, checkpoints: Checkpoints) -> list[float]:
    """Take up the newest checkpoint. Its file is let go again: it will be removed when the next one is written."""
    found = checkpoints.read()
    if found is None:
        return []
    trainee.load_state(found.state)
    return found.losses


def check_loss(losses: list[float], value: float, recipe: Recipe) -> None:
    """Stop a training that only wastes time from here on.

    Raises:
        TrainingError: It has gone wrong; the message says how, and what to change.
    """
    step = len(losses) + 1
    remedy = f"Start again with a lower learning_rate; it was {recipe.learning_rate:g}."
    if not math.isfinite(value):
        if not losses:
            remedy = "Nothing was learned yet, so the base model is at fault: download it again, or name another."
        raise TrainingError(f"The loss of step {step} is no number ({value}). {remedy}")
    if len(losses) < 2 * _WINDOW:
        return
    began, now = statistics.fmean(losses[:_WINDOW]), statistics.fmean([*losses[1 - _WINDOW :], value])
    if now > _DIVERGED_AT * began:
        raise TrainingError(
            f"The training diverges: its loss has grown from {began:.3g} to {now:.3g} by step {step}. {remedy}"
        )
