"""Training of all weights in the memory of one copy of them.

Each weight is updated in the backward pass as soon as its gradient is known, and the gradient is dropped. The optimizer
is Adafactor, which remembers a row and a column for each matrix.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, cast

import torch

_DECAY: Final = -0.8
_SMALLEST_SQUARE: Final = 1e-30
_LARGEST_UPDATE: Final = 1.0
_HALF_STEP: Final = 1 << 15


class FullWeights:
    """The matrices of a transformer, which are all of it that a LoRA can carry. What else it has stays as it is.

    A bfloat16 weight is too coarse for a step, so the bits that it lacks to a float32 are kept beside it: 4 bytes for
    each weight instead of the 6 of a separate float32 copy.
    """

    def __init__(self, transformer: Any, *, learning_rate: float) -> None:
        self._weights: dict[str, torch.Tensor] = {}
        self._rest: dict[str, torch.Tensor] = {}
        self._squares: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._learning_rate = learning_rate
        self._step = 0
        for name, module in transformer.named_modules():
            if isinstance(module, torch.nn.Linear):
                self._take(f"{name}.weight", cast("torch.nn.Parameter", module.weight))

    def learn(self, loss: torch.Tensor) -> None:
        """Take one step against the loss; the weights have changed when it returns."""
        self._step += 1
        loss.backward()

    def state(self) -> dict[str, Any]:
        return {"step": self._step, "weights": self._weights, "rest": self._rest, "squares": self._squares}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._step = state["step"]
        for name, weight in self._weights.items():
            weight.copy_(state["weights"][name])
            for kept, saved in zip(self._squares[name], state["squares"][name], strict=True):
                kept.copy_(saved)
        for name, rest in self._rest.items():
            rest.copy_(state["rest"][name])

    def names(self) -> tuple[str, ...]:
        return tuple(self._weights)

    def read_weight(self, name: str) -> torch.Tensor:
        """One trained matrix, as exact as it is known. On a CPU it is the weight itself."""
        return self._read(name)

    def _take(self, name: str, weight: torch.nn.Parameter) -> None:
        weight.requires_grad_()
        rows, columns = weight.shape
        self._weights[name] = weight
        self._squares[name] = (
            weight.new_zeros(rows, dtype=torch.float32),
            weight.new_zeros(columns, dtype=torch.float32),
        )
        if weight.dtype == torch.bfloat16:
            self._rest[name] = torch.zeros_like(weight, dtype=torch.int16)
        weight.register_post_accumulate_grad_hook(partial(self._update, name))

    @torch.no_grad()
    def _update(self, name: str, weight: torch.Tensor) -> None:
        assert weight.grad is not None  # noqa: S101 - the hook runs when it has been made
        gradient, weight.grad = weight.grad.float(), None
        rows, columns = self._squares[name]
        share = self._step**_DECAY
        square = gradient.square().add_(_SMALLEST_SQUARE)
        rows.lerp_(square.mean(dim=1), share)
        columns.lerp_(square.mean(dim=0), share)
        del square
        update = gradient.mul_((rows / rows.mean()).rsqrt_()[:, None]).mul_(columns.rsqrt())
        size = update.norm(2) / update.numel() ** 0.5
        update.mul_(-self._learning_rate / (size / _LARGEST_UPDATE).clamp_(min=1.0))
        if name in self._rest:
            self._write(name, self._read(name).add_(update))
        else:
            weight.add_(update)

    def _read(self, name: str) -> torch.Tensor:
        weight = self._weights[name].detach()
        if name not in self._rest:
            return weight
        return (weight.view(torch.int16).to(torch.int32) << 16).add_(self._rest[name]).view(torch.float32)

    def _write(self, name: str, value: torch.Tensor) -> None:
        """Part a float32 into the nearest bfloat16 and what it is off by, in units of the last place."""
        bits = value.view(torch.int32)
        high = (bits + _HALF_STEP) >> 16
        self._weights[name].detach().view(torch.int16).copy_(high)
        self._rest[name].copy_(bits - (high << 16))
