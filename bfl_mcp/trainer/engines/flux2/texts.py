"""Captions and prompts as the transformer sees them: embedded once, kept on disk, and then the encoder is gone."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from bfl_mcp.trainer.engines.flux2.device import Hardware, release_memory
from bfl_mcp.trainer.engines.flux2.model import TEXT_LAYERS, count_text_tokens, open_text_encoder, open_tokenizer
from bfl_mcp.trainer.engines.flux2.store import read_tensor, write_tensor


def cache_embeddings(
    model: Path, texts: Iterable[str], cache: Path, hardware: Hardware, tell: Callable[[int, int], None]
) -> None:
    """Embed the texts that are not in the cache yet. One that many pictures share is embedded once."""
    wanted = list(dict.fromkeys(texts))
    missing = [text for text in wanted if not _path(cache, text).exists()]
    if not missing:
        return
    done = len(wanted) - len(missing)
    tell(done, len(wanted))
    cache.mkdir(exist_ok=True)
    tokenizer, encoder = open_tokenizer(model), open_text_encoder(model, hardware)
    for text in missing:
        write_tensor(_path(cache, text), embed_text(tokenizer, encoder, text))
        done += 1
        tell(done, len(wanted))
    del encoder
    release_memory()


def read_embedding(cache: Path, text: str) -> torch.Tensor:
    """The embedding of one text, of shape (1, tokens, channels)."""
    return read_tensor(_path(cache, text))


@torch.no_grad()
def embed_text(tokenizer: Any, encoder: Any, text: str) -> torch.Tensor:
    """Embed as the pipeline does when it samples: its chat format, padded to full length, three layers side by side."""
    from diffusers import Flux2KleinPipeline

    embedded: torch.Tensor = Flux2KleinPipeline._get_qwen3_prompt_embeds(  # noqa: SLF001 - what it samples with
        encoder,
        tokenizer,
        text,
        max_sequence_length=count_text_tokens(tokenizer),
        hidden_states_layers=list(TEXT_LAYERS),
    )
    return embedded


def _path(cache: Path, text: str) -> Path:
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
