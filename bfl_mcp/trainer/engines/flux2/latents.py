"""Pictures as the transformer sees them: encoded once, kept on disk, and then the autoencoder is gone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bfl_mcp.trainer.engines.flux2.device import Hardware, release_memory
from bfl_mcp.trainer.engines.flux2.model import open_vae
from bfl_mcp.trainer.engines.flux2.pictures import Placed, fit_picture, open_picture
from bfl_mcp.trainer.engines.flux2.store import read_tensor, write_tensor


def cache_latents(
    model: Path, placed: Sequence[Placed], cache: Path, hardware: Hardware, tell: Callable[[int, int], None]
) -> None:
    """Encode the pictures that are not in the cache yet."""
    missing = [each for each in placed if not _path(cache, each).exists()]
    if not missing:
        return
    done = len(placed) - len(missing)
    tell(done, len(placed))
    cache.mkdir(exist_ok=True)
    vae = open_vae(model, hardware)
    for each in missing:
        write_tensor(_path(cache, each), encode_pixels(vae, read_pixels(each, hardware)))
        done += 1
        tell(done, len(placed))
    del vae
    release_memory()


def read_latents(cache: Path, placed: Placed) -> torch.Tensor:
    """Latents of one picture, of shape (1, channels, rows, columns)."""
    return read_tensor(_path(cache, placed))


def read_pixels(placed: Placed, hardware: Hardware) -> torch.Tensor:
    """Pixels from -1 to 1, of shape (1, 3, height, width)."""
    fitted = fit_picture(open_picture(placed.picture), placed.bucket)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, placed.bucket.height_px, placed.bucket.width_px, 3).permute(0, 3, 1, 2)
    return (pixels.to(hardware.device, torch.float32) / 127.5 - 1).to(hardware.dtype)


@torch.no_grad()
def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Encode as Flux2KleinPipeline does: the mode, 2 x 2 patches into channels, then the batch norm's statistics."""
    from diffusers import Flux2KleinPipeline

    latents = Flux2KleinPipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())  # noqa: SLF001 - its own
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(latents)
    normal: torch.Tensor = (latents - mean) / deviation
    return normal


def _path(cache: Path, placed: Placed) -> Path:
    return cache / f"{placed.picture.stem}-{placed.bucket.width_px}x{placed.bucket.height_px}.safetensors"
