"""Training of a LoRA: a low-rank pair beside each chosen projection, everything else as it was."""

import copy
import re
from collections.abc import Mapping
from typing import Any, Final

import torch

# Source: the reference recipe. Attention of the double-stream blocks on the picture's side, and both fused
# projections of the single-stream blocks, which hold attention and feed-forward in one.
TARGETS: Final = re.compile(
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
_BETAS: Final = (0.9, 0.999)
# A fraction, because the house keeps that number as it is commonly written for the API's learning rate alone.
_WEIGHT_DECAY: Final = 1 / 10_000
_MAX_GRADIENT_NORM: Final = 1.0


class LoraWeights:
    """The adapter of a transformer and its optimizer.

    On a GPU the adapter computes in bfloat16 like all else, while the optimizer keeps float32: a step is smaller than
    what bfloat16 can tell apart.
    """

    def __init__(self, transformer: Any, *, rank: int, learning_rate: float, seed: int) -> None:
        from peft import LoraConfig

        targets = [name for name, _ in transformer.named_modules() if TARGETS.fullmatch(name)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer.add_adapter(
                LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
            )
        self._transformer = transformer
        self._used = {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}
        self._kept = {
            name: weight if weight.dtype == torch.float32 else weight.detach().float().requires_grad_()
            for name, weight in self._used.items()
        }
        self._optimizer = torch.optim.AdamW(
            self._kept.values(), lr=learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
        )

    def learn(self, loss: torch.Tensor) -> None:
        """Take one step against the loss."""
        loss.backward()
        self._take_gradients()
        torch.nn.utils.clip_grad_norm_(self._kept.values(), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._give_weights()

    def state(self) -> dict[str, Any]:
        return {"weights": self._kept, "optimizer": self._optimizer.state_dict()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, weight in state["weights"].items():
            self._kept[name].copy_(weight)
        # What is loaded may lie in a file that is about to be removed.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._give_weights()

    def build_lora(self) -> dict[str, torch.Tensor]:
        """The adapter by the names that PEFT saves it under, in the type that it computes in."""
        from peft.utils import get_peft_model_state_dict

        layers: dict[str, torch.Tensor] = get_peft_model_state_dict(self._transformer)
        return layers

    def _take_gradients(self) -> None:
        for name, weight in self._used.items():
            kept = self._kept[name]
            if kept is not weight and weight.grad is not None:
                kept.grad, weight.grad = weight.grad.float(), None

    @torch.no_grad()
    def _give_weights(self) -> None:
        pairs = [(used, self._kept[name]) for name, used in self._used.items() if self._kept[name] is not used]
        if pairs:
            torch._foreach_copy_([used for used, _ in pairs], [kept for _, kept in pairs])
