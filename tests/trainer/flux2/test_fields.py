"""Each field of the request, and each option, changes what it should and nothing else."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from bfl_mcp.contract import MAX_ITERATIONS, MIN_ITERATIONS, FinetuneInputs, Mode
from tests.trainer.flux2.work import PARAMETERS, Models, draw, put, quick, train

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file

from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.captioner import PROMPTS, write_captions
from bfl_mcp.trainer.engines.flux2.captions import place_trigger_word, settle_captions
from bfl_mcp.trainer.engines.flux2.device import Hardware
from bfl_mcp.trainer.engines.flux2.examples import Cache, Examples
from bfl_mcp.trainer.engines.flux2.latents import read_pixels
from bfl_mcp.trainer.engines.flux2.pictures import Bucket, Placed, choose_bucket, list_buckets, place_pictures
from bfl_mcp.trainer.engines.flux2.recipe import build_recipe
from bfl_mcp.trainer.jobs import Job

pytestmark = pytest.mark.timeout(180)
CPU = Hardware(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def plain(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What the others are compared with."""
    return quick(tmp_path_factory.mktemp("plain"), models)


def layers(job: Job) -> dict[str, Any]:
    return dict(load_file(job.folder / "lora.safetensors"))


def losses(job: Job) -> list[float]:
    return list(json.loads((job.folder / "losses.json").read_bytes()))


def captions(job: Job) -> dict[str, str]:
    kept = json.loads((job.folder / "captions.json").read_bytes())
    return {name: caption["text"] for name, caption in kept.items()}


def are_equal(one: Job, other: Job) -> bool:
    first, second = layers(one), layers(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"finetune_comment": "blue"}, {}),
        ({"mode": "style"}, {"mode": "style"}),
        ({"trigger_word": " REX "}, {"trigger_word": "REX"}),
        ({"iterations": MIN_ITERATIONS + 1}, {"iterations": 101}),
        ({"iterations": MAX_ITERATIONS}, {"iterations": 1000}),
        ({"learning_rate": 2e-4}, {"learning_rate": 2e-4}),
        ({"finetune_type": "full"}, {"finetune_type": "full", "learning_rate": 1e-5}),
        ({"finetune_type": "full", "learning_rate": 1e-4}, {"finetune_type": "full"}),
        ({"captioning": False}, {"captioning": False}),
        ({"priority": "speed"}, {"priority": "speed", "bucket_pixels": 262_144}),
        ({"priority": "high_res_only"}, {"priority": "high_res_only"}),
        ({"lora_rank": 32}, {"rank": 32}),
    ],
    ids=str,
)
def test_a_field_changes_its_own_number(change: dict[str, Any], changed: dict[str, Any]) -> None:
    """The recipe is all that training looks at."""
    recipe = asdict(build_recipe({**PARAMETERS, **change}))

    assert recipe == {**asdict(build_recipe(PARAMETERS)), **changed}


def test_every_field_of_the_request_is_looked_at() -> None:
    """A field of the API that no row above names would be one that means nothing."""
    assert set(PARAMETERS) == set(FinetuneInputs.model_fields) - {"file_data", "webhook_url", "webhook_secret"}


def test_the_defaults_are_those_of_the_recipe() -> None:
    """A megapixel, one picture a step, 1e-4 for a LoRA, and a seed that is written down."""
    recipe = build_recipe(PARAMETERS)

    assert (recipe.bucket_pixels, recipe.batch_size, recipe.learning_rate, recipe.seed) == (1_000_000, 1, 1e-4, 42)
    assert (recipe.bucket_step_px, recipe.sample_side_px) == (16, 992)
    assert build_recipe(PARAMETERS, max_px=64, seed=7).bucket_pixels == 64 * 64
    assert build_recipe(PARAMETERS, max_px=64).sample_side_px == 64
    assert build_recipe(PARAMETERS, max_px=5000).bucket_pixels == 1_000_000
    assert build_recipe(PARAMETERS, seed=0).seed == 0


