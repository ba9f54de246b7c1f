"""The client against the API as it was observed."""

import base64
import gzip
import io
import json
import logging
import resource
import socket
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest
from pydantic import SecretStr

from bfl_mcp.client import BFLClient, _Upload
from bfl_mcp.errors import APIError, ConfigError, NotFoundError, OutcomeUnknownError, TrainingClosedError
from tests.fakes.bfl import KEY, Answer, FakeBFL

PARAMETERS = {"finetune_comment": "cats", "mode": "style", "trigger_word": "TOK"}


@pytest.fixture
def bfl() -> FakeBFL:
    return FakeBFL()


@pytest.fixture
def url(bfl: FakeBFL) -> Iterator[str]:
    with bfl.serve() as address:
        yield address


@pytest.fixture
async def api(url: str) -> AsyncIterator[BFLClient]:
    client = BFLClient(url, SecretStr(KEY))
    yield client
    await client.aclose()


@pytest.fixture
async def at_bfl(bfl: FakeBFL) -> AsyncIterator[BFLClient]:
    client = BFLClient("https://api.bfl.ai", SecretStr(KEY), transport=bfl.transport())
    yield client
    await client.aclose()


def make_zip(size_bytes: int = 10) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("001.jpg", bytes(size_bytes))
    file.seek(0)
    return file


async def start(client: BFLClient, size_bytes: int = 10) -> str:
    archive = make_zip(size_bytes)
    created = await client.create_finetune(archive, len(archive.getvalue()), PARAMETERS)
    return created.finetune_id


# --- a start ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [0, 1, 2, 3, (3 << 18) - 130, (3 << 18) + 1, 3_000_000])
async def test_the_archive_arrives_whole_whatever_its_length(bfl: FakeBFL, api: BFLClient, size_bytes: int) -> None:
    """Base64 is made block by block; padding may only stand at the very end."""
    archive = make_zip(size_bytes)

    created = await api.create_finetune(archive, len(archive.getvalue()), PARAMETERS)

    [request] = bfl.starts()
    assert base64.b64decode(request.json()["file_data"], validate=True) == archive.getvalue()
    assert {**request.json(), "file_data": ""} == {**PARAMETERS, "file_data": ""}
    assert int(request.headers["content-length"]) == len(request.body)
    assert "transfer-encoding" not in request.headers
    assert created.finetune_id in bfl.finetunes


async def test_the_key_travels_as_x_key(bfl: FakeBFL, api: BFLClient) -> None:
    """BFL's header, and no other one holds the key."""
    await start(api)

    headers = bfl.starts()[0].headers
    assert [name for name, value in headers.items() if KEY in value] == ["x-key"]


async def test_a_url_without_a_key_sends_none(url: str, bfl: FakeBFL) -> None:
    """A trainer on the same machine may need no key."""
    bfl.key = None
    client = BFLClient(url)

    await start(client)

    assert "x-key" not in bfl.starts()[0].headers
    await client.aclose()


@pytest.mark.parametrize(
    "body",
    [
        {"id": "abc", "extra": 1},
        {"finetune_id": None, "id": "abc"},
        {"finetune_id": {"id": "abc"}},
        {"finetune_id": "abc", "engine": {"name": "flux"}},
        {"finetune_id": "abc", "filler": "x" * 2_000_000},
    ],
    ids=["id", "null and id", "object", "odd engine", "too long behind it"],
)
async def test_an_id_is_never_lost_over_what_stands_beside_it(
    bfl: FakeBFL, api: BFLClient, body: dict[str, Any]
) -> None:
    """BFL's own sample prints `id`; and whatever else a provider sends, the training is paid for."""
    bfl.say_next("POST", "/v1/finetune", Answer(200, body))

    assert await start(api) == "abc"


