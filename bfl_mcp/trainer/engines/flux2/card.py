"""The model card: what the LoRA is, how it was made, how to use it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bfl_mcp.trainer.engines.flux2.captions import Caption
from bfl_mcp.trainer.engines.flux2.recipe import Recipe
from bfl_mcp.trainer.engines.flux2.samples import Sample
from bfl_mcp.trainer.engines.flux2.store import write_text

# Source: BFL's page on LoRAs of FLUX.2 [klein], 2026.
_UPLOAD: Final = (
    "At Black Forest Labs: dashboard → Customization → Finetunes → Add Finetune, with `lora.safetensors`, the same "
    "base model, and the trigger word as trigger phrase."
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card is made of."""

    recipe: Recipe
    origin: Mapping[str, str]
    captions: Mapping[str, Caption]
    samples: Sequence[Sample]
    losses: Sequence[float]
    kept_energy: float | None


def write_card(path: Path, facts: Facts) -> None:
    """Write the card as Markdown, with the front matter that the hub reads."""
    parts = [_front(facts), "# A LoRA for FLUX.2 [klein]", _about(facts), "## Use", *_use(facts)]
    if facts.samples:
        parts += ["## Before and after", _pictures(facts.samples)]
    parts += ["## Training", "![Loss of each training step](loss.png)", _numbers(facts)]
    write_text(path, "\n\n".join(parts) + "\n")


def _front(facts: Facts) -> str:
    values = {
        "base_model": facts.origin["base_model"],
        "instance_prompt": facts.recipe.trigger_word,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "lora", "diffusers", "flux2", "flux2-klein"],
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _about(facts: Facts) -> str:
    recipe, base = facts.recipe, _code(facts.origin["base_model"])
    said = [f"Rank {recipe.rank}, for {base}, whose licence applies to it too."]
    if recipe.trigger_word:
        said.append(f"Put {_code(recipe.trigger_word)} into prompts: it stands for what was learned.")
    if facts.kept_energy is not None:
        said.append(
            "All weights were trained, then the LoRA was extracted from their change, of which it holds "
            f"{facts.kept_energy:.1%}."
        )
    return " ".join(said)


def _use(facts: Facts) -> list[str]:
    prompt = facts.samples[0].prompt if facts.samples else facts.recipe.trigger_word
    example = (
        "import torch\n"
        "from diffusers import Flux2KleinPipeline\n\n"
        f"pipeline = Flux2KleinPipeline.from_pretrained({facts.origin['base_model']!r}, torch_dtype=torch.bfloat16)\n"
        'pipeline.to("cuda").load_lora_weights(".", weight_name="lora.safetensors")\n'
        f"pipeline(prompt={prompt!r}).images[0].save('picture.png')"
    )
    return [
        _fenced(example, "python"),
        _UPLOAD,
    ]


def _pictures(samples: Sequence[Sample]) -> str:
    rows = ["| before | after |", "|---|---|"]
    prompts = []
    for sample in samples:
        if not sample.is_after:
            number = f"{sample.number:02}"
            rows.append(f"| ![before](samples/{number}-before.png) | ![after](samples/{number}-after.png) |")
            prompts.append(f"{sample.number}: {sample.prompt}")
    return "\n".join(rows) + "\n\nThe prompts, from top to bottom:\n\n" + _fenced("\n".join(prompts), "text")


def _numbers(facts: Facts) -> str:
    recipe = facts.recipe
    written = sum(caption.source == "written" for caption in facts.captions.values())
    rows = {
        "type": recipe.finetune_type,
        "iterations": recipe.iterations,
        "learning rate": f"{recipe.learning_rate:g}",
        "images": f"{len(facts.captions)}, {written} of them captioned by a model",
        "pixels an image": f"up to {recipe.bucket_pixels}",
        "batch": recipe.batch_size,
        "seed": recipe.seed,
        "loss, first and last step": f"{facts.losses[0]:.4f}, {facts.losses[-1]:.4f}",
        "SHA-256 of the dataset": facts.origin["dataset_sha256"],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _code(text: str) -> str:
    """A text as code in a line, which it cannot end."""
    plain = " ".join(text.split())
    fence = "`" * (_longest_run(plain) + 1)
    edge = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{edge}{plain}{edge}{fence}"


def _fenced(text: str, language: str) -> str:
    """A text as a block of code, which it cannot end."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
