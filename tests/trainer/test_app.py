"""The five endpoints: keys, statuses, bodies, and what they add to BFL's."""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from bfl_mcp.contract import FinetuneInputs
from bfl_mcp.trainer.jobs import Jobs, Progress
from tests.trainer.archives import jpeg, slow_png, start, zipped
from tests.trainer.conftest import connect, make_app
from tests.trainer.processes import serving

NOT_FOUND = {"detail": "Finetune not found or access denied"}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/finetune", {"json": start()}),
    ("GET", "/v1/finetune_details", {"params": {"finetune_id": str(uuid.uuid4())}}),
    ("GET", "/v1/get_result", {"params": {"id": str(uuid.uuid4())}}),
    ("GET", "/v1/my_finetunes", {}),
    ("POST", "/v1/delete_finetune", {"json": {"finetune_id": str(uuid.uuid4())}}),
]


async def create(api: httpx.AsyncClient, **others: Any) -> str:
    answer = await api.post("/v1/finetune", json=start(**others))
    assert answer.status_code == 200, answer.text
    finetune_id: str = answer.json()["finetune_id"]
    return finetune_id


async def details(api: httpx.AsyncClient, finetune_id: str) -> dict[str, Any]:
    answer = await api.get("/v1/finetune_details", params={"finetune_id": finetune_id})
    assert answer.status_code == 200, answer.text
    facts: dict[str, Any] = answer.json()["finetune_details"]
    return facts


async def result(api: httpx.AsyncClient, finetune_id: str) -> dict[str, Any]:
    answer = await api.get("/v1/get_result", params={"id": finetune_id})
    assert answer.status_code == 200, answer.text
    task: dict[str, Any] = answer.json()
    return task


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "options"), REQUESTS)
async def test_every_endpoint_refuses_a_request_without_a_key(
    guarded: httpx.AsyncClient, method: str, path: str, options: dict[str, Any]
) -> None:
    """Bodies as BFL's, by which clients tell what is wrong."""
    answer = await guarded.request(method, path, **options)

    assert (answer.status_code, answer.json()) == (403, {"detail": "Not authenticated"})


@pytest.mark.parametrize("key", ["wrong", "test-ke", "test-key2", "schlüssel"])
@pytest.mark.parametrize(("method", "path", "options"), REQUESTS)
async def test_every_endpoint_refuses_a_wrong_key(
    guarded: httpx.AsyncClient, method: str, path: str, options: dict[str, Any], key: str
) -> None:
    """`get_result` too: BFL declared no key there, which let anybody read."""
    answer = await guarded.request(method, path, headers={b"x-key": key.encode()}, **options)

    assert (answer.status_code, answer.json()) == (403, {"detail": "Not authenticated - Invalid Authentication"})


@pytest.mark.parametrize(("method", "path", "options"), REQUESTS)
async def test_the_right_key_opens_every_endpoint(
    guarded: httpx.AsyncClient, method: str, path: str, options: dict[str, Any]
) -> None:
    """A check that refuses everybody would pass the other tests."""
    answer = await guarded.request(method, path, headers={"X-Key": "test-key"}, **options)

    assert answer.status_code in (200, 404)


