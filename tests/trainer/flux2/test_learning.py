"""What the weights do: they learn what the pictures show, lose nothing when killed, and say so when they go wrong."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.flux2.work import FULL, Done, Models, StopHere, put, stop_at, train

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.adapter import LoraWeights
from bfl_mcp.trainer.engines.flux2.checkpoint import Checkpoints
from bfl_mcp.trainer.engines.flux2.device import Hardware, explained_shortage
from bfl_mcp.trainer.engines.flux2.examples import Cache, Examples
from bfl_mcp.trainer.engines.flux2.extract import extract_lora
from bfl_mcp.trainer.engines.flux2.full import FullWeights
from bfl_mcp.trainer.engines.flux2.latents import cache_latents, read_pixels
from bfl_mcp.trainer.engines.flux2.lora_file import write_lora
from bfl_mcp.trainer.engines.flux2.model import BaseWeights, open_scheduler, open_transformer
from bfl_mcp.trainer.engines.flux2.objective import Draws, flow_loss, pack, picture_ids, text_ids
from bfl_mcp.trainer.engines.flux2.pictures import list_pictures, place_pictures
from bfl_mcp.trainer.engines.flux2.recipe import Recipe, build_recipe
from bfl_mcp.trainer.engines.flux2.texts import cache_embeddings
from bfl_mcp.trainer.engines.flux2.training import check_loss
from bfl_mcp.trainer.engines.flux2.training import train as train_weights

pytestmark = pytest.mark.timeout(180)
CPU = Hardware(torch.device("cpu"), torch.float32)
COARSE_CPU = Hardware(torch.device("cpu"), torch.bfloat16)


def recipe_for(parameters: Mapping[str, Any], **changes: Any) -> Recipe:
    return build_recipe({**parameters, **changes}, max_px=64)


def encode(folder: Path, job: Done, models: Models, hardware: Hardware = CPU) -> Examples:
    """The pictures and captions of a finetune, encoded anew: what it was trained from is gone."""
    recipe = recipe_for(job.job.parameters)
    placed = place_pictures(list_pictures(job.job.folder / "dataset"), recipe)
    kept = json.loads((job.job.folder / "captions.json").read_bytes())
    captions = {name: caption["text"] for name, caption in kept.items()}
    cache = Cache(latents=folder / "latents", texts=folder / "texts")
    cache_embeddings(models.klein, [*captions.values(), ""], cache.texts, hardware, lambda *_: None)
    cache_latents(models.klein, placed, cache.latents, hardware, lambda *_: None)
    return Examples(placed, captions, cache, recipe, hardware)


@torch.no_grad()
def fixed_loss(transformer: Any, examples: Examples, scheduler: Any, draws: int = 60) -> float:
    """The mean loss over noise that no training has drawn."""
    chance = Draws(7)
    losses = [
        flow_loss(transformer, examples.read_batch(index), scheduler, chance.for_step(10**6 + index)).item()
        for index in range(draws)
    ]
    return math.fsum(losses) / draws


def load(transformer: Any, lora: Path, scheduler: Any) -> None:
    from diffusers import Flux2KleinPipeline

    Flux2KleinPipeline(
        scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer
    ).load_lora_weights(str(lora.parent), weight_name=lora.name)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_loss_on_fixed_draws_falls(
    kind: str, request: pytest.FixtureRequest, models: Models, tmp_path: Path
) -> None:
    """The losses of single steps jump with the noise; over the same noise the file that was written must do better."""
    done: Done = request.getfixturevalue(kind)
    examples, scheduler = encode(tmp_path, done, models), open_scheduler(models.klein)
    transformer = open_transformer(models.klein, CPU)
    before = fixed_loss(transformer, examples, scheduler)

    load(transformer, done.lora, scheduler)
    after = fixed_loss(transformer, examples, scheduler)

    assert after < before - (0.03 if kind == "lora" else 0.2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_training_that_was_interrupted_ends_with_the_same_file(
    kind: str, request: pytest.FixtureRequest, models: Models, tmp_path: Path
) -> None:
    """Interrupted between checkpoints, right after one, and while it samples: bit for bit the same LoRA."""
    done: Done = request.getfixturevalue(kind)
    job = put(tmp_path, models, **(FULL if kind == "full" else {}))
    for stop in (stop_at(3), stop_at(67), stop_at(50), stop_at(100, "sampling before and after, step 12")):
        with pytest.raises(StopHere):
            train(job, stop)

    train(job)

    for name in ("lora.safetensors", "losses.json", "captions.json", "README.md", "loss.png"):
        assert (job.folder / name).read_bytes() == (done.job.folder / name).read_bytes(), name
    for sample in (done.job.folder / "samples").iterdir():
        assert (job.folder / "samples" / sample.name).read_bytes() == sample.read_bytes(), sample.name


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bfloat16_learns_and_resumes_like_float32(kind: str, lora: Done, models: Models, tmp_path: Path) -> None:
    """On a GPU a step is smaller than what bfloat16 tells apart: what it lacks is kept, and kept in checkpoints too."""
    examples, scheduler = encode(tmp_path, lora, models, COARSE_CPU), open_scheduler(models.klein)
    parameters = {**lora.job.parameters, "finetune_type": kind, "iterations": 60}

    def go(folder: Path, stop: int | None = None, lean: bool = False) -> Any:
        transformer = open_transformer(models.klein, COARSE_CPU)
        recipe = build_recipe(parameters, max_px=64, gradient_checkpointing=lean)
        trainee: Any = (
            LoraWeights(transformer, rank=16, learning_rate=recipe.learning_rate, seed=1)
            if kind == "lora"
            else FullWeights(transformer, learning_rate=recipe.learning_rate)
        )

        def tell(losses: list[float]) -> None:
            if len(losses) == stop:
                raise StopHere

        train_weights(transformer, trainee, examples, scheduler, recipe, Checkpoints(folder, "this"), tell)
        return transformer

    at_once = go(tmp_path / "at-once")
    with pytest.raises(StopHere):
        go(tmp_path / "stopped", stop=55)
    resumed, lean = go(tmp_path / "stopped"), go(tmp_path / "lean", lean=True)

    before = fixed_loss(open_transformer(models.klein, COARSE_CPU), examples, scheduler)
    assert fixed_loss(at_once, examples, scheduler) < before - 0.005
    # Working blocks out again to save memory changes no number either.
    for other in (resumed, lean):
        weights = dict(other.named_parameters())
        assert all(torch.equal(weight, weights[name]) for name, weight in at_once.named_parameters())


def test_a_lora_of_full_rank_is_the_model_that_was_trained(full: Done, models: Models, tmp_path: Path) -> None:
    """What extraction throws away is a matter of rank alone, and the share it reports is the truth."""
    examples, scheduler = encode(tmp_path, full, models), open_scheduler(models.klein)
    trained = open_transformer(models.klein, CPU)
    weights, base = FullWeights(trained, learning_rate=1e-4), BaseWeights(models.klein)
    recipe = recipe_for(full.job.parameters, iterations=20)
    train_weights(trained, weights, examples, scheduler, recipe, Checkpoints(tmp_path / "c", "this"), lambda _: None)

    whole = extract_lora(weights, base, 10**6, torch.float32, lambda *_: None)
    small = extract_lora(weights, base, 16, torch.float32, lambda *_: None)

    path = tmp_path / "whole.safetensors"
    write_lora(path, whole.layers, recipe, {})
    rebuilt = open_transformer(models.klein, CPU)
    load(rebuilt, path, scheduler)
    rebuilt.fuse_lora()
    rebuilt.unload_lora()
    wanted = dict(trained.named_parameters())
    off = max((weight - wanted[name]).abs().max().item() for name, weight in rebuilt.named_parameters())
    moved = max((wanted[name] - base[name]).abs().max().item() for name in weights.names())
    assert off < 1e-4 * moved
    assert whole.kept_energy == pytest.approx(1)
    assert 0.5 < small.kept_energy < 1


def test_a_checkpoint_resumes_no_other_training(lora: Done, models: Models, tmp_path: Path) -> None:
    """Other pictures or another rank with the weights of this one would be a LoRA that nobody asked for."""
    examples, scheduler = encode(tmp_path, lora, models), open_scheduler(models.klein)
    recipe = recipe_for(lora.job.parameters, iterations=2)

    def go(belongs_to: str) -> list[int]:
        seen: list[int] = []
        transformer = open_transformer(models.klein, CPU)
        trainee = LoraWeights(transformer, rank=16, learning_rate=1e-4, seed=1)
        checkpoints = Checkpoints(tmp_path / "checkpoints", belongs_to)
        train_weights(
            transformer, trainee, examples, scheduler, recipe, checkpoints, lambda told: seen.append(len(told))
        )
        return seen

    assert go("this") == [1, 2]
    assert go("this") == []
    assert go("other") == [1, 2]


def test_what_is_trained_is_what_the_pipeline_will_see(lora: Done, models: Models, tmp_path: Path) -> None:
    """Other embeddings, latents or places than at inference, and all that was learned is off."""
    from diffusers import Flux2KleinPipeline

    examples = encode(tmp_path, lora, models)
    pipeline = Flux2KleinPipeline.from_pretrained(models.klein)
    batch, [placed] = examples.read_batch(0), examples.list_batch(0)
    caption = json.loads((lora.job.folder / "captions.json").read_bytes())[placed.name]["text"]

    embedded, ids = pipeline.encode_prompt(caption, max_sequence_length=128)
    latents = pipeline._encode_vae_image(read_pixels(placed, CPU), None)

    assert torch.equal(batch.texts, embedded)
    assert torch.equal(batch.latents, latents)
    assert torch.equal(pack(batch.latents), pipeline._pack_latents(latents))
    assert torch.equal(text_ids(batch.texts.shape[1], CPU.device), ids[0])
    rows, columns = latents.shape[2:]
    assert torch.equal(picture_ids(rows, columns, CPU.device), pipeline._prepare_latent_ids(latents)[0])


def test_a_broken_base_model_is_named_as_the_cause(models: Models, tmp_path: Path) -> None:
    """A loss that is no number at the first step has nothing to do with the learning rate."""
    from diffusers import Flux2Transformer2DModel

    broken = shutil.copytree(models.klein, tmp_path / "broken")
    transformer = Flux2Transformer2DModel.from_pretrained(broken, subfolder="transformer")
    transformer.proj_out.weight.data.fill_(math.nan)
    transformer.save_pretrained(broken / "transformer")
    job = put(tmp_path, models, options={"model": str(broken)}, iterations=3)

    with pytest.raises(TrainingError, match=r"The loss of step 1 is no number \(nan\)\. Nothing was learned yet, so"):
        train(job)


@pytest.mark.parametrize(
    ("losses", "value", "said"),
    [
        ([1.0] * 9, math.inf, r"The loss of step 10 is no number \(inf\)\. Start again with a lower learning_rate"),
        (
            [1.0] * 30 + [4.0] * 40,
            4.0,
            r"grown from 1 to 4 by step 71\. Start again with a lower learning_rate; it was",
        ),
    ],
)
def test_a_training_that_falls_apart_is_ended_with_what_to_change(
    losses: list[float], value: float, said: str, lora: Done
) -> None:
    """Whatever it went on to learn would be worth nothing, and cost hours."""
    with pytest.raises(TrainingError, match=said):
        check_loss(losses, value, recipe_for(lora.job.parameters))


def test_losses_that_jump_end_nothing(lora: Done) -> None:
    """Single steps differ threefold by the noise that they draw."""
    check_loss([0.2, 1.5] * 40, 3.0, recipe_for(lora.job.parameters))


def test_memory_that_runs_out_is_explained() -> None:
    """The one failure of a GPU that everybody meets: it must say what to change, not where it happened."""
    with (
        pytest.raises(TrainingError, match=r"The machine ran out of memory \(can't allocate memory: .*\)\. Do this\."),
        explained_shortage("Do this."),
    ):
        torch.empty(1 << 50)
    with (
        pytest.raises(TrainingError, match=r"The GPU ran out of memory \(CUDA out of memory\. .* 2\.00 GiB\)\. Do"),
        explained_shortage("Do this."),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
    with pytest.raises(RuntimeError, match="shapes"), explained_shortage("Do this."):
        raise RuntimeError("shapes cannot be multiplied")
