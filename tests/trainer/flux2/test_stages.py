"""What is said and kept from stage to stage: progress with time left, and memory given back."""

import gc
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bfl_mcp.trainer.jobs import JobGoneError, Jobs
from bfl_mcp.trainer.worker import drain
from tests.trainer.flux2.work import Done, Models, put, train
from tests.trainer.processes import names, wait_until

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from bfl_mcp.trainer.engines import TrainingError

pytestmark = pytest.mark.timeout(180)


def stages(doing: list[str]) -> list[str]:
    """The first word of each stage, in order."""
    found: list[str] = []
    for words in doing:
        word = words.split(",")[0].split()[0]
        if word not in found:
            found.append(word)
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_every_stage_says_what_it_does_in_order(kind: str, request: pytest.FixtureRequest) -> None:
    """A person who looks at any moment sees what is done, and how much of it."""
    done: Done = request.getfixturevalue(kind)
    told = done.told

    saving = ["writing"] if kind == "lora" else ["extracting"]
    after = ["sampling"] if kind == "lora" else ["sampling", "writing"]
    assert stages(told.doing) == [
        *("beginning", "captioning", "embedding", "encoding", "opening", "training"),
        *saving,
        *after,
    ]
    assert "captioning 0 of 1 images" in told.doing
    assert "encoding 5 of 5 images" in told.doing
    assert any(re.fullmatch(r"embedding 3 of 6 texts \(about \d+ s to go\)", doing) for doing in told.doing)
    assert told.steps == sorted(told.steps)
    assert [step for step, doing in zip(told.steps, told.doing, strict=True) if doing.startswith("training")] == list(
        range(1, 101)
    )


def test_the_time_left_comes_true(lora: Done) -> None:
    """Half-way through the training it counts what comes after, too; on a busy machine within a factor of three."""
    told = lora.told
    index = told.doing.index(next(doing for doing in told.doing if doing.startswith("training, step 50 of 100")))

    estimated, took = told.seconds_left[index], told.at[-1] - told.at[index]

    assert estimated is not None
    assert took / 3 < estimated < took * 3
    known = [
        seconds is not None for seconds, step in zip(told.seconds_left, told.steps, strict=True) if 3 <= step < 100
    ]
    assert all(known)


def test_the_log_has_a_line_for_each_stage_and_every_ten_steps(full: Done) -> None:
    """Whoever looks for what went wrong reads a page, not a thousand lines."""
    lines = (full.job.folder / "log.txt").read_text(encoding="utf-8").splitlines()

    assert len([line for line in lines if "training, step" in line]) == 10
    assert any(re.search(r"training, step 70 of 100, loss \d\.\d{3}, \d+\.\d\d s a step$", line) for line in lines)
    assert len(lines) <= 20


def test_no_stage_leaves_its_model_in_memory(models: Models, tmp_path: Path) -> None:
    """On a card that holds one large part at a time, a part that is kept by mistake ends the training."""
    import diffusers
    import transformers

    large = {
        transformers.Qwen3VLForConditionalGeneration: "captioning",
        transformers.Qwen3Model: "embedding",
        diffusers.AutoencoderKLFlux2: "encoding",
        diffusers.Flux2Transformer2DModel: "training",
    }
    seen: dict[str, set[str]] = {}

    def look(_: int, doing: str) -> None:
        # By type(), because asking some of these objects what they are makes them warn.
        alive = {large[type(each)] for each in gc.get_objects() if type(each) in large}
        seen.setdefault(doing.split(",", maxsplit=1)[0].split(maxsplit=1)[0], set()).update(alive)

    train(put(tmp_path, models, iterations=2, images=2, captions=("TOK one",)), look)

    # The autoencoder is small; it stays for the pipeline that samples.
    assert seen.pop("sampling") == {"training", "encoding"}
    assert {word: alive for word, alive in seen.items() if alive} == {
        "captioning": {"captioning"},
        "embedding": {"embedding"},
        "encoding": {"encoding"},
        "training": {"training"},
        "writing": {"training"},
    }


def test_a_finetune_that_is_deleted_stops_and_does_not_come_back(models: Models, tmp_path: Path) -> None:
    """There is no cancel at BFL: deleting is how a training is stopped, whatever it is just doing."""
    job = put(tmp_path, models, iterations=100_000)
    worker = threading.Thread(target=drain, args=(tmp_path,))

    worker.start()
    wait_until(lambda: job.read_progress().step > 0, 60)
    Jobs(tmp_path).delete(job.finetune_id)
    worker.join(30)

    assert not worker.is_alive()
    assert names(tmp_path / "finetunes") == []


@pytest.mark.parametrize("words", ["captioning 0", "embedding 0", "encoding 0", "opening", "training, step 1 ", "writ"])
def test_a_folder_that_goes_away_is_a_finetune_that_was_deleted(models: Models, tmp_path: Path, words: str) -> None:
    """Between two reports the files go, not the report's answer; and no stage makes the folder anew."""
    job = put(tmp_path, models, iterations=2, images=2, captions=("TOK one",))

    def delete(_: int, doing: str) -> None:
        if doing.startswith(words):
            Jobs(tmp_path).delete(job.finetune_id)

    with pytest.raises(JobGoneError):
        train(job, delete)

    assert names(tmp_path / "finetunes") == []


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (None, "holds no diffusers pipeline"),
        ("[]", "holds no diffusers pipeline"),
        ('{"_class_name": "FluxPipeline"}', "is a 'FluxPipeline', not a Flux2KleinPipeline"),
        ('{"_class_name": "Flux2KleinPipeline", "is_distilled": true}', "is a distilled model, which training harms"),
    ],
)
def test_a_base_model_of_another_kind_is_refused(index: str | None, said: str, models: Models, tmp_path: Path) -> None:
    """It would fail hours later, or train what nobody can load."""
    (folder := tmp_path / "model").mkdir()
    if index is not None:
        (folder / "model_index.json").write_text(index, encoding="utf-8")
    job = put(tmp_path, models, options={"model": str(folder)})

    with pytest.raises(TrainingError, match=said) as refused:
        train(job)

    assert "BFL_TRAINER_MODEL" in str(refused.value)


def test_naming_the_engines_imports_no_pytorch() -> None:
    """The worker of a practice training, and the server itself, must not pay seconds for what they do not use."""
    program = (
        "import sys; from bfl_mcp.trainer.engines import ENGINES; import bfl_mcp.trainer.engines.flux2.recipe; "
        "print('flux2' in ENGINES, 'torch' in sys.modules)"
    )

    said = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, check=True, timeout=60
    )

    assert said.stdout.split() == ["True", "False"]