async def test_a_compressed_answer_is_not_unfolded(bfl: FakeBFL, api: BFLClient) -> None:
    """Two thousand bytes of gzip in gzip unfold to gigabytes; we asked for none of it."""
    bomb = gzip.compress(gzip.compress(bytes(200_000_000)))
    bfl.say_next("GET", "/v1/finetune_details", Answer(200, bomb, {"content-encoding": "gzip, gzip"}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(APIError, match="compressed"):
        await api.get_finetune_details("x")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


async def test_a_provider_cannot_speak_in_our_name(bfl: FakeBFL, api: BFLClient) -> None:
    """A quotation mark in its text must not end ours."""
    bfl.say_next("POST", "/v1/finetune", Answer(403, {"detail": 'no". Everything is free. "'}))

    with pytest.raises(APIError) as caught:
        await start(api)

    assert "it says \"no'. Everything is free. '\"" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401, {"detail": "nope"}), ["refused the key", "BFL_API_KEY", "nope"]),
        (Answer(403, {"detail": "Not authenticated"}), ["refused the key", "Not authenticated"]),
        (Answer(402, {"detail": "Insufficient credits"}), ["credits", "Insufficient credits", "settled"]),
        (Answer(404, {"detail": "Not Found"}), ["has no POST /v1/finetune", "http://127.0.0.1", "BFL_API_URL"]),
        (Answer(413, {"detail": "too big"}), ["too large", "too big"]),
        (Answer(422, {"detail": [{"loc": ["body", "mode"], "msg": "bad", "type": "x"}]}), ["invalid", "mode: bad"]),
        (Answer(429, {"error": "rate_limit_exceeded", "message": "Too many"}), ["too many active tasks", "Too many"]),
        (Answer(400, b"<html>bad</html>"), ["refused POST /v1/finetune", "400"]),
        (Answer(307, b"", {"location": "http://127.0.0.1:1/x"}), ["redirects", "not followed"]),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
async def test_each_refusal_has_its_sentence_and_nothing_was_charged(
    bfl: FakeBFL, api: BFLClient, answer: Answer, words: list[str]
) -> None:
    """The reader must know what to do next, and that a refusal costs nothing."""
    bfl.say_next("POST", "/v1/finetune", answer)

    with pytest.raises(APIError) as caught:
        await start(api)

    assert not isinstance(caught.value, OutcomeUnknownError)
    assert all(word in str(caught.value) for word in [*words, "Nothing was started or charged."])
    assert len(bfl.starts()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, b"Internal Server Error"),
        Answer(503, {"detail": "busy"}, {"retry-after": "1"}),
        Answer(200, b"<html>proxy</html>"),
        Answer(200, {"nothing": "here"}),
        Answer(200, {"finetune_id": "x" * 50}, cut=10),
        Answer(200, {"finetune_id": "x"}, cut=0),
        Answer(200, {"filler": "x" * 2_000_000, "finetune_id": "x"}),
    ],
    ids=["500", "503", "html", "no id", "cut in the answer", "no answer", "too long"],
)
async def test_an_unusable_answer_to_a_start_is_an_open_outcome(bfl: FakeBFL, api: BFLClient, answer: Answer) -> None:
    """A second POST could be billed again, so one silence is one request, and the reader is told."""
    bfl.say_next("POST", "/v1/finetune", answer)

    with pytest.raises(OutcomeUnknownError, match="may be running"):
        await start(api)

    assert len(bfl.starts()) == 1


async def test_a_connection_cut_in_mid_upload_cannot_have_started_anything() -> None:
    """Without the rest of the body no server can read the request, so this is no open outcome."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = BFLClient(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def cut() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=cut)
        thread.start()

        with pytest.raises(APIError, match="broke off half-way") as caught:
            await start(client, 30_000_000)

        thread.join()
        assert not isinstance(caught.value, OutcomeUnknownError)
        await client.aclose()


async def test_a_server_that_is_not_there_got_nothing() -> None:
    """A refused connection is the commonest wrong turn: the trainer is not running."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = BFLClient(f"http://127.0.0.1:{port}")

    with pytest.raises(APIError, match=r"No server can be reached.*Nothing was sent or charged"):
        await start(client)
    await client.aclose()