@pytest.mark.parametrize("path", ["/v1/finetune", "/v1/delete_finetune"])
async def test_a_stranger_s_body_is_not_even_read(guarded: httpx.AsyncClient, path: str) -> None:
    """Reading first and asking for the key later would let anybody fill the memory."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(100_000)

    answer = await guarded.post(path, content=body())

    assert answer.status_code == 403
    assert read == 0


# --- the start --------------------------------------------------------------------------------------------------------


async def test_a_start_answers_the_id_and_the_engine(api: httpx.AsyncClient) -> None:
    """BFL answered the id alone; whoever reads ours must see at once that practice trains nothing."""
    answer = await api.post("/v1/finetune", json=start())

    body = answer.json()
    assert answer.status_code == 200
    assert body == {"finetune_id": str(uuid.UUID(body["finetune_id"], version=4)), "engine": "practice"}


async def test_a_finetune_on_disk_holds_neither_the_upload_nor_the_secret(api: httpx.AsyncClient, data: Path) -> None:
    """Folders are copied and backed up; a secret in one of them is a secret no more."""
    body = start(webhook_url="https://example.org/hook", webhook_secret="hush-hush")

    finetune_id = (await api.post("/v1/finetune", json=body)).json()["finetune_id"]

    everything = b"".join(files(data).values())
    request = json.loads((data / "finetunes" / finetune_id / "request.json").read_bytes())
    assert "file_data" not in request["parameters"]
    assert b"file_data" not in everything
    assert b"webhook_secret" not in everything
    assert b"hush-hush" not in everything
    assert body["file_data"][:200].encode() not in everything
    assert request["parameters"]["finetune_comment"] == "a comment"
    assert sorted(path.name for path in (data / "finetunes" / finetune_id / "dataset").iterdir()) == [
        *("001.jpg", "001.txt", "002.jpg", "002.txt")
    ]


async def test_unknown_request_fields_are_ignored(api: httpx.AsyncClient, data: Path) -> None:
    """BFL's FLUX.1 endpoints took them in silence, and clients send some."""
    finetune_id = await create(api, raw=True, width={"of": ["anything"]})

    assert "raw" not in (await details(api, finetune_id))
    assert b"anything" not in b"".join(files(data / "finetunes" / finetune_id).values())


WRONG: list[dict[str, Any]] = [
    {"iterations": 99},
    {"iterations": 1001},
    {"iterations": 150.5},
    {"iterations": "many"},
    {"mode": "portrait"},
    {"mode": None},
    {"learning_rate": 1e-7},
    {"learning_rate": 0.006},
    {"lora_rank": 24},
    {"priority": "slow"},
    {"finetune_type": "half"},
    {"finetune_comment": None, "trigger_word": 3, "captioning": "perhaps"},
    {"webhook_url": "ftp://example.org"},
    {"webhook_url": "https://example.org/" + "a" * 2083},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: json.dumps(wrong)[:40])
async def test_a_bad_field_is_refused_as_fastapi_would_but_without_the_input(
    api: httpx.AsyncClient, data: Path, wrong: dict[str, Any]
) -> None:
    """BFL's API is made of FastAPI, whose 422 repeats the whole upload: hundreds of megabytes for one wrong number."""
    reference = FastAPI()

    @reference.post("/v1/finetune")
    def finetune(inputs: FinetuneInputs) -> None: ...

    answer = await api.post("/v1/finetune", json=start(**wrong))

    async with connect(reference) as fastapi:
        expected = (await fastapi.post("/v1/finetune", json=start(**wrong))).json()["detail"]
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [{key: fault[key] for key in ("type", "loc", "msg")} for fault in expected],
    }
    assert not list((data / "finetunes").iterdir())


@pytest.mark.parametrize("missing", ["file_data", "finetune_comment", "mode"])
async def test_a_missing_field_is_named(api: httpx.AsyncClient, missing: str) -> None:
    """The three that BFL requires, and no other."""
    body = start()
    del body[missing]

    answer = await api.post("/v1/finetune", json=body)

    fault = {"type": "missing", "loc": ["body", missing], "msg": "Field required"}
    assert (answer.status_code, answer.json()) == (422, {"detail": [fault]})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"file_data": "\\ud800"}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/v1/finetune", "/v1/delete_finetune"])
async def test_a_body_that_is_no_object_is_refused(api: httpx.AsyncClient, path: str, body: bytes) -> None:
    """Whatever is sent, the answer is a list of faults and never a failure of the server."""
    answer = await api.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert all(set(fault) == {"type", "loc", "msg"} for fault in answer.json()["detail"])


@pytest.mark.parametrize("path", ["/v1/finetune_details", "/v1/get_result"])
async def test_a_query_without_its_id_is_refused(api: httpx.AsyncClient, path: str) -> None:
    """FastAPI's own 422 must go without `input` as well."""
    answer = await api.get(path)

    name = "id" if path == "/v1/get_result" else "finetune_id"
    fault = {"type": "missing", "loc": ["query", name], "msg": "Field required"}
    assert (answer.status_code, answer.json()) == (422, {"detail": [fault]})