# --- what changes in the LoRA -----------------------------------------------------------------------------------------


def test_iterations_are_exactly_as_many_steps(plain: Job, models: Models, tmp_path: Path) -> None:
    """And a longer training begins as the shorter one."""
    longer = quick(tmp_path, models, iterations=6)

    assert (len(losses(plain)), len(losses(longer))) == (4, 6)
    assert losses(longer)[:4] == losses(plain)
    assert not are_equal(plain, longer)


def test_the_learning_rate_changes_the_steps_alone(plain: Job, models: Models, tmp_path: Path) -> None:
    """The first loss is that of the untrained model; null and the type's own rate are the same."""
    faster = quick(tmp_path / "faster", models, learning_rate=1e-3)
    spelled = quick(tmp_path / "spelled", models, learning_rate=1e-4)

    assert losses(faster)[0] == losses(plain)[0]
    assert losses(faster)[2:] != losses(plain)[2:]
    assert are_equal(plain, spelled)


def test_the_rank_changes_the_shape_of_the_lora(plain: Job, models: Models, tmp_path: Path) -> None:
    """16 or 32 columns of the same layers, over the same pictures and captions."""
    wider = quick(tmp_path, models, lora_rank=32)

    assert layers(wider).keys() == layers(plain).keys()
    assert {min(layer.shape) for layer in layers(wider).values()} == {32}
    assert losses(wider)[0] == losses(plain)[0]
    assert captions(wider) == captions(plain)


def test_the_comment_changes_nothing(plain: Job, models: Models, tmp_path: Path) -> None:
    """It is a name for people."""
    assert are_equal(plain, quick(tmp_path, models, finetune_comment="blue"))


def test_the_mode_changes_what_is_asked_of_the_captioner(models: Models, tmp_path: Path) -> None:
    """It steers what a written caption leaves out: four modes, four answers about one picture."""
    draw(1).save(picture := tmp_path / "001.png")
    answers = set()
    for mode in PROMPTS:
        write_captions(lambda: models.captioner, [picture], mode, tmp_path / mode, CPU, lambda *_: None)
        answers.add((tmp_path / mode / "001.txt").read_text(encoding="utf-8"))

    assert len(answers) == len(PROMPTS) == len(get_args(Mode))


def test_the_mode_changes_nothing_where_no_caption_is_written(plain: Job, models: Models, tmp_path: Path) -> None:
    """With captions of one's own it has no say: not in them, not in the weights."""
    assert are_equal(plain, quick(tmp_path, models, mode="style"))


def test_the_priority_changes_the_size_alone(plain: Job, models: Models, tmp_path: Path) -> None:
    """Under the same cap, on a CPU, where the batch is 1, `speed` trains as `quality` does."""
    assert are_equal(plain, quick(tmp_path, models, priority="speed"))


def test_the_seed_changes_what_is_drawn(plain: Job, models: Models, tmp_path: Path) -> None:
    """It is recorded, so that a training can be done again."""
    other = quick(tmp_path, models, options={"seed": 7})

    outcome = other.read_outcome()
    assert outcome is not None
    assert outcome["seed"] == 7
    assert losses(other) != losses(plain)
    assert captions(other) == captions(plain)


# --- captions ---------------------------------------------------------------------------------------------------------


def test_own_captions_win_and_the_others_are_written(models: Models, tmp_path: Path) -> None:
    """A user's word is never replaced; what is used is kept, with whose it is."""
    on = quick(tmp_path / "on", models, captions=("TOK mine", "  \n"), images=3)
    off = quick(tmp_path / "off", models, captions=("TOK mine", "  \n"), images=3, captioning=False)

    kept = json.loads((on.folder / "captions.json").read_bytes())
    assert kept["001.png"] == {"text": "TOK mine", "source": "own"}
    assert kept["002.png"]["source"] == kept["003.png"]["source"] == "written"
    assert kept["002.png"]["text"].startswith("TOK, ")
    assert kept["002.png"]["text"] != kept["003.png"]["text"]
    assert json.loads((off.folder / "captions.json").read_bytes()) == {
        "001.png": {"text": "TOK mine", "source": "own"},
        "002.png": {"text": "TOK", "source": "none"},
        "003.png": {"text": "TOK", "source": "none"},
    }


