"""What a finetune of our trainer has come to, told from its details."""

import ast
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from bfl_mcp.client import BFLClient
from bfl_mcp.finetunes.status import FinetuneStatus, read_status
from tests.fakes.bfl import KEY, FakeBFL

URL = "https://gpu.example"
OUTCOME: dict[str, Any] = {
    "finetune_comment": "Toy robot, first try!",
    "trigger_word": "TOKBOT",
    "finetune_type": "full",
    "lora_rank": 32,
    "engine": "flux2",
    "state": "ready",
    "base_model": "black-forest-labs/FLUX.2-klein-base-4B",
    "seed": 7,
    "loss_first": 1.6468,
    "loss_last": 1.0504,
    "kept_energy": 0.9588,
    "captions_used": {"count": 12, "written": 5, "first": ["TOKBOT on a table", "TOKBOT, it's red", "TOKBOT"]},
}
NAMES = ["README.md", "captions.json", "lora.safetensors", "samples/01-after.png", "samples/01-before.png"]


@pytest.fixture
def bfl() -> FakeBFL:
    return FakeBFL()


@pytest.fixture
async def elsewhere(bfl: FakeBFL) -> AsyncIterator[BFLClient]:
    client = BFLClient(URL, SecretStr(KEY), transport=bfl.transport())
    yield client
    await client.aclose()


@pytest.fixture
async def inside(bfl: FakeBFL) -> AsyncIterator[BFLClient]:
    """The trainer inside a process needs no key."""
    bfl.key = None
    client = BFLClient("http://trainer.invalid", app=bfl.app())
    yield client
    await client.aclose()


def told_elsewhere(**changed: Any) -> dict[str, Any]:
    files = {name: f"/v1/finetune_file?finetune_id=x&name={name}" for name in NAMES}
    return {**OUTCOME, "files": files, "lora": files["lora.safetensors"], **changed}


def told_inside(folder: Path) -> dict[str, Any]:
    files = {name: str(folder / name) for name in NAMES}
    return {**OUTCOME, "files": files, "lora": files["lora.safetensors"]}


async def read(bfl: FakeBFL, client: BFLClient, details: dict[str, Any], status: str = "Ready") -> FinetuneStatus:
    finetune_id = bfl.add_finetune(status, **details)
    return await read_status(client, finetune_id)


async def test_what_was_trained_is_told(bfl: FakeBFL, inside: BFLClient, tmp_path: Path) -> None:
    """Where it is, what it is for, how well it went, and what it learned from."""
    summary = (await read(bfl, inside, told_inside(tmp_path))).summary

    assert summary == (
        "The finetune 'Toy robot, first try!' is ready. It is a LoRA of rank 32 for "
        f"'black-forest-labs/FLUX.2-klein-base-4B', trigger word 'TOKBOT', in '{tmp_path / 'lora.safetensors'}'. The "
        "loss went from 1.65 to 1.05. It holds 95.8% of what full training changed. Captions: 12, 5 of them written "
        "by the trainer, such as 'TOKBOT on a table'; \"TOKBOT, it's red\"; 'TOKBOT'."
    )


async def test_a_lora_on_this_machine_is_loaded_from_its_path(bfl: FakeBFL, inside: BFLClient, tmp_path: Path) -> None:
    """Nothing is to be fetched, and the samples can be opened."""
    status = await read(bfl, inside, told_inside(tmp_path))

    assert status.download is None
    model = '"black-forest-labs/FLUX.2-klein-base-4B"'
    assert status.load == [
        f'pipe = diffusers.Flux2KleinPipeline.from_pretrained({model}, torch_dtype=torch.bfloat16).to("cuda")',
        f"pipe.load_lora_weights({json.dumps(str(tmp_path / 'lora.safetensors'))})",
        'image = pipe(prompt="a picture of TOKBOT").images[0]',
    ]
    assert status.samples == [str(tmp_path / "samples" / f"01-{when}.png") for when in ("before", "after")]


async def test_a_lora_elsewhere_is_fetched_with_the_key_unshown(tmp_path: Path) -> None:
    """The command works as it stands in a shell that has the key, and no conversation holds it."""
    bfl = FakeBFL()
    with bfl.serve() as url:
        client = BFLClient(url, SecretStr(KEY))
        status = await read(bfl, client, told_elsewhere())
        await client.aclose()

    assert status.download is not None
    assert status.finetune_id is not None
    words = shlex.split(status.download)
    # Two finetunes of one name must not be written over each other.
    name = f"toy-robot-first-try-{status.finetune_id[:8]}.safetensors"
    assert words[:-1] == ["curl", "--fail", "--header", "x-key: $BFL_API_KEY", "--output", name]
    assert (words[-1].startswith(f"{url}/v1/finetune_file?"), KEY in status.model_dump_json()) == (True, False)
    asked = {"finetune_id": [status.finetune_id], "name": ["lora.safetensors"]}
    assert parse_qs(urlsplit(words[-1]).query) == asked
    assert status.load is not None
    assert f'load_lora_weights("{name}")' in status.load[1]
    assert f"fetch {name} with the command under download" in status.next_step
    assert status.next_step.endswith(f"and the file {name}.")
    assert status.samples == ["samples/01-before.png", "samples/01-after.png"]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("black-forest-labs/FLUX.2-klein-base-4B", "Base Model flux-2-klein-base-4b"),
        ("/models/FLUX.2-klein-base-9B", "Base Model flux-2-klein-base-9b"),
        ("/models/mine", "Base Model as trained"),
    ],
)
async def test_the_way_to_bfl_is_told_field_by_field(
    bfl: FakeBFL, inside: BFLClient, tmp_path: Path, model: str, shown: str
) -> None:
    """BFL's form in its dashboard is the only way: there is no endpoint for it."""
    next_step = (await read(bfl, inside, {**told_inside(tmp_path), "base_model": model})).next_step

    assert "Customization → Finetunes → + Add Finetune" in next_step
    assert "Name toy-robot-first-try," in next_step
    assert f"{shown}, Precision FP8, Trigger Phrase 'TOKBOT'," in next_step


