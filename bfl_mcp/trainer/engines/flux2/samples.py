"""The same prompts before and after, each pair from the same noise: what differs is what was learned.

They are made with the file that was written, so what is seen is what whoever loads it will see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from bfl_mcp.trainer.engines.flux2.device import Hardware, release_memory
from bfl_mcp.trainer.engines.flux2.model import open_scheduler, open_transformer, open_vae
from bfl_mcp.trainer.engines.flux2.recipe import Recipe
from bfl_mcp.trainer.engines.flux2.store import read_tensor, write_tensor, write_whole
from bfl_mcp.trainer.engines.flux2.texts import read_embedding

# Source: the default of Flux2KleinPipeline for base models.
_GUIDANCE: Final = 4.0
_STEPS: Final = 28
# Pictures too small to show more.
_SMALL_PX: Final = 256
_STEPS_SMALL: Final = 8
# A sampling step goes forward through the transformer twice; a training step once for each picture of its batch, and
# back again, which takes twice as long.
_TRAINING_STEPS_A_STEP: Final = 2 / 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture to make. Numbers count the prompts from 1."""

    number: int
    prompt: str
    is_after: bool

    @property
    def name(self) -> str:
        return f"{self.number:02}-{'after' if self.is_after else 'before'}"


def list_samples(prompts: Sequence[str]) -> list[Sample]:
    """Both pictures of each prompt, all of before first."""
    return [
        Sample(number, prompt, is_after) for is_after in (False, True) for number, prompt in enumerate(prompts, start=1)
    ]


def count_steps(recipe: Recipe) -> int:
    """How many steps one picture is sampled in."""
    return _STEPS if recipe.sample_side_px >= _SMALL_PX else _STEPS_SMALL


def estimate_training_steps(prompts: Sequence[str], recipe: Recipe) -> float:
    """How many steps of training all samples take as long as, by and large."""
    return 2 * len(prompts) * count_steps(recipe) * _TRAINING_STEPS_A_STEP / recipe.batch_size


@dataclass(frozen=True, slots=True)
class Studio:
    """Makes samples of one finetune in two goes: latents with the transformer, then pictures without it.

    Decoding needs memory that the transformer would take. What an earlier run has left is not made again.
    """

    model: Path
    lora: Path
    texts: Path
    latents: Path
    folder: Path
    recipe: Recipe
    hardware: Hardware

    def make(self, samples: Sequence[Sample], tell: Callable[[int, int], None]) -> None:
        """Make each sample that is not there yet. `tell` takes the sampling steps done and those of all samples."""
        self.latents.mkdir(exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        missing = [sample for sample in samples if not self._picture(sample).exists()]
        to_draw = [sample for sample in missing if not self._drawn(sample).exists()]
        if to_draw:
            self._draw(to_draw, len(samples), tell)
            release_memory()
        if missing:
            self._decode(missing)
            release_memory()

    def _draw(self, samples: Sequence[Sample], of_all: int, tell: Callable[[int, int], None]) -> None:
        from diffusers import Flux2KleinPipeline

        pipeline = Flux2KleinPipeline(
            scheduler=open_scheduler(self.model),
            vae=open_vae(self.model, self.hardware),
            text_encoder=None,
            tokenizer=None,
            transformer=open_transformer(self.model, self.hardware).eval(),
        )
        pipeline.set_progress_bar_config(disable=True)
        each = count_steps(self.recipe)
        is_loaded = False
        for index, sample in enumerate(samples, start=of_all - len(samples)):
            if sample.is_after and not is_loaded:
                pipeline.load_lora_weights(str(self.lora.parent), weight_name=self.lora.name, adapter_name="lora")
                is_loaded = True
            drawn = self._sample(pipeline, sample, partial(_tell_step, tell, index * each, of_all * each))
            write_tensor(self._drawn(sample), drawn)

    def _sample(self, pipeline: Any, sample: Sample, tell: Callable[[int], None]) -> torch.Tensor:
        def after_step(_: Any, step: int, __: Any, ___: Any) -> dict[str, Any]:
            tell(step + 1)
            return {}

        drawn: torch.Tensor = pipeline(
            prompt_embeds=read_embedding(self.texts, sample.prompt).to(self.hardware.device),
            negative_prompt_embeds=read_embedding(self.texts, "").to(self.hardware.device),
            width=self.recipe.sample_side_px,
            height=self.recipe.sample_side_px,
            num_inference_steps=count_steps(self.recipe),
            guidance_scale=_GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(self.recipe.seed + sample.number),
            output_type="latent",
            callback_on_step_end=after_step,
        ).images
        return drawn

    @torch.no_grad()
    def _decode(self, samples: Sequence[Sample]) -> None:
        from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

        vae = open_vae(self.model, self.hardware)
        processor = Flux2ImageProcessor()
        for sample in samples:
            decoded = vae.decode(read_tensor(self._drawn(sample)).to(self.hardware.device), return_dict=False)[0]
            [picture] = processor.postprocess(decoded, output_type="pil")
            write_whole(self._picture(sample), partial(picture.save, format="PNG"))

    def _drawn(self, sample: Sample) -> Path:
        return self.latents / f"{sample.name}.safetensors"

    def _picture(self, sample: Sample) -> Path:
        return self.folder / f"{sample.name}.png"


def _tell_step(tell: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    tell(before + step, total)