def test_the_captioner_is_not_opened_where_no_caption_is_missing(models: Models, tmp_path: Path) -> None:
    """Four gigabytes are not downloaded to say nothing."""
    quick(tmp_path, models, captions=("one", "two"), images=2, options={"captioner": "nobody/has-this"})


def test_a_captioner_that_cannot_be_used_is_named_with_the_ways_out(models: Models, tmp_path: Path) -> None:
    """There are three: another one, one's own words, or none."""
    job = put(tmp_path, models, iterations=1, options={"captioner": str(models.klein)})

    with pytest.raises(TrainingError) as refused:
        train(job)

    said = str(refused.value)
    assert str(models.klein) in said
    for way_out in ("BFL_TRAINER_CAPTIONER", "write the captions yourself", "captioning=false"):
        assert way_out in said


@pytest.mark.parametrize(
    ("caption", "placed"),
    [
        ("a teapot", "TOK, a teapot"),
        ("a TOK teapot", "a TOK teapot"),
        ("a tok teapot", "a tok teapot"),
        ("a teapot, TOK.", "a teapot, TOK."),
        ("a stoked fire", "TOK, a stoked fire"),
        ("TOKEN ring", "TOK, TOKEN ring"),
        ("two\n\nlines ", "TOK, two lines"),
        ("", "TOK"),
    ],
)
def test_the_trigger_word_is_placed_where_it_lacks_as_a_whole_word(caption: str, placed: str) -> None:
    """As the dataset desk counts it; a part of another word stands for nothing."""
    assert place_trigger_word(caption, "TOK") == placed


def test_a_trigger_word_of_signs_is_found_too() -> None:
    """It is no pattern."""
    assert place_trigger_word("a (T.K)+ cat", "(T.K)+") == "a (T.K)+ cat"
    assert place_trigger_word("a TxK cat", "T.K") == "T.K, a TxK cat"
    assert place_trigger_word("a cat", "") == "a cat"


def test_pictures_without_any_words_get_the_trigger_word() -> None:
    """The user's caption first, then a written one, then the trigger word alone."""
    pictures = [Path("001.png"), Path("002.png"), Path("003.png")]

    settled = settle_captions(pictures, {"001.png": "mine"}, {"001.png": "theirs", "002.png": "theirs"}, "TOK")

    assert [(caption.text, caption.source) for caption in settled.values()] == [
        ("TOK, mine", "own"),
        ("TOK, theirs", "written"),
        ("TOK", "none"),
    ]


# --- pictures and their sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1000, 1000), (1155, 865), (4000, 1000), (500, 400), (300, 900)], ids=str)
def test_pictures_are_trained_in_their_own_shape(size: tuple[int, int]) -> None:
    """At about one megapixel, and never of a shape more than three times as wide as high."""
    chosen = choose_bucket(*size, list_buckets(1_000_000, 16))

    assert 0.9e6 < chosen.width_px * chosen.height_px <= 1e6
    assert chosen.width_px / chosen.height_px == pytest.approx(min(3.0, size[0] / size[1]), rel=0.03)
    assert (chosen.width_px % 16, chosen.height_px % 16) == (0, 0)