# --- how large an upload may be ---------------------------------------------------------------------------------------


async def test_an_upload_announced_too_large_is_refused_unread(data: Path, no_worker: None) -> None:
    """Content-Length says so beforehand: nobody needs to wait for the rest."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(30):
            read += 1
            yield bytes(100_000)

    async with connect(make_app(data, max_upload_mb=2)) as api:
        answer = await api.post("/v1/finetune", content=body(), headers={"content-length": "3000000"})

    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("The request has 3.0 MB or more; this trainer takes at most 2 MB")
    assert read == 0


async def test_an_upload_without_a_length_is_cut_at_the_limit(data: Path, no_worker: None) -> None:
    """Chunked bodies announce nothing, so they are counted; the rest of a long one stays unread."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield bytes(100_000)

    async with connect(make_app(data, max_upload_mb=2)) as api:
        answer = await api.post("/v1/finetune", content=body())

    assert answer.status_code == 413
    assert "at most 2 MB (BFL_TRAINER_MAX_UPLOAD_MB)" in answer.json()["detail"]
    assert read == 21
    assert not list((data / "finetunes").iterdir())


async def test_an_upload_of_exactly_the_limit_is_taken(data: Path, no_worker: None) -> None:
    """A bound that refuses its own value contradicts the sentence about it."""
    body = json.dumps(start()).encode()

    async with connect(make_app(data, max_upload_mb=len(body) / 1e6)) as api:
        taken = await api.post("/v1/finetune", content=body)
        refused = await api.post("/v1/finetune", content=body + b" ")

    assert (taken.status_code, refused.status_code) == (200, 413)


def test_a_large_refused_upload_gets_its_sentence_over_a_real_connection(data: Path) -> None:
    """A connection closed while the client still sends must not eat the answer."""
    chunked = (bytes(1 << 16) for _ in range(1000))

    with serving(data, max_upload_mb=1) as server, server.client() as client:
        announced = client.post("/v1/finetune", content=bytes(50_000_000))
        counted = client.post("/v1/finetune", content=chunked)

    assert (announced.status_code, counted.status_code) == (413, 413)
    assert "at most 1 MB" in announced.json()["detail"]
    assert "at most 1 MB" in counted.json()["detail"]


def test_a_client_that_goes_away_half_way_leaves_nothing(data: Path) -> None:
    """Half an upload is no finetune, and the server goes on."""

    def half() -> Any:
        yield json.dumps(start()).encode()[:-100]
        raise ConnectionAbortedError

    with serving(data) as server, server.client() as client:
        with pytest.raises(ConnectionAbortedError):
            client.post("/v1/finetune", content=half())

        assert client.get("/v1/my_finetunes").json() == {"finetunes": []}
    assert not list((data / "finetunes").iterdir())


async def test_others_are_answered_while_an_upload_is_read(data: Path, no_worker: None) -> None:
    """Decoding a thousand images takes a minute, during which everybody else asks for their status."""
    slow = slow_png()
    body = start(zipped((f"{number}.png", slow) for number in range(8)))
    assert len(body["file_data"]) < 1_000_000
    ended = False
    answered = 0

    async with connect(make_app(data)) as api, anyio.create_task_group() as tasks:

        async def upload() -> None:
            nonlocal ended
            answer = await api.post("/v1/finetune", json=body)
            assert answer.status_code == 200
            ended = True

        tasks.start_soon(upload)
        with anyio.fail_after(30):
            while not ended:
                assert (await api.get("/v1/my_finetunes")).status_code == 200
                answered += not ended

    assert answered >= 3


# --- details, results, lists ------------------------------------------------------------------------------------------


async def test_the_details_repeat_what_was_asked_for_and_say_where_it_stands(api: httpx.AsyncClient) -> None:
    """The keys typed clients of 2025 know, and ours beside them."""
    asked = {"trigger_word": "rex", "mode": "product", "iterations": 120, "priority": "speed", "lora_rank": 16}
    await create(api)

    facts = await details(api, await create(api, **asked))

    assert asked.items() <= facts.items()
    assert facts["finetune_comment"] == "a comment"
    assert facts["finetune_type"] == "full"
    assert facts["engine"] == "practice"
    assert facts["state"] == "queued"
    assert facts["queue_position"] == 2
    assert facts["timestamp"].endswith("+00:00")
    assert not {"file_data", "webhook_secret", "webhook_url"} & set(facts)


