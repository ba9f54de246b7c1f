"""What a finetune leaves: a LoRA that others load, and files that tell what it is."""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.trainer.flux2.work import Done, Models, StopHere, put, stop_at, train

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors import safe_open

from bfl_mcp.trainer.engines.flux2.captions import Caption
from bfl_mcp.trainer.engines.flux2.card import Facts, write_card
from bfl_mcp.trainer.engines.flux2.curve import draw_curve
from bfl_mcp.trainer.engines.flux2.recipe import build_recipe
from bfl_mcp.trainer.engines.flux2.samples import list_samples
from bfl_mcp.trainer.engines.flux2.store import write_tensors

pytestmark = pytest.mark.timeout(180)


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_diffusers_loads_the_lora_and_strength_0_takes_it_back(
    kind: str, request: pytest.FixtureRequest, models: Models
) -> None:
    """The file must work in a pipeline that knows nothing of us, and change nothing but what it is asked to."""
    from diffusers import Flux2KleinPipeline

    done: Done = request.getfixturevalue(kind)
    pipeline = Flux2KleinPipeline.from_pretrained(models.klein)
    pipeline.set_progress_bar_config(disable=True)

    def sample(**options: Any) -> Any:
        return pipeline(
            prompt="TOK on a table",
            width=64,
            height=64,
            num_inference_steps=2,
            max_sequence_length=128,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **options,
        ).images

    before = sample()
    pipeline.load_lora_weights(str(done.job.folder), weight_name="lora.safetensors", adapter_name="learned")
    after = sample()
    without = sample(attention_kwargs={"scale": 0.0})
    pipeline.set_adapters("learned", 0.0)
    switched_off = sample()
    pipeline.unload_lora_weights()

    assert not torch.equal(before, after)
    assert torch.equal(before, without)
    assert torch.equal(before, switched_off)
    assert torch.equal(before, sample())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_lora_says_where_it_comes_from(kind: str, request: pytest.FixtureRequest) -> None:
    """Whoever finds the file in a year must be able to tell what it belongs to, without our names for folders."""
    done: Done = request.getfixturevalue(kind)
    digest = hashlib.sha256()
    for path in sorted((done.job.folder / "dataset").iterdir()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())

    metadata = read_metadata(done.lora)

    assert metadata["base_model"] == "klein"
    assert (metadata["rank"], metadata["trigger_word"]) == ("16", "TOK")
    assert metadata["dataset_sha256"] == digest.hexdigest()
    assert json.loads(metadata["parameters"]) == done.job.parameters
    assert json.loads(metadata["recipe"])["seed"] == 42
    assert ("kept_energy" in metadata) == (kind == "full")
    assert b"/tmp" not in done.lora.read_bytes()
    assert str(done.job.folder.parents[2]) not in (done.job.folder / "README.md").read_text(encoding="utf-8")


def test_a_lora_trained_as_one_holds_the_projections_of_the_reference_recipe(lora: Done) -> None:
    """Attention of the double-stream blocks on the picture's side, both fused projections of the single-stream ones."""
    with safe_open(lora.lora, framework="pt") as file:
        names = set(file.keys())
        ranks = {min(file.get_slice(name).get_shape()) for name in names}

    double = [f"transformer_blocks.{block}.attn.{part}" for block in (0, 1) for part in ("to_q", "to_k", "to_v")]
    double += [f"transformer_blocks.{block}.attn.to_out.0" for block in (0, 1)]
    single = [
        f"single_transformer_blocks.{block}.attn.{part}" for block in range(4) for part in ("to_qkv_mlp_proj", "to_out")
    ]
    assert names == {f"transformer.{name}.lora_{side}.weight" for name in double + single for side in "AB"}
    assert ranks == {16}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_outcome_tells_what_there_is(kind: str, request: pytest.FixtureRequest, models: Models) -> None:
    """The details of a ready finetune are made of it, and every file it names can be fetched."""
    done: Done = request.getfixturevalue(kind)

    outcome = done.job.read_outcome()

    assert outcome is not None
    losses = json.loads((done.job.folder / "losses.json").read_bytes())
    assert (len(losses), outcome["loss_first"], outcome["loss_last"]) == (
        100,
        statistics.fmean(losses[:20]),
        statistics.fmean(losses[-20:]),
    )
    assert (outcome["base_model"], outcome["seed"]) == (str(models.klein), 42)
    kept = outcome["kept_energy"]
    assert kept is None if kind == "lora" else 0.5 < kept < 1
    assert outcome["captions"]["count"] == 5
    assert outcome["captions"]["written"] == 1
    assert outcome["captions"]["first"] == ["TOK on a table", "TOK in the grass", "TOK, a teapot at night"]
    assert outcome["files"][:5] == ["lora.safetensors", "README.md", "loss.png", "losses.json", "captions.json"]
    assert outcome["files"][5:] == [f"samples/{number:02}-{when}.png" for number in (1, 2) for when in WHEN]
    assert all((done.job.folder / name).stat().st_size for name in outcome["files"])


WHEN = ("before", "after")


def test_nothing_is_left_that_only_the_training_needed(lora: Done) -> None:
    """Checkpoints of a full training of the 4B have 15 GB, and embeddings 8 MB a caption."""
    left = sorted(path.name for path in lora.job.folder.iterdir())

    assert left == [
        "README.md",
        "captions.json",
        "dataset",
        "log.txt",
        "lora.safetensors",
        "loss.png",
        "losses.json",
        "outcome.json",
        "progress.json",
        "recipe.json",
        "request.json",
        "samples",
    ]