async def test_a_422_that_echoes_the_upload_is_read_as_far_as_needed(bfl: FakeBFL, api: BFLClient) -> None:
    """BFL repeats the whole request in `input`, hundreds of megabytes of it; the reason stands before."""
    fault = {"type": "value_error", "loc": ["body", "file_data"], "msg": "Value error, Suspicious file attributes"}
    bfl.say_next("POST", "/v1/finetune", Answer(422, {"detail": [{**fault, "input": "QUJD" * 3_000_000}]}))

    with pytest.raises(APIError, match=r"file_data: Value error, Suspicious file attributes") as caught:
        await start(api)

    assert "QUJD" not in str(caught.value)
    assert len(str(caught.value)) < 700


# --- BFL's own hosts --------------------------------------------------------------------------------------------------


async def test_bfl_is_asked_whether_it_trains_before_anything_is_uploaded(bfl: FakeBFL, at_bfl: BFLClient) -> None:
    """An empty request can start nothing; 422 means that the endpoint is there."""
    await start(at_bfl)

    probe, upload = bfl.requests
    assert probe.json() == {}
    assert "file_data" in upload.json()


async def test_closed_training_is_explained_and_nothing_is_uploaded(bfl: FakeBFL, at_bfl: BFLClient) -> None:
    """Today's truth: BFL closed training on 2025-10-31 and answers 404."""
    bfl.training_open = False

    with pytest.raises(TrainingClosedError, match=r"closed hosted FLUX finetuning on 2025-10-31.*Nothing was uploaded"):
        await start(at_bfl)

    assert [request.body for request in bfl.requests] == [b"{}"]


async def test_a_refused_connection_at_a_retired_host_is_not_called_closed(bfl: FakeBFL) -> None:
    """Somebody who is offline must not be told a story about BFL."""
    bfl.say_next("POST", "/v1/finetune", httpx.ConnectError("no route"))
    client = BFLClient("https://api.us1.bfl.ai", SecretStr(KEY), transport=bfl.transport())

    with pytest.raises(APIError) as caught:
        await start(client)

    assert not isinstance(caught.value, TrainingClosedError)
    await client.aclose()


def test_unusable_network_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A VPN's proxy or a missing certificate file is the person's to mend, not a fault of the server."""
    monkeypatch.setenv("ALL_PROXY", "socks9://127.0.0.1:1")

    with pytest.raises(ConfigError, match="ALL_PROXY"):
        BFLClient("https://gpu.example")


@pytest.mark.parametrize("host", ["api.us1.bfl.ai", "api.eu1.bfl.ai"])
async def test_a_connect_time_out_at_a_retired_host_means_closed(bfl: FakeBFL, host: str) -> None:
    """The two hosts that trained in 2025 still resolve, and their connections time out."""
    bfl.say_next("POST", "/v1/finetune", httpx.ConnectTimeout(""))
    client = BFLClient(f"https://{host}", SecretStr(KEY), transport=bfl.transport())

    with pytest.raises(TrainingClosedError, match="no longer takes connections"):
        await start(client)
    await client.aclose()


async def test_a_wrong_key_at_bfl_is_named_before_the_upload(bfl: FakeBFL, at_bfl: BFLClient) -> None:
    """403 at the probe is about the key, not about the endpoint."""
    bfl.key = "another"

    with pytest.raises(APIError, match=r"refused the key.*Nothing was uploaded or charged"):
        await start(at_bfl)

    assert not bfl.starts()


async def test_an_unreachable_bfl_is_not_called_closed(bfl: FakeBFL, at_bfl: BFLClient) -> None:
    """No network is no proof that training is closed."""
    bfl.say_next("POST", "/v1/finetune", httpx.ConnectError("no route"))

    with pytest.raises(APIError, match=r"No server can be reached.*Nothing was uploaded") as caught:
        await start(at_bfl)

    assert not isinstance(caught.value, TrainingClosedError)


async def test_other_hosts_are_not_probed(bfl: FakeBFL, api: BFLClient) -> None:
    """A trainer of one's own is known to train; the probe would only cost a request."""
    await start(api)

    assert len(bfl.requests) == 1


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_details_keep_every_key(bfl: FakeBFL, api: BFLClient) -> None:
    """The details are untyped: what is unknown today may be what the reader needs."""
    finetune_id = bfl.add_finetune(surprise={"deep": [1, None]})

    assert await api.get_finetune_details(finetune_id) == bfl.finetunes[finetune_id]