@pytest.mark.parametrize(
    ("asked", "rate"),
    [({}, 1e-5), ({"finetune_type": "lora"}, 1e-4), ({"finetune_type": "lora", "learning_rate": 0.002}, 0.002)],
)
async def test_the_details_tell_the_learning_rate_that_is_used(
    api: httpx.AsyncClient, asked: dict[str, Any], rate: float
) -> None:
    """Null means another rate for each type, which nobody should have to know."""
    facts = await details(api, await create(api, **asked))

    assert facts["learning_rate"] == rate


@pytest.mark.parametrize(
    ("progress", "status", "fraction", "problem"),
    [
        (Progress("queued"), "Pending", 0, None),
        (Progress("training", 75, 7.25), "Pending", 0.25, None),
        (Progress("ready", 300), "Ready", 1, None),
        (Progress("failed", 30, error="it broke"), "Error", 0.1, {"error": "it broke"}),
    ],
)
async def test_a_state_becomes_the_word_bfl_has_for_it(
    api: httpx.AsyncClient, data: Path, progress: Progress, status: str, fraction: float, problem: Any
) -> None:
    """Clients loop until they read `Ready` or `Error`; everything in between is `Pending`."""
    finetune_id = await create(api)
    job = Jobs(data).find(finetune_id)
    assert job is not None

    job.write_progress(progress)

    task, facts = await result(api, finetune_id), await details(api, finetune_id)
    assert task == {
        "id": finetune_id,
        "status": status,
        "result": None,
        "progress": pytest.approx(fraction),
        "details": problem,
        "preview": None,
    }
    assert facts["state"] == progress.state
    assert facts.get("queue_position") == (1 if progress.state == "queued" else None)
    assert facts.get("seconds_left") == (7.2 if progress.state == "training" else None)


async def test_finetunes_are_listed_as_ids_oldest_first(api: httpx.AsyncClient) -> None:
    """Plain strings, as observed at BFL."""
    ids = [await create(api) for _ in range(4)]

    assert (await api.get("/v1/my_finetunes")).json() == {"finetunes": ids}


async def test_a_deleted_finetune_is_gone_from_everywhere(api: httpx.AsyncClient, data: Path) -> None:
    """Deleting removes the pictures, which is what people want when they ask for it."""
    kept, gone = await create(api), await create(api)

    answer = await api.post("/v1/delete_finetune", json={"finetune_id": gone})

    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"status", "message", "deleted_finetune_id", "timestamp"}
    assert body["deleted_finetune_id"] == gone
    assert [path.name for path in (data / "finetunes").iterdir()] == [kept]
    assert (await api.get("/v1/my_finetunes")).json() == {"finetunes": [kept]}
    assert (await api.get("/v1/finetune_details", params={"finetune_id": gone})).json() == NOT_FOUND
    again = await api.post("/v1/delete_finetune", json={"finetune_id": gone})
    assert (again.status_code, again.json()) == (404, NOT_FOUND)


STRANGE_IDS = [
    *("", ".", "..", "../../etc", "../victim", "/etc/passwd", "a" * 10_000, "{id}/", "{id}/dataset", "{id}\n"),
    *("{id}\0", ".new-{id}", "./{id}", "%2e%2e/{id}", "{ID}", "{{id}}", "*", "null", "١" * 8),
    "11111111-2222-3333-4444-555555555555",
]


