"""One finetune from its pictures to its files, stage after stage, each going on from what an earlier run has left."""

import errno
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bfl_mcp.contract import FinetuneType, Priority
from bfl_mcp.trainer.engines import Report, TrainingError
from bfl_mcp.trainer.engines.flux2.adapter import LoraWeights
from bfl_mcp.trainer.engines.flux2.captioner import write_captions
from bfl_mcp.trainer.engines.flux2.captions import Caption, keep_captions, read_captions, settle_captions
from bfl_mcp.trainer.engines.flux2.card import Facts, write_card
from bfl_mcp.trainer.engines.flux2.checkpoint import Checkpoints, find_newest_step
from bfl_mcp.trainer.engines.flux2.curve import draw_curve
from bfl_mcp.trainer.engines.flux2.device import Hardware, explained_shortage, find_hardware, release_memory
from bfl_mcp.trainer.engines.flux2.download import find_base_model, find_captioner
from bfl_mcp.trainer.engines.flux2.examples import Cache, Examples
from bfl_mcp.trainer.engines.flux2.extract import extract_lora
from bfl_mcp.trainer.engines.flux2.full import FullWeights
from bfl_mcp.trainer.engines.flux2.latents import cache_latents
from bfl_mcp.trainer.engines.flux2.lora_file import FILE_NAME, describe_origin, read_kept_energy, write_lora
from bfl_mcp.trainer.engines.flux2.model import BaseWeights, open_scheduler, open_transformer
from bfl_mcp.trainer.engines.flux2.pictures import Placed, list_pictures, place_pictures
from bfl_mcp.trainer.engines.flux2.recipe import Recipe, build_recipe
from bfl_mcp.trainer.engines.flux2.samples import Studio, estimate_training_steps, list_samples
from bfl_mcp.trainer.engines.flux2.store import remove_parts, write_text
from bfl_mcp.trainer.engines.flux2.telling import Telling
from bfl_mcp.trainer.engines.flux2.texts import cache_embeddings
from bfl_mcp.trainer.engines.flux2.training import train
from bfl_mcp.trainer.jobs import Job, JobGoneError
from bfl_mcp.trainer.needs import choose_plan, count_pixels, list_plans
from bfl_mcp.trainer.shapes import read_shape

_PROMPTS: Final = 2
_WRITER: Final = "PytorchStreamWriter failed writing file"
_FULL_DISK: Final = (
    "The disk became full. Make room where the trainer keeps its data (BFL_MCP_HOME, or --data) and the hub its cache "
    "(HF_HOME), then start again. finetune_type='lora' needs the least."
)
_CAPTIONS_TOLD: Final = 3
# Single losses jump with the noise level that was drawn.
_LOSSES_TOLD: Final = 20


def flux2(job: Job, report: Report) -> None:
    """Train one finetune to its end.

    Raises:
        TrainingError: It cannot be trained as asked; the message says what to change.
        JobGoneError: It was deleted.
    """
    if not job.read_outcome():
        _quieten()
        try:
            with explained_shortage(_remedy(job.parameters)):
                _Finetune(job, report).run()
        except OSError as error:
            # Whoever deletes a finetune takes the files away that it is being trained from.
            if not job.folder.exists():
                raise JobGoneError(job.finetune_id) from None
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise TrainingError(_FULL_DISK) from None
            raise
        except RuntimeError as error:
            # What PyTorch makes of a disk that takes no more of a checkpoint.
            if _WRITER in str(error):
                raise TrainingError(_FULL_DISK) from None
            raise
    shutil.rmtree(job.folder / "cache", ignore_errors=True)
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)


def _remedy(parameters: Mapping[str, Any]) -> str:
    choices = ["finetune_type='lora'"] * (parameters["finetune_type"] == "full")
    choices += ["priority='speed'"] * (parameters["priority"] != "speed")
    with_choices = f"with {' or '.join(choices)}, or " if choices else ""
    return f"Start again {with_choices}with a smaller BFL_TRAINER_MAX_PX, and nothing else on the GPU."


