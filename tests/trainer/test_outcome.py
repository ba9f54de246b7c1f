"""What our trainer adds to BFL's API: whether a training fits, what has come of one, and its files."""

import json
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr

from bfl_mcp import __version__
from bfl_mcp.contract import DEFAULT_MODEL, TrainerNeed
from bfl_mcp.trainer.hardware import GIB, Device, Hardware, choose_engine
from bfl_mcp.trainer.jobs import Job, Jobs, Progress
from tests.trainer.archives import start
from tests.trainer.conftest import connect, make_app
from tests.trainer.processes import names
from tests.trainer.test_needs import write_model

OUTCOME: dict[str, Any] = {
    "base_model": DEFAULT_MODEL,
    "seed": 42,
    "loss_first": 1.5,
    "loss_last": 0.5,
    "kept_energy": None,
    "captions": {"count": 2, "written": 1, "first": ["photo of TOK"]},
    "files": ["lora.safetensors", "README.md", "samples/01-before.png"],
}
WEIGHTS = bytes(range(256)) * 20_000


def card(gib: float, name: str = "NVIDIA GeForce RTX 4070") -> Hardware:
    return Hardware(is_installed=True, devices=(Device(name, int(gib * GIB), int(gib * GIB), "cuda"),))


def need(**others: Any) -> dict[str, Any]:
    return {"finetune_comment": "a comment", "mode": "style", "images": 2, **others}


def put_ready(data: Path, outcome: dict[str, Any] = OUTCOME) -> Job:
    """A finetune as flux2 leaves it."""
    parameters = {"iterations": 100, "learning_rate": None, "finetune_type": "lora"}

    def fill(dataset: Path) -> None:
        (dataset / "001.txt").write_text("secret", encoding="utf-8")

    job = Jobs(data).create(parameters, "flux2", {}, fill)
    (job.folder / "samples").mkdir()
    (job.folder / "lora.safetensors").write_bytes(WEIGHTS)
    (job.folder / "README.md").write_text("# a model", encoding="utf-8")
    (job.folder / "samples" / "01-before.png").write_bytes(b"a picture")
    job.write_outcome(outcome)
    job.write_progress(Progress("ready", 100))
    return job


async def details(api: httpx.AsyncClient, job: Job) -> dict[str, Any]:
    answer = await api.get("/v1/finetune_details", params={"finetune_id": job.finetune_id})
    assert answer.status_code == 200, answer.text
    facts: dict[str, Any] = answer.json()["finetune_details"]
    return facts


async def fetch(api: httpx.AsyncClient, job: Job | str, name: str) -> httpx.Response:
    finetune_id = job if isinstance(job, str) else job.finetune_id
    return await api.get("/v1/finetune_file", params={"finetune_id": finetune_id, "name": name})


# --- whether it fits --------------------------------------------------------------------------------------------------


async def test_a_start_that_does_not_fit_is_refused_with_need_present_and_remedy(data: Path, no_worker: None) -> None:
    """An hour of download and an exhausted GPU later is the wrong time to learn it."""
    app = make_app(data, engine="flux2", hardware=card(12))

    async with connect(app) as api:
        answer = await api.post("/v1/finetune", json=start())

    fault = answer.json()["detail"][0]
    assert answer.status_code == 422
    assert (fault["type"], fault["loc"]) == ("need", ["body", "finetune_type"])
    assert fault["msg"] == (
        'finetune_type="full" with priority="quality" takes 19.2 GiB of GPU memory; NVIDIA GeForce RTX 4070 has 12.0 '
        'GiB. It fits with finetune_type="lora" (11.3 GiB); or take a GPU with more memory.'
    )
    assert names(data / "finetunes") == []


async def test_the_question_beforehand_says_what_the_start_would_say(data: Path, no_worker: None) -> None:
    """A dry run that says yes to what is then refused is worse than none."""
    async with connect(make_app(data, engine="flux2", hardware=card(12))) as api:
        refused = await api.post("/v1/finetune", json=start())
        asked = await api.post("/v1/finetune_need", json=need())

    answer = TrainerNeed.model_validate(asked.json())
    assert (asked.status_code, answer.engine, answer.fits) == (200, "flux2", False)
    assert answer.sentence == " ".join(fault["msg"] for fault in refused.json()["detail"])