@pytest.mark.parametrize("strange", STRANGE_IDS, ids=lambda strange: repr(strange)[:20])
async def test_a_strange_id_is_not_found_and_touches_nothing(api: httpx.AsyncClient, data: Path, strange: str) -> None:
    """An id names a folder, so whatever is no id of ours must not come near the disk."""
    real = await create(api)
    (data / "victim").mkdir()
    (data / "victim" / "request.json").write_text("{}", encoding="utf-8")
    (data / "finetunes" / f".new-{real}").mkdir()
    before = files(data)
    name = strange.replace("{id}", real).replace("{ID}", real.upper())

    looked = await api.get("/v1/finetune_details", params={"finetune_id": name})
    asked = await api.get("/v1/get_result", params={"id": name})
    deleted = await api.post("/v1/delete_finetune", json={"finetune_id": name})

    assert (looked.status_code, looked.json()) == (404, NOT_FOUND)
    assert (asked.status_code, asked.json()["status"]) == (404, "Task not found")
    assert (deleted.status_code, deleted.json()) == (404, NOT_FOUND)
    assert files(data) == before


async def test_an_archive_of_any_number_of_parts_arrives_whole(api: httpx.AsyncClient, data: Path) -> None:
    """The body is written to disk in blocks, whose seams must not show."""
    body = json.dumps(start(zipped([(f"{number}.jpg", jpeg(9, 2500, 2000)) for number in range(9)]))).encode()

    async def parts() -> AsyncIterator[bytes]:
        for position in range(0, len(body), 77_777):
            yield body[position : position + 77_777]

    answer = await api.post("/v1/finetune", content=parts())

    assert answer.status_code == 200
    dataset = data / "finetunes" / answer.json()["finetune_id"] / "dataset"
    assert [path.read_bytes() for path in sorted(dataset.iterdir())] == [jpeg(9, 2500, 2000)] * 9


@pytest.mark.parametrize("escaped", [False, True])
async def test_a_long_upload_is_read_like_a_short_one(api: httpx.AsyncClient, data: Path, escaped: bool) -> None:
    """In a long body `file_data` is cut out before the JSON is parsed; some encoders write its slashes as `\\/`."""
    picture = jpeg(3, 3000, 2000)
    archive = zipped((f"{number}.jpg", picture) for number in range(20))
    body = json.dumps(start(archive, finetune_comment='größe \\/ "x"', raw="A" * 5000, webhook_url=None))
    assert len(body) > 2_000_000

    answer = await api.post("/v1/finetune", content=body.replace("/", "\\/") if escaped else body)

    assert answer.status_code == 200
    assert (await details(api, answer.json()["finetune_id"]))["finetune_comment"] == 'größe \\/ "x"'
    dataset = data / "finetunes" / answer.json()["finetune_id"] / "dataset"
    assert [path.read_bytes() for path in sorted(dataset.iterdir())] == [picture] * 20


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "portrait"}, "Input should be 'general', 'character', 'style' or 'product'"),
        ({"file_data": "A" * 3_000_001}, "file_data is not base64"),
        ({"file_data": "=" * 3_000_000}, "file_data is not base64"),
        ({"file_data": "A" * 3_000_000}, "file_data is not a ZIP"),
        ({"file_data": "data:," + "A" * 3_000_000}, "file_data is not base64"),
        ({"file_data": "😀" + "A" * 3_000_000}, "file_data is not base64"),
        ({"file_data": "AAAA", "finetune_comment": "A" * 3_000_000}, "more than 1 MB beside it"),
        ({"raw": [[]] * 600_000}, "more than 1 MB beside it"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_long_bad_upload_is_refused_in_words(
    api: httpx.AsyncClient, changes: dict[str, Any], words: str
) -> None:
    """Cutting `file_data` out must not hide a fault, nor put the archive where a comment should be."""
    archive = zipped([("a.jpg", jpeg(3, 3000, 2000) + bytes(1_500_000))])

    answer = await api.post("/v1/finetune", json=start(archive, **changes))

    assert answer.status_code == 422
    assert words in answer.json()["detail"][0]["msg"]
    assert len(answer.content) < 1000


async def test_a_key_is_never_part_of_what_is_kept(data: Path, no_worker: None) -> None:
    """The trainer checks the key and has no other use for it."""
    async with connect(make_app(data, api_key=SecretStr("test-key")), **{"x-key": "test-key"}) as api:
        finetune_id = await create(api)
        await details(api, finetune_id)

    assert (data / "finetunes" / finetune_id / "request.json").exists()
    assert b"test-key" not in b"".join(files(data).values())