@pytest.mark.parametrize("comment", ["", "💥", "ÄÖ", "-_-"])
async def test_any_name_becomes_one_that_bfl_takes(
    bfl: FakeBFL, inside: BFLClient, tmp_path: Path, comment: str
) -> None:
    """Small letters, digits, hyphens and underscores, and never nothing."""
    next_step = (await read(bfl, inside, {**told_inside(tmp_path), "finetune_comment": comment})).next_step

    name = next_step.split("with Name ")[1].split(",")[0]
    assert name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


async def test_texts_from_elsewhere_stay_texts(bfl: FakeBFL, elsewhere: BFLClient) -> None:
    """Any server may answer like ours: its words end no quotation, no literal and no command."""
    evil = "'\"; rm -rf ~ #\n\u202e\x1b[2J$(id)`id`\\"
    details = told_elsewhere(
        base_model=evil,
        trigger_word=evil,
        captions_used={"count": 1, "written": 1, "first": [evil] * 50},
        files={evil: evil, f"samples/01-before.png{evil}": evil},
    )

    status = await read(bfl, elsewhere, details)

    assert status.load is not None
    # Each line is one assignment or one call, whose arguments are literals.
    for line in status.load:
        [statement] = ast.parse(line).body
        assert isinstance(statement, ast.Assign | ast.Expr)
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        assert names <= {"pipe", "image", "diffusers", "torch"}
    assert status.download is not None
    assert shlex.split(status.download)[-1].startswith(f"{URL}/v1/finetune_file?")
    assert "rm" not in status.download
    assert status.samples is None
    for text in (status.summary, status.next_step, *status.load):
        assert not {"\n", "\u202e", "\x1b"} & set(text)
    assert len(status.summary) < 1500


@pytest.mark.parametrize(
    "lora", ["/etc/passwd", "https://evil.example/x", "/v1/other?x", "C:\\lora.safetensors", 5, None, "", ["/a"]]
)
async def test_only_the_trainer_inside_may_name_a_path(bfl: FakeBFL, elsewhere: BFLClient, lora: object) -> None:
    """A path that somebody else names is none of this machine's files."""
    status = await read(bfl, elsewhere, told_elsewhere(lora=lora))

    assert (status.state, status.load, status.download, status.samples) == ("ready", None, None, None)
    assert "finetuned image endpoints" in status.next_step


@pytest.mark.parametrize("folder", ["x" * 300, "a\u202eb"])
async def test_a_path_that_cannot_be_shown_whole_is_not_made_a_command(
    bfl: FakeBFL, inside: BFLClient, folder: str
) -> None:
    """The details hold it; a line with its end missing would load nothing."""
    status = await read(bfl, inside, told_inside(Path("/data") / folder))

    assert (status.state, status.load) == ("ready", None)


async def test_a_practice_finetune_offers_nothing_to_load(bfl: FakeBFL, inside: BFLClient, tmp_path: Path) -> None:
    """It never looks like a real one, and says how to get one."""
    status = await read(bfl, inside, {**told_inside(tmp_path), "engine": "practice"})

    assert (status.practice, status.load, status.download) == (True, None, None)
    assert "there is no model" in status.summary
    assert "extra [train]" in status.next_step
    assert "`bfl-mcp trainer`" in status.next_step
    assert "BFL_API_URL and BFL_API_KEY" in status.next_step


async def test_the_stage_is_told_while_it_trains(bfl: FakeBFL, elsewhere: BFLClient) -> None:
    """Minutes of downloading look like standing still otherwise."""
    doing = "downloading the base model, 3.1 of 16.0 GB"
    details = {**OUTCOME, "state": "training", "doing": doing, "seconds_left": 600}

    status = await read(bfl, elsewhere, details, "Pending")

    assert (status.state, status.doing) == ("training", doing)
    assert status.summary == (
        f"The finetune 'Toy robot, first try!' is training: about 10 minutes left. Doing now: '{doing}'."
    )
    assert status.load is None


async def test_a_reason_with_its_remedies_is_shown_whole(bfl: FakeBFL, elsewhere: BFLClient) -> None:
    """What ends a training says what to change; half of it would help nobody."""
    reason = (
        "The loss became infinite at step 42 of 300, as it does with too large steps. " * 4 + "Lower learning_rate."
    )
    finetune_id = bfl.add_finetune("Error", **OUTCOME)
    bfl.results[finetune_id]["details"] = {"error": reason}

    status = await read_status(elsewhere, finetune_id)

    assert reason in status.summary
    assert "change what it names" in status.next_step