async def test_what_fits_is_taken_with_the_choices_of_the_trainer(
    data: Path, no_worker: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker may start days later and elsewhere: whole paths, and everything that decides the outcome."""
    write_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    app = make_app(data, engine="flux2", hardware=card(24), model="model", captioner="a/captioner", max_px=128)

    async with connect(app) as api:
        asked = (await api.post("/v1/finetune_need", json=need())).json()
        created = (await api.post("/v1/finetune", json=start())).json()

    job = Jobs(data).find(created["finetune_id"])
    assert job is not None
    assert asked["fits"]
    assert "NVIDIA GeForce RTX 4070 has 24.0 GiB" in asked["sentence"]
    assert created["engine"] == job.engine == "flux2"
    assert job.options == {"model": str(tmp_path / "model"), "captioner": "a/captioner", "max_px": 128, "seed": 42}


async def test_of_several_cards_the_smallest_decides(data: Path, no_worker: None) -> None:
    """Any of them may get the job."""
    both = Hardware(is_installed=True, devices=(*card(80, "the large one").devices, *card(8, "the small one").devices))

    async with connect(make_app(data, engine="flux2", hardware=both, gpus=2)) as api:
        two = (await api.post("/v1/finetune_need", json=need())).json()
    async with connect(make_app(data, engine="flux2", hardware=both, gpus=1)) as api:
        one = (await api.post("/v1/finetune_need", json=need())).json()

    assert "the small one has 8.0 GiB" in two["sentence"]
    assert "the small one" not in one["sentence"]


async def test_flux2_without_its_packages_is_refused_at_once(data: Path, no_worker: None) -> None:
    """Asked for by name, it must not turn into a rehearsal in silence."""
    hardware = Hardware(is_installed=False, problem="the packages of the extra [train] are not installed")

    async with connect(make_app(data, engine="flux2", hardware=hardware)) as api:
        answer = await api.post("/v1/finetune", json=start())

    assert answer.status_code == 422
    assert "the packages of the extra [train] are not installed" in answer.json()["detail"][0]["msg"]


async def test_practice_always_fits_and_says_what_it_is(api: httpx.AsyncClient) -> None:
    """A dry run at the practice trainer must not sound as if something were trained."""
    answer = (await api.post("/v1/finetune_need", json=need(finetune_type="full"))).json()

    assert (answer["engine"], answer["fits"]) == ("practice", True)
    assert "trains nothing" in answer["sentence"]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"images": 1001}, {"images": None}, {"iterations": 5}])
async def test_a_question_with_a_bad_field_is_refused(api: httpx.AsyncClient, wrong: dict[str, Any]) -> None:
    """The same bounds as at the start."""
    answer = await api.post("/v1/finetune_need", json=need(**wrong))

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", next(iter(wrong))]


# --- which engine -----------------------------------------------------------------------------------------------------


def test_auto_trains_really_where_packages_and_a_gpu_are() -> None:
    """And practises everywhere else; what was asked for by name stays."""
    bare = Hardware(is_installed=True, problem="PyTorch finds no CUDA or ROCm GPU")

    assert choose_engine("auto", card(12)) == "flux2"
    assert choose_engine("auto", bare) == "practice"
    assert choose_engine("auto", Hardware(is_installed=False)) == "practice"
    assert choose_engine("practice", card(12)) == "practice"
    assert choose_engine("flux2", bare) == "flux2"


# --- what has come of it ----------------------------------------------------------------------------------------------


async def test_the_details_of_a_ready_finetune_tell_what_has_come_of_it(api: httpx.AsyncClient, data: Path) -> None:
    """Losses, captions, seed and where the files can be fetched, which the answer of BFL has no place for."""
    job = put_ready(data)

    facts = await details(api, job)

    files = facts["files"]
    assert facts["engine"] == "flux2"
    assert (facts["base_model"], facts["seed"]) == (DEFAULT_MODEL, 42)
    assert (facts["loss_first"], facts["loss_last"]) == (1.5, 0.5)
    assert "kept_energy" not in facts
    assert facts["captions_used"] == OUTCOME["captions"]
    assert list(files) == OUTCOME["files"]
    assert facts["lora"] == files["lora.safetensors"]
    url = urlsplit(files["samples/01-before.png"])
    assert (url.netloc, url.path) == ("", "/v1/finetune_file")
    assert parse_qs(url.query) == {"finetune_id": [job.finetune_id], "name": ["samples/01-before.png"]}
    assert (await api.get(files["samples/01-before.png"])).content == b"a picture"


async def test_a_trainer_inside_the_server_tells_where_the_files_lie(data: Path, no_worker: None) -> None:
    """On the same machine a path is what every other program takes."""
    job = put_ready(data)

    async with connect(make_app(data, tells_paths=True)) as api:
        facts = await details(api, job)

    assert facts["files"] == {name: str(job.folder / name) for name in OUTCOME["files"]}
    assert facts["lora"] == str(job.folder / "lora.safetensors")


async def test_a_training_says_what_it_is_doing(api: httpx.AsyncClient, data: Path) -> None:
    """Sixteen gigabytes take a while, in which nothing is trained."""
    job = put_ready(data)
    job.write_progress(Progress("training", doing="downloading the base model, 3.1 of 16.0 GB"))

    facts = await details(api, job)

    assert facts["doing"] == "downloading the base model, 3.1 of 16.0 GB"
    assert "lora" not in facts


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"files": "lora.safetensors", "captions": [1], "loss_last": NaN}',
        b'{"files": [1, null, ["a"], {}, "../request.json", "/etc/passwd", "", "gone.png", "a\\u0000b"]}',
    ],
)
async def test_an_outcome_that_makes_no_sense_costs_only_itself(
    api: httpx.AsyncClient, data: Path, content: bytes
) -> None:
    """The file lies on a disk where anything may happen to it; the parameters are still there to be told."""
    job = put_ready(data)
    (job.folder / "outcome.json").write_bytes(content)

    facts = await details(api, job)

    assert facts["state"] == "ready"
    assert not {"lora", "files", "captions_used", "loss_last"} & set(facts)


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_file_comes_whole_and_as_bytes_to_keep(api: httpx.AsyncClient, data: Path) -> None:
    """Five megabytes in blocks, with their length; never as a page that a browser would show."""
    answer = await fetch(api, put_ready(data), "lora.safetensors")

    assert (answer.status_code, answer.content) == (200, WEIGHTS)
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="lora.safetensors"'


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "/", "request.json", "progress.json", "outcome.json", "log.txt", "dataset/001.txt"),
        *("../../key", "samples", "samples/", "samples/../lora.safetensors", "./lora.safetensors", "/etc/passwd"),
        *("..%2fkey", "lora.safetensors\0", "LORA.SAFETENSORS", "lora.safetensors/", "a" * 5000, "\\..\\key", "*"),
    ],
    ids=lambda name: repr(name)[:30],
)
async def test_only_names_that_the_outcome_lists_are_given(api: httpx.AsyncClient, data: Path, name: str) -> None:
    """The person's pictures, the request and the key lie in the same folders."""
    (data / "key").write_text("test-key", encoding="utf-8")

    answer = await fetch(api, put_ready(data), name)

    assert answer.status_code == 404
    assert "no file of that name" in answer.json()["detail"]


@pytest.mark.parametrize("name", ["../../key", "samples/../../../key", "link", "folder/key"])
async def test_even_an_outcome_cannot_lead_out_of_its_folder(api: httpx.AsyncClient, data: Path, name: str) -> None:
    """Names in a file are text, and links are drawn by whoever can write there."""
    (data / "key").write_text("test-key", encoding="utf-8")
    job = put_ready(data, {**OUTCOME, "files": [name, "lora.safetensors"]})
    (job.folder / "link").symlink_to(data / "key")
    (job.folder / "folder").symlink_to(data)

    answer = await fetch(api, job, name)

    assert answer.status_code == 404
    assert list((await details(api, job))["files"]) == ["lora.safetensors"]


async def test_files_are_given_of_ready_finetunes_alone(api: httpx.AsyncClient, data: Path) -> None:
    """Half a LoRA loads nowhere; another finetune's id, or none, opens nothing."""
    job, empty = put_ready(data), put_ready(data, {**OUTCOME, "files": []})
    assert (await fetch(api, job, "lora.safetensors")).status_code == 200

    job.write_progress(Progress("training", 99))

    for other in (job, empty, str(uuid.uuid4()), f"../finetunes/{job.finetune_id}", ""):
        assert (await fetch(api, other, "lora.safetensors")).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"x-key": "wrong"}])
@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("GET", "/v1/finetune_file", {"params": {"finetune_id": "{id}", "name": "lora.safetensors"}}),
        ("POST", "/v1/finetune_need", {"json": need()}),
    ],
)
async def test_our_additions_want_the_key_too(
    data: Path, no_worker: None, headers: dict[str, str], method: str, path: str, options: dict[str, Any]
) -> None:
    """A model of somebody's face is theirs."""
    filled = json.loads(json.dumps(options).replace("{id}", put_ready(data).finetune_id))

    async with connect(make_app(data, api_key=SecretStr("test-key"))) as api:
        refused = await api.request(method, path, headers=headers, **filled)
        taken = await api.request(method, path, headers={"x-key": "test-key"}, **filled)

    assert (refused.status_code, taken.status_code) == (403, 200)


async def test_health_is_told_to_anybody_and_nothing_else(guarded: httpx.AsyncClient) -> None:
    """Whoever watches over the machine needs no key for it."""
    answer = await guarded.get("/healthz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "engine": "practice", "version": __version__}