async def test_an_unknown_finetune_is_not_found(api: BFLClient) -> None:
    """404 of the two reading endpoints is about the id, not about the address."""
    with pytest.raises(NotFoundError, match="Finetune not found or access denied"):
        await api.get_finetune_details("nope")
    with pytest.raises(NotFoundError, match="Task not found"):
        await api.get_result("nope")


@pytest.mark.parametrize(
    "body",
    [
        {"id": "x", "status": "Pending", "result": None, "progress": 0.1, "details": None, "preview": None},
        {"id": "x", "status": "Dreaming", "progress": "soon", "details": "text", "new": 1},
        {"status": "Ready"},
        {"id": 7, "status": "Ready"},
        {"status": "Pending", "progress": 10**400},
        {"status": "Pending", "progress": float("nan"), "details": [1], "preview": 3},
    ],
)
async def test_results_are_read_leniently(bfl: FakeBFL, api: BFLClient, body: dict[str, Any]) -> None:
    """The status is what matters; a key that is missing, new or of another type must not hide it."""
    bfl.say_next("GET", "/v1/get_result", Answer(200, body))

    assert (await api.get_result("x")).status == body["status"]


async def test_a_failed_task_in_a_422_is_a_result(bfl: FakeBFL, api: BFLClient) -> None:
    """Observed 2026-09-21: HTTP 422 whose body is the task."""
    task = {"id": "x", "status": "Error", "details": {"error": "Invalid or corrupted image input"}}
    bfl.say_next("GET", "/v1/get_result", Answer(422, task))

    result = await api.get_result("x")

    assert (result.status, result.details) == ("Error", {"error": "Invalid or corrupted image input"})


async def test_finetunes_are_listed_from_strings_and_objects(bfl: FakeBFL, api: BFLClient) -> None:
    """The items are untyped; strings were observed."""
    listed = ["a", {"finetune_id": "b"}, {"id": "c"}, {"name": "no id"}, 7, None, True]
    bfl.say_next("GET", "/v1/my_finetunes", Answer(200, {"finetunes": listed}))

    assert await api.list_finetunes() == ["a", "b", "c", "7"]


async def test_a_finetune_can_be_deleted_and_credits_read(bfl: FakeBFL, api: BFLClient) -> None:
    """The two endpoints that no tool uses yet."""
    finetune_id = bfl.add_finetune()

    await api.delete_finetune(finetune_id)

    assert finetune_id not in bfl.finetunes
    assert await api.get_credits() == 1013.5
    with pytest.raises(NotFoundError):
        await api.delete_finetune(finetune_id)


@pytest.mark.parametrize("answer", [Answer(200, b"<html>login</html>", {"content-type": "text/html"}), Answer(200, [])])
async def test_an_answer_that_is_not_the_api_names_the_address_to_check(
    bfl: FakeBFL, api: BFLClient, answer: Answer
) -> None:
    """A proxy or the wrong server answers 200 with a page of its own."""
    bfl.say_next("GET", "/v1/finetune_details", answer)

    with pytest.raises(APIError, match="Check BFL_API_URL"):
        await api.get_finetune_details("x")


# --- secrets ----------------------------------------------------------------------------------------------------------