def test_samples_show_the_same_prompt_with_and_without_what_was_learned(full: Done) -> None:
    """Each pair starts from the same noise: it must differ, and be as large as the pictures trained on."""
    for number in (1, 2):
        before, after = (
            Image.open(full.job.folder / "samples" / f"{number:02}-{when}.png").convert("RGB") for when in WHEN
        )
        assert before.size == after.size == (64, 64)
        assert ImageChops.difference(before, after).getbbox() is not None


def test_samples_are_what_the_pipeline_makes_of_the_file(lora: Done, models: Models) -> None:
    """We decode without the transformer in memory; whoever loads the file gets the same picture."""
    from diffusers import Flux2KleinPipeline

    pipeline = Flux2KleinPipeline.from_pretrained(models.klein)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(lora.job.folder), weight_name="lora.safetensors")

    made = pipeline(
        prompt="TOK on a table",
        width=64,
        height=64,
        num_inference_steps=8,
        guidance_scale=4.0,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(42 + 1),
    ).images[0]

    kept = Image.open(lora.job.folder / "samples" / "01-after.png")
    assert ImageChops.difference(made, kept.convert("RGB")).getbbox() is None


def test_samples_that_exist_are_not_made_again(models: Models, tmp_path: Path) -> None:
    """Each takes as long as twenty steps of training; and nothing before them is done again either."""
    job = put(tmp_path, models, iterations=2, captions=("TOK one", "TOK two"), images=2)
    with pytest.raises(StopHere):
        train(job, stop_at(2, "sampling before and after, step 30 "))
    lora = (job.folder / "lora.safetensors").stat().st_mtime_ns

    told = train(job)

    assert [doing for doing in told.doing if doing.startswith(("training", "embedding", "encoding", "opening"))] == []
    steps = [doing for doing in told.doing if doing.startswith("sampling")]
    assert steps[0] == "sampling before and after, step 25 of 32"
    assert len(steps) == 8
    assert (job.folder / "lora.safetensors").stat().st_mtime_ns == lora


def test_an_engine_that_was_killed_in_its_last_words_says_them_again(models: Models, tmp_path: Path) -> None:
    """All is written, but the worker has not heard of it: nothing is trained again, and what is left is cleared."""
    job = put(tmp_path, models)
    job.write_outcome({"files": []})
    (job.folder / "cache").mkdir()
    (job.folder / "checkpoints").mkdir()

    told = train(job)

    assert told.doing == []
    assert job.read_outcome() == {"files": []}
    assert not (job.folder / "cache").exists()
    assert not (job.folder / "checkpoints").exists()


def test_the_card_says_what_it_is_and_how_to_use_it(full: Done) -> None:
    """It is the first thing that is read on a hub: base model, trigger word, how to load it, what it can do."""
    card = (full.job.folder / "README.md").read_text(encoding="utf-8")
    outcome = full.job.read_outcome()

    assert outcome is not None
    front = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    assert front["base_model"] == '"klein"'
    assert front["instance_prompt"] == '"TOK"'
    assert front["library_name"] == '"diffusers"'
    assert f"of which it holds {outcome['kept_energy']:.1%}" in card
    assert 'load_lora_weights(".", weight_name="lora.safetensors")' in card
    assert "dashboard → Customization → Finetunes → Add Finetune" in card
    for name in ("samples/01-before.png", "samples/02-after.png", "loss.png"):
        assert f"]({name})" in card
    assert "| learning rate | 0.0001 |" in card


def test_a_hostile_caption_stays_in_its_block(tmp_path: Path) -> None:
    """Captions come in archives from anybody, and a card is shown by a hub: no caption may end its block of code."""
    recipe = build_recipe({**PARAMETERS, "trigger_word": "T`K"})
    evil = "TOK ```\n# hello\n<script>alert(1)</script> ````"
    facts = Facts(
        recipe,
        {"base_model": "a`b", "dataset_sha256": "0"},
        {"001.png": Caption(evil, "own")},
        list_samples([evil]),
        [1.0],
        None,
    )

    write_card(tmp_path / "README.md", facts)

    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    outside, fence = [], ""
    for line in card.splitlines():
        run = line[: len(line) - len(line.lstrip("`"))]
        if not fence and len(run) >= 3:
            fence = run
        elif fence and line == fence:
            fence = ""
        elif not fence:
            outside.append(line)
    assert not fence
    assert "hello" not in "\n".join(outside)
    assert "script" not in "\n".join(outside)
    assert "`` a`b ``" in card or "``a`b``" in card


PARAMETERS = {
    "finetune_type": "lora",
    "mode": "general",
    "trigger_word": "TOK",
    "iterations": 1,
    "learning_rate": None,
    "lora_rank": 16,
    "priority": "speed",
    "captioning": False,
}


@pytest.mark.parametrize("losses", [[0.5], [0.5, 0.5], [0.0] * 3, [1.0, 0.25] * 500], ids=["1", "2", "zeros", "1000"])
def test_the_curve_is_drawn_of_any_losses(losses: list[float], tmp_path: Path) -> None:
    """Few steps, equal losses and zeros leave no room between the ends of an axis, and a curve all the same."""
    draw_curve(tmp_path / "loss.png", losses)

    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1200, 675)
        counted = {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    # The legend's words have some, the line has far more.
    assert len(losses) == 1 or counted[0x1F, 0x5F, 0xBF] > 1000


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    """The library writes metadata in an order of chance; a file that differs each time could not be compared."""
    metadata = {f"name {number}": str(number) for number in range(20)}
    for name in ("one", "two", "three"):
        write_tensors(tmp_path / name, {"a": torch.ones(3, 2), "b": torch.zeros(1)}, metadata)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "three").read_bytes()
    assert read_metadata(tmp_path / "one") == {"format": "pt", **metadata}
