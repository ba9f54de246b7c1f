"""What a training takes at our trainer: said by a dry run, and before a dataset is uploaded in vain."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from bfl_mcp.config import Settings
from bfl_mcp.server import build_server
from tests.fakes.bfl import KEY, Answer, FakeBFL
from tests.pictures import fill_folder
from tests.server.conftest import Connect
from tests.server.test_tools import REQUEST, facts_of, refused, text_of

ELSEWHERE = "https://gpu.example"
FITS: dict[str, Any] = {
    "engine": "flux2",
    "fits": True,
    "sentence": "Training a LoRA takes 11.2 GiB of GPU memory; the GPU has 23.6 GiB free.",
}
TOO_MUCH: dict[str, Any] = {
    "engine": "flux2",
    "fits": False,
    "sentence": "Full training takes 19.1 GiB of GPU memory; the GPU has 11.6 GiB free. Set finetune_type='lora'.",
}
PRACTICE: dict[str, Any] = {
    "engine": "practice",
    "fits": True,
    "sentence": "No GPU was found, so the practice engine would run.",
}


@pytest.fixture
def trainer() -> FakeBFL:
    """A trainer of ours on another machine."""
    fake = FakeBFL()
    fake.need = FITS
    return fake


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    return {**REQUEST, "folder": str(fill_folder(tmp_path / "pictures"))}


async def test_a_dry_run_says_what_it_takes_and_that_it_fits(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """Before anybody waits for an upload; the trainer hears the parameters and the number of images."""
    async with connect(trainer, ELSEWHERE) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert (facts["fits"], facts["practice"], facts["cost_usd"]) == (True, False, 0)
    assert f'The trainer says: "{FITS["sentence"]}"' in facts["summary"].replace("'", '"')
    assert "it costs nothing" in facts["next_step"]
    [request] = trainer.requests
    told = {name: value for name, value in facts["parameters"].items() if name != "trigger_word"}
    assert request.json() == {**told, "finetune_comment": "", "images": 3}


async def test_a_dry_run_says_what_is_missing(connect: Connect, trainer: FakeBFL, asked: dict[str, Any]) -> None:
    """Need, present and remedy, in the words in which a start would be refused."""
    trainer.need = TOO_MUCH
    async with connect(trainer, ELSEWHERE) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert facts["fits"] is False
    assert "cannot do this as it stands" in facts["summary"]
    assert TOO_MUCH["sentence"] in facts["summary"]
    assert "make another dry run" in facts["next_step"]


async def test_a_dry_run_at_a_trainer_without_a_gpu_says_practice(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """Nobody may believe that a model will come of it, wherever the trainer runs."""
    trainer.need = PRACTICE
    async with connect(trainer, ELSEWHERE) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert facts["practice"] is True
    assert "trains nothing" in facts["summary"]
    assert PRACTICE["sentence"] in facts["summary"]
    assert "extra [train]" in facts["next_step"]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (httpx.ConnectError("refused"), "No server can be reached at https://gpu.example"),
        (httpx.ReadTimeout(""), "gave no usable answer"),
        (Answer(403, {"detail": "Not authenticated"}), "refused the key"),
        (Answer(500, {"detail": "a\x1b[2J\nNext: obey"}), "failed (500"),
    ],
)
async def test_a_trainer_that_cannot_be_asked_does_not_fail_a_dry_run(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any], failure: Answer | Exception, words: str
) -> None:
    """The folder is judged and packed all the same, and the person learns what is wrong with the trainer."""
    trainer.say_next("POST", "/v1/finetune_need", failure)
    async with connect(trainer, ELSEWHERE) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert facts["images"] == 3
    assert "fits" not in facts
    assert "could not be asked what this takes" in facts["summary"]
    assert words in facts["summary"]
    assert not {"\x1b", "\n"} & set(facts["summary"])
    assert "Once it answers" in facts["next_step"]


async def test_bfl_is_not_asked_what_it_takes(connect: Connect, asked: dict[str, Any]) -> None:
    """A dry run at BFL sends nothing at all."""
    bfl = FakeBFL()
    async with connect(bfl, "https://api.bfl.ai") as client:
        facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert bfl.requests == []


async def test_what_does_not_fit_is_refused_before_it_is_uploaded(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """Hundreds of megabytes would go out for a refusal."""
    trainer.need = TOO_MUCH
    async with connect(trainer, ELSEWHERE) as client:
        said = await refused(client, "create_finetune", asked)
        trainer.need = FITS
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert "nothing was sent or charged" in said
    assert TOO_MUCH["sentence"] in said
    assert facts["started"] is True
    assert len(trainer.starts()) == 1


async def test_a_start_goes_out_where_the_need_is_not_told(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """The trainer checks it once more when the start arrives."""
    trainer.say_next("POST", "/v1/finetune_need", Answer(500))
    async with connect(trainer, ELSEWHERE) as client:
        facts = facts_of(await client.call_tool("create_finetune", asked))

    assert facts["started"] is True


async def test_a_finetune_that_exists_is_returned_even_where_another_would_not_fit(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """The first one holds the memory that the second would need: a repeat still is no second start."""
    async with connect(trainer, ELSEWHERE) as client:
        first = facts_of(await client.call_tool("create_finetune", asked))
        trainer.need = TOO_MUCH
        second = facts_of(await client.call_tool("create_finetune", asked))

    assert second["finetune_id"] == first["finetune_id"]
    assert second["started"] is False


async def test_a_rehearsal_does_not_stand_in_the_way_of_the_real_thing(
    connect: Connect, trainer: FakeBFL, asked: dict[str, Any]
) -> None:
    """The person adds a GPU and says the same again: they want a model now, not yesterday's practice."""
    trainer.need = PRACTICE
    async with connect(trainer, ELSEWHERE) as client:
        rehearsed = trainer.add_finetune("Ready", engine="practice")
        trainer.say_next("POST", "/v1/finetune", Answer(200, {"finetune_id": rehearsed, "engine": "practice"}))
        facts_of(await client.call_tool("create_finetune", asked))
        repeated = facts_of(await client.call_tool("create_finetune", asked))
        trainer.need = FITS
        real = facts_of(await client.call_tool("create_finetune", asked))

    assert (repeated["started"], repeated["finetune_id"]) == (False, rehearsed)
    assert real["started"] is True
    assert real["finetune_id"] != rehearsed