def _quieten() -> None:
    """Keep bars and hints of the libraries out of the worker's log."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class _Trained:
    """What training has come to. `kept_energy` is None where a LoRA was trained as one."""

    losses: list[float]
    kept_energy: float | None


class _Finetune:
    """The stages of one job. Each leaves on disk what the next one needs, and nothing in memory."""

    def __init__(self, job: Job, report: Report) -> None:
        self._job, self._folder = job, job.folder
        self._cache = Cache(latents=self._folder / "cache" / "latents", texts=self._folder / "cache" / "texts")
        self._hardware = find_hardware()
        remove_parts(self._folder)
        # Never with its parents: a folder that was deleted must not come back.
        (self._folder / "cache").mkdir(exist_ok=True)
        self._telling = Telling(job, report, find_newest_step(self._folder / "checkpoints"))
        self._telling.begin(f"beginning on {self._hardware.name}")

    def run(self) -> None:
        model, telling = self._job.options["model"], self._telling
        base = find_base_model(model, telling.counting_bytes("downloading the base model"))
        recipe = _settle_recipe(self._job, base, self._hardware)
        placed = self._place(recipe)
        captions = self._caption(placed, recipe)
        texts = {name: caption.text for name, caption in captions.items()}
        prompts = list(dict.fromkeys(text for text in texts.values() if text))[:_PROMPTS]
        # The pipeline steers away from the empty text when it samples.
        cache_embeddings(
            base, [*texts.values(), ""], self._cache.texts, self._hardware, telling.counting("embedding {} of {} texts")
        )
        cache_latents(base, placed, self._cache.latents, self._hardware, telling.counting("encoding {} of {} images"))
        origin = describe_origin(model, self._job.folder / "dataset", self._job.parameters)
        examples = Examples(placed, texts, self._cache, recipe, self._hardware)
        trained = self._train(base, examples, recipe, origin, prompts)
        release_memory()
        samples = list_samples(prompts)
        self._studio(base, recipe).make(samples, telling.counting_samples())
        telling.begin("writing the model card")
        draw_curve(self._folder / "loss.png", trained.losses)
        write_card(
            self._folder / "README.md", Facts(recipe, origin, captions, samples, trained.losses, trained.kept_energy)
        )
        pictures = [f"samples/{sample.name}.png" for sample in sorted(samples, key=lambda sample: sample.number)]
        self._job.write_outcome(_outcome(model, recipe, captions, trained, pictures))

    def _place(self, recipe: Recipe) -> list[Placed]:
        pictures = list_pictures(self._folder / "dataset")
        placed = place_pictures(pictures, recipe)
        if left_out := len(pictures) - len(placed):
            self._telling.log(f"{left_out} of {len(pictures)} images left out: priority='high_res_only'")
        return placed

    def _caption(self, placed: Sequence[Placed], recipe: Recipe) -> dict[str, Caption]:
        pictures = [each.picture for each in placed]
        folder, telling = self._folder / "cache" / "captions", self._telling
        own = read_captions(self._folder / "dataset", pictures)
        if recipe.captioning:
            tell_bytes = telling.counting_bytes("downloading the captioner")
            write_captions(
                lambda: find_captioner(self._job.options["captioner"], tell_bytes),
                [picture for picture in pictures if picture.name not in own],
                recipe.mode,
                folder,
                self._hardware,
                telling.counting("captioning {} of {} images"),
            )
        captions = settle_captions(pictures, own, read_captions(folder, pictures), recipe.trigger_word)
        keep_captions(self._folder / "captions.json", captions)
        return captions

    def _train(
        self, base: Path, examples: Examples, recipe: Recipe, origin: Mapping[str, str], prompts: Sequence[str]
    ) -> _Trained:
        lora, told = self._folder / FILE_NAME, self._folder / "losses.json"
        if lora.exists():
            return _Trained(json.loads(told.read_bytes()), read_kept_energy(lora))
        telling = self._telling
        telling.begin("opening the transformer")
        transformer = open_transformer(base, self._hardware)
        trainee: LoraWeights | FullWeights
        if recipe.finetune_type == "lora":
            trainee = LoraWeights(transformer, rank=recipe.rank, learning_rate=recipe.learning_rate, seed=recipe.seed)
        else:
            trainee = FullWeights(transformer, learning_rate=recipe.learning_rate)
        later_steps = estimate_training_steps(prompts, recipe)
        losses = train(
            transformer,
            trainee,
            examples,
            open_scheduler(base),
            recipe,
            Checkpoints(self._folder / "checkpoints", f"{recipe.to_json()} {origin['dataset_sha256']}"),
            lambda losses: telling.training(losses, later_steps),
        )
        kept: float | None = None
        if isinstance(trainee, LoraWeights):
            telling.begin("writing the LoRA")
            layers = trainee.build_lora()
        else:
            extraction = extract_lora(
                trainee,
                BaseWeights(base),
                recipe.rank,
                self._hardware.dtype,
                telling.counting("extracting the LoRA, {} of {} matrices"),
            )
            layers, kept = extraction.layers, extraction.kept_energy
        write_text(told, json.dumps(losses) + "\n")
        write_lora(lora, layers, recipe, origin, kept)
        return _Trained(losses, kept)

    def _studio(self, base: Path, recipe: Recipe) -> Studio:
        return Studio(
            model=base,
            lora=self._folder / FILE_NAME,
            texts=self._cache.texts,
            latents=self._folder / "cache" / "samples",
            folder=self._folder / "samples",
            recipe=recipe,
            hardware=self._hardware,
        )


def _settle_recipe(job: Job, base: Path, hardware: Hardware) -> Recipe:
    """Decide how this finetune is trained, once: the memory that is free now may be another when it is resumed."""
    path = job.folder / "recipe.json"
    if path.exists():
        return Recipe(**json.loads(path.read_bytes()))
    kind: FinetuneType = job.parameters["finetune_type"]
    priority: Priority = job.parameters["priority"]
    max_px = job.options.get("max_px")
    pixels = count_pixels(priority, max_px)
    plans = list_plans(read_shape(base), kind, priority, job.parameters["lora_rank"], pixels)
    # What should not fit is tried in the leanest way: estimates err.
    plan = choose_plan(plans, hardware.read_free_bytes()) or plans[-1]
    recipe = build_recipe(
        job.parameters,
        max_px=max_px,
        batch_size=plan.batch_size,
        gradient_checkpointing=plan.gradient_checkpointing,
        seed=job.options.get("seed"),
    )
    write_text(path, recipe.to_json() + "\n")
    return recipe


def _outcome(
    model: str, recipe: Recipe, captions: Mapping[str, Caption], trained: _Trained, pictures: Sequence[str]
) -> dict[str, Any]:
    return {
        "base_model": model,
        "seed": recipe.seed,
        "loss_first": statistics.fmean(trained.losses[:_LOSSES_TOLD]),
        "loss_last": statistics.fmean(trained.losses[-_LOSSES_TOLD:]),
        "kept_energy": trained.kept_energy,
        "captions": {
            "count": len(captions),
            "written": sum(caption.source == "written" for caption in captions.values()),
            "first": [caption.text for caption in captions.values()][:_CAPTIONS_TOLD],
        },
        "files": [FILE_NAME, "README.md", "loss.png", "losses.json", "captions.json", *pictures],
    }