@pytest.mark.parametrize(("max_px", "batch"), [(16, 1), (16, 4), (63, 4), (64, 4), (512, 4), (None, 1), (None, 4)])
def test_every_cap_leaves_a_size(max_px: int | None, batch: int) -> None:
    """A cap of few pixels leaves small pictures, not none."""
    recipe = build_recipe(PARAMETERS, max_px=max_px, batch_size=batch)

    buckets = list_buckets(recipe.bucket_pixels, recipe.bucket_step_px)

    assert buckets
    assert all(bucket.width_px * bucket.height_px <= recipe.bucket_pixels for bucket in buckets)
    assert recipe.sample_side_px % 16 == 0


def test_high_res_only_leaves_small_pictures_out(models: Models, tmp_path: Path) -> None:
    """None is scaled up. Who has none large enough hears it before anything is trained."""

    def fill(dataset: Path) -> None:
        draw(1).save(dataset / "001.png")
        draw(3, 60, 40).save(dataset / "002.png")

    job = quick(tmp_path / "one", models, priority="high_res_only", captioning=False, fill=fill)
    none = put(tmp_path / "none", models, priority="high_res_only", options={"max_px": None})

    assert list(captions(job)) == ["001.png"]
    assert "1 of 2 images left out: priority='high_res_only'" in (job.folder / "log.txt").read_text(encoding="utf-8")
    with pytest.raises(TrainingError, match=r"leaves none of the 5 images: each has less than 1 megapixels\. Take"):
        train(none)


def test_our_own_packing_is_large_enough_for_high_res_only(tmp_path: Path) -> None:
    """The client sends at most one megapixel, which must not count as too small; and nothing is scaled up."""
    recipe = build_recipe({**PARAMETERS, "priority": "high_res_only"})
    sizes = [(1155, 865), (1000, 1000), (1007, 993), (1633, 612), (866, 1154), (3000, 400), (4000, 3000)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")

    placed = place_pictures(sorted(tmp_path.glob("*.png")), recipe)

    assert len(placed) == len(sizes)
    for (width, height), each in zip(sizes, placed, strict=True):
        bucket = each.bucket
        assert bucket.width_px <= width
        assert bucket.height_px <= height
        assert 0.94e6 < bucket.width_px * bucket.height_px <= 1e6 or (width, height) == (3000, 400)


def test_pictures_are_seen_upright_and_on_white(tmp_path: Path) -> None:
    """Archives from other clients hold what cameras write: turned by a note, and with alpha."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (64, 32), "black")
    turned.paste("red", (0, 0, 32, 32))
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    recipe = build_recipe(PARAMETERS, max_px=48)

    [upright, clear] = place_pictures([tmp_path / "turned.jpg", tmp_path / "clear.png"], recipe)
    pixels = read_pixels(upright, CPU)

    assert upright.bucket == Bucket(32, 64)
    # Red is what was left, and is above once it stands.
    assert pixels[0, 0, 4].min() > 0.8
    assert pixels[0, 0, -4].max() < -0.8
    assert read_pixels(clear, CPU).min() == 1


def test_a_batch_holds_pictures_of_one_size_and_none_is_left_out() -> None:
    """`speed` takes pictures together; each epoch shows each once, in an order of its own that a resume repeats."""
    small, large = Bucket(64, 64), Bucket(64, 128)
    placed = [Placed(Path(f"{number:03}.png"), small if number % 3 else large) for number in range(10)]
    recipe = build_recipe({**PARAMETERS, "priority": "speed"}, batch_size=4)
    nowhere = Cache(Path(), Path())

    def epochs() -> list[list[list[str]]]:
        examples = Examples(placed, {}, nowhere, recipe, CPU)
        batches = [examples.list_batch(step) for step in range(8)]
        assert all(len({each.bucket for each in batch}) == 1 for batch in batches)
        names = [[each.name for each in batch] for batch in batches]
        return [names[:3], names[3:6]]

    first, second = epochs()
    for epoch in (first, second):
        assert sorted(name for batch in epoch for name in batch) == [each.name for each in placed]
    assert first != second
    assert epochs() == [first, second]