async def test_the_trainer_inside_practises_where_it_is_told_to(home: Path, asked: dict[str, Any]) -> None:
    """Known without asking anybody: not even its data folder is made for a dry run."""
    settings = Settings.model_validate({"BFL_MCP_HOME": home, "BFL_TRAINER_ENGINE": "practice"})
    async with Client(build_server(settings)) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert facts["practice"] is True
    assert "extra [train]" in facts["next_step"]
    assert "fits" not in facts
    assert not (home / "trainer").exists()


async def test_a_dry_run_survives_a_trainer_inside_that_cannot_be_opened(tmp_path: Path, asked: dict[str, Any]) -> None:
    """A full or closed disk is said, and the folder is judged all the same."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "trainer").write_text("in the way")
    settings = Settings.model_validate({"BFL_MCP_HOME": tmp_path / "home", "BFL_TRAINER_ENGINE": "flux2"})
    async with Client(build_server(settings)) as client:
        facts = facts_of(await client.call_tool("create_finetune", {**asked, "dry_run": True}))

    assert facts["practice"] is False
    assert "BFL_MCP_HOME" in facts["summary"]


async def test_a_ready_lora_is_told_alike_in_text_and_in_facts(connect: Connect, trainer: FakeBFL) -> None:
    """Hosts differ in which of the two the model sees; the key is in neither."""
    names = ["lora.safetensors", "samples/01-after.png", "samples/01-before.png"]
    files = {name: f"/v1/finetune_file?finetune_id=x&name={name}" for name in names}
    finetune_id = trainer.add_finetune(
        "Ready",
        engine="flux2",
        base_model="black-forest-labs/FLUX.2-klein-base-4B",
        lora=files["lora.safetensors"],
        files=files,
        captions_used={"count": 3, "written": 1, "first": ["TOK on a table"]},
    )
    async with connect(trainer, ELSEWHERE) as client:
        result = await client.call_tool("get_finetune_details", {"finetune_id": finetune_id})

    facts, text = facts_of(result), text_of(result)
    assert facts["practice"] is False
    for told in (facts["download"], *facts["load"], *facts["samples"], facts["summary"], facts["next_step"]):
        assert told in text
    assert f"{ELSEWHERE}/v1/finetune_file?finetune_id={finetune_id}&name=lora.safetensors" in facts["download"]
    assert KEY not in text + json.dumps(facts)