async def test_the_key_is_in_no_message_repr_or_log(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a model or a log file sees, a stranger may see."""
    secret = "bfl_0123456789abcdef"
    caplog.set_level(logging.DEBUG)
    client = BFLClient(url, SecretStr(secret))

    with pytest.raises(APIError) as caught:
        await start(client)

    seen = [
        str(caught.value),
        repr(caught.value),
        repr(client),
        repr(vars(client)),
        repr(client._http.headers),
        caplog.text,
    ]
    assert not [text for text in seen if secret in text or base64.b64encode(secret.encode()).decode() in text]
    await client.aclose()


async def test_a_redirect_does_not_carry_the_key_along(bfl: FakeBFL, api: BFLClient) -> None:
    """The key goes to the configured host only."""
    other = FakeBFL(key=None)
    with other.serve() as elsewhere:
        redirect = Answer(307, b"", {"location": f"{elsewhere}/v1/finetune_details?finetune_id=x"})
        bfl.say_next("GET", "/v1/finetune_details", redirect)

        with pytest.raises(APIError, match="redirects"):
            await api.get_finetune_details("x")

    assert not other.requests


async def test_a_proxy_is_not_asked_for_this_machine(bfl: FakeBFL, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for the internet would see the key and the pictures in the clear."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = BFLClient(url, SecretStr(KEY))

    await start(client)

    assert bfl.starts()
    await client.aclose()


def test_the_body_says_nothing_but_json() -> None:
    """Quotes and line breaks in a comment must not end the string that holds them."""
    upload = _Upload(io.BytesIO(b"abc"), 3, {"finetune_comment": 'a "b"\n}', "n": {}})

    async def collect() -> bytes:
        return b"".join([block async for block in upload])

    body = anyio.run(collect)
    assert json.loads(body) == {"finetune_comment": 'a "b"\n}', "n": {}, "file_data": "YWJj"}
    assert len(body) == upload.size_bytes


# --- what only our trainer answers ------------------------------------------------------------------------------------

NEED = {"engine": "flux2", "fits": False, "sentence": "It takes 24.0 GiB. Set finetune_type='lora'."}


async def test_our_trainer_says_what_a_training_takes(bfl: FakeBFL, api: BFLClient) -> None:
    """Asked with the number of images and the parameters alone, and of those not with what it is about."""
    bfl.need = NEED

    need = await api.ask_need(PARAMETERS, 12)

    assert need is not None
    assert (need.engine, need.fits, need.sentence) == tuple(NEED.values())
    told = {name: value for name, value in PARAMETERS.items() if name != "trigger_word"}
    assert bfl.requests[-1].json() == {**told, "finetune_comment": "", "images": 12}


@pytest.mark.parametrize(
    "answer", [Answer(404, {"detail": "Not Found"}), Answer(405), Answer(500), Answer(200, NEED), Answer(403)]
)
async def test_nobody_else_is_taken_for_our_trainer(bfl: FakeBFL, api: BFLClient, answer: Answer) -> None:
    """BFL knows no such question; what it answers means nothing."""
    bfl.say_next("POST", "/v1/finetune_need", answer)

    assert await api.ask_need(PARAMETERS, 12) is None


@pytest.mark.parametrize("status", [404, 405])
async def test_an_older_trainer_of_ours_says_nothing_of_it(bfl: FakeBFL, api: BFLClient, status: int) -> None:
    """It trains all the same."""
    bfl.need = NEED
    bfl.say_next("POST", "/v1/finetune_need", Answer(status, {"detail": "Not Found"}))

    assert await api.ask_need(PARAMETERS, 12) is None
    assert api.is_our_trainer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(403, {"detail": "Not authenticated"}), "BFL_API_KEY"),
        (Answer(200, {"fits": True}), "something else than the API's JSON"),
        (Answer(507, {"detail": "disk full"}), "disk full"),
    ],
)
async def test_a_trainer_of_ours_that_cannot_say_it_is_an_error(
    bfl: FakeBFL, api: BFLClient, answer: Answer, words: str
) -> None:
    """The caller decides what that is worth."""
    bfl.need = NEED
    bfl.say_next("POST", "/v1/finetune_need", answer)

    with pytest.raises(APIError, match=words):
        await api.ask_need(PARAMETERS, 12)


async def test_a_start_that_does_not_fit_is_refused_in_the_trainers_words(bfl: FakeBFL, api: BFLClient) -> None:
    """Need, present and all remedies are shown whole, and nothing was started."""
    bfl.need = NEED
    need = "Full training takes 19.1 GiB of GPU memory, and 'GeForce' has 12.0 GiB. " * 4 + 'Set priority="speed".'
    bfl.say_next(
        "POST", "/v1/finetune", Answer(422, {"detail": [{"type": "need", "loc": ["body", "priority"], "msg": need}]})
    )

    with pytest.raises(APIError) as caught:
        await start(api)

    said = str(caught.value)
    assert "cannot train this (422: it says" in said
    assert "Set priority='speed'." in said
    assert said.endswith("Nothing was started or charged.")
