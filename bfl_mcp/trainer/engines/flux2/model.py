"""The base model in its folder, opened one part at a time: no two large parts are in memory together."""

from pathlib import Path
from typing import Any, Final

import torch

from bfl_mcp.trainer.engines.flux2.device import Hardware
from bfl_mcp.trainer.needs import MAX_TEXT_TOKENS

# Source: the default of Flux2KleinPipeline.encode_prompt. The reference script's own default is FLUX.2 [dev]'s.
TEXT_LAYERS: Final = (9, 18, 27)


def count_text_tokens(tokenizer: Any) -> int:
    """How many tokens a text is padded to. A model of somebody's own makes may read less than the published ones."""
    return min(MAX_TEXT_TOKENS, int(tokenizer.model_max_length))


def open_tokenizer(folder: Path) -> Any:
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(folder, subfolder="tokenizer")


def open_text_encoder(folder: Path, hardware: Hardware) -> Any:
    """Open the text encoder up to the last layer that is read: the others and its head have no say in the embedding."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config.from_pretrained(folder, subfolder="text_encoder")
    # One layer more than the last that is read: what comes out of the end is normalised.
    depth = min(config.num_hidden_layers, max(TEXT_LAYERS) + 1)
    config.num_hidden_layers, config.layer_types = depth, config.layer_types[:depth]
    encoder = Qwen3Model.from_pretrained(folder, subfolder="text_encoder", config=config, dtype=hardware.dtype)
    return encoder.to(hardware.device).requires_grad_(False).eval()


def open_vae(folder: Path, hardware: Hardware) -> Any:
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2.from_pretrained(folder, subfolder="vae", torch_dtype=hardware.dtype)
    return vae.to(hardware.device).requires_grad_(False).eval()


def open_transformer(folder: Path, hardware: Hardware) -> Any:
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=hardware.dtype)
    return transformer.to(hardware.device).requires_grad_(False)


def open_scheduler(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")


class BaseWeights:
    """The transformer's weights as they lie on disk, by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files = [safe_open(file, framework="pt") for file in sorted((folder / "transformer").glob("*.safetensors"))]
        self._at = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no mapping

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._at[name].get_tensor(name)
        return tensor
