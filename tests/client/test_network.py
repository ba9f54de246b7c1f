"""A hostile network: what is tried again, what never is, and which sentence each wrong turn has. On real sockets."""

import base64
import datetime as dt
import ipaddress
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from bfl_mcp.client import BFLClient
from bfl_mcp.errors import APIError, BFLError, NotFoundError, OutcomeUnknownError
from tests.client.test_client import start
from tests.fakes.bfl import KEY, Answer, FakeBFL

Ask = Callable[[BFLClient], Any]

READINGS: list[tuple[str, Ask]] = [
    ("/v1/finetune_details", lambda api: api.get_finetune_details("x")),
    ("/v1/get_result", lambda api: api.get_result("x")),
    ("/v1/my_finetunes", lambda api: api.list_finetunes()),
    ("/v1/credits", lambda api: api.get_credits()),
]


@pytest.fixture
def bfl() -> FakeBFL:
    return FakeBFL()


@pytest.fixture
async def api(bfl: FakeBFL) -> AsyncIterator[BFLClient]:
    with bfl.serve() as url:
        client = BFLClient(url, SecretStr(KEY))
        yield client
        await client.aclose()


def asked(bfl: FakeBFL, path: str) -> int:
    return sum(request.path == path for request in bfl.requests)


# --- what is tried again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(("path", "ask"), READINGS, ids=[path for path, _ in READINGS])
async def test_a_reading_is_tried_again_three_times(
    bfl: FakeBFL, api: BFLClient, path: str, ask: Ask, status: int
) -> None:
    """Overload passes; what it does not is said after four tries."""
    bfl.say_next("GET", path, *[Answer(status, {"detail": "busy"})] * 4)

    with pytest.raises(APIError, match=f'{status}: it says "busy"'):
        await ask(api)

    assert asked(bfl, path) == 4


@pytest.mark.parametrize(
    "failure", [Answer(503), Answer(429, headers={"retry-after": "0"}), httpx.ConnectError("gone")]
)
async def test_a_reading_that_succeeds_in_the_end_is_all_that_is_seen(
    bfl: FakeBFL, failure: Answer | httpx.ConnectError
) -> None:
    """A person need not know of a hiccup; a server that was just restarted refuses connections for a moment."""
    bfl.say_next("GET", "/v1/credits", failure, failure, failure)
    client = BFLClient("https://api.bfl.ai", SecretStr(KEY), transport=bfl.transport())

    assert await client.get_credits() == 1013.5
    assert asked(bfl, "/v1/credits") == 4
    await client.aclose()


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422, 501])
async def test_a_refusal_is_not_asked_for_twice(bfl: FakeBFL, api: BFLClient, status: int) -> None:
    """It would be the same again."""
    bfl.say_next("GET", "/v1/credits", Answer(status))

    with pytest.raises(APIError):
        await api.get_credits()

    assert asked(bfl, "/v1/credits") == 1


async def test_what_starts_or_deletes_is_sent_once(bfl: FakeBFL, api: BFLClient) -> None:
    """A second POST could start, bill or delete a second time."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    bfl.say_next("POST", "/v1/delete_finetune", Answer(503))

    with pytest.raises(OutcomeUnknownError):
        await start(api)
    with pytest.raises(APIError):
        await api.delete_finetune("x")

    assert (asked(bfl, "/v1/finetune"), asked(bfl, "/v1/delete_finetune")) == (1, 1)


async def test_the_probe_of_bfl_is_sent_once(bfl: FakeBFL) -> None:
    """It goes to the endpoint that starts, so it is never repeated by itself."""
    bfl.say_next("POST", "/v1/finetune", Answer(503))
    client = BFLClient("https://api.bfl.ai", SecretStr(KEY), transport=bfl.transport())

    with pytest.raises(APIError, match="Nothing was uploaded or charged"):
        await client.check_training_is_open()

    assert asked(bfl, "/v1/finetune") == 1
    await client.aclose()


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_asks_to_wait_is_left_alone_for_so_long(
    bfl: FakeBFL, api: BFLClient, status: int, form: str
) -> None:
    """Retry-After, as a number or as a date."""
    # Dates know whole seconds only.
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
    value = "1" if form == "seconds" else format_datetime(until, usegmt=True)
    bfl.say_next("GET", "/v1/credits", Answer(status, headers={"retry-after": value}))
    began = time.monotonic()

    await api.get_credits()

    assert 0.9 <= time.monotonic() - began < 4
    assert asked(bfl, "/v1/credits") == 2


@pytest.mark.parametrize("value", ["600", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_wait_longer_than_the_call_is_told_instead(bfl: FakeBFL, api: BFLClient, value: str) -> None:
    """The person decides what to do with ten minutes."""
    bfl.say_next("GET", "/v1/credits", Answer(429, headers={"retry-after": value}))
    began = time.monotonic()

    with pytest.raises(APIError, match=r"it asks to wait (600 seconds|for more than a day)"):
        await api.get_credits()

    assert time.monotonic() - began < 2
    assert asked(bfl, "/v1/credits") == 1


@pytest.mark.parametrize("value", ["soon", "-5", "", "1e9", "Thu, 99 Foo 2026 99:99:99 GMT", "٣", "\x7f"])
async def test_an_unusable_retry_after_is_as_good_as_none(bfl: FakeBFL, api: BFLClient, value: str) -> None:
    """It must not crash what it was meant to help."""
    bfl.say_next("GET", "/v1/credits", Answer(503, headers={"retry-after": value.encode().decode("latin-1")}))

    assert await api.get_credits() == 1013.5


async def test_a_caller_s_time_ends_a_reading_with_words(bfl: FakeBFL, api: BFLClient) -> None:
    """The host gives up after a minute; a sentence that comes before is worth more than a right answer after."""
    bfl.say_next("GET", "/v1/credits", *[Answer(503, headers={"retry-after": "1"})] * 4)

    with anyio.fail_after(2.5), pytest.raises(APIError, match="503"):
        await api.get_credits()

    assert asked(bfl, "/v1/credits") == 2


# --- each wrong turn has its sentence ---------------------------------------------------------------------------------

# The rows of the table of error bodies, in its order: what is asked, the answer, the failure and its words.
ROWS: list[tuple[str, str, Ask, Answer, type[BFLError], list[str]]] = [
    (
        "400 a finetune that is unknown or not ready",
        "/v1/get_result",
        lambda api: api.get_result("x"),
        Answer(400, {"detail": "Finetune not found or not ready"}),
        APIError,
        ["400", "Finetune not found or not ready"],
    ),
    (
        "402 no credits, or costs still being settled",
        "/v1/finetune",
        start,
        Answer(402, {"detail": "Insufficient credits"}),
        APIError,
        ["402", "Insufficient credits", "account is empty", "still being settled", "Nothing was started or charged"],
    ),
    (
        "403 a wrong key",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(403, {"detail": "Not authenticated - Invalid Authentication"}),
        APIError,
        ["refused the key (403", "Invalid Authentication", "BFL_API_KEY"],
    ),
    (
        "403 no key",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(403, {"detail": "Not authenticated"}),
        APIError,
        ["refused the key (403", "it must be set"],
    ),
    (
        "404 no such path",
        "/v1/finetune",
        start,
        Answer(404, {"detail": "Not Found"}),
        APIError,
        ["has no POST /v1/finetune (404", "BFL_API_URL", "Nothing was started or charged"],
    ),
    (
        "404 an unknown finetune",
        "/v1/finetune_details",
        lambda api: api.get_finetune_details("x"),
        Answer(404, {"detail": "Finetune not found or access denied"}),
        NotFoundError,
        ["Finetune not found or access denied"],
    ),
    (
        "404 a task of another region",
        "/v1/get_result",
        lambda api: api.get_result("x"),
        Answer(404, {"id": "x", "status": "Task not found", "result": None}),
        NotFoundError,
        ["does not know it (404"],
    ),
    (
        "422 a bad request, with the request repeated",
        "/v1/finetune",
        start,
        Answer(
            422,
            {
                "detail": [
                    {
                        "type": "value_error",
                        "loc": ["body", "file_data"],
                        "msg": "Value error, Suspicious file attributes",
                        "input": "QUJD" * 1000,
                        "ctx": {"error": {}},
                    }
                ]
            },
        ),
        APIError,
        ["invalid (422", "file_data: Value error, Suspicious file attributes", "Nothing was started or charged"],
    ),
    (
        "422 an unknown field",
        "/v1/finetune",
        start,
        Answer(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "mode"], "msg": "Extra inputs are not"}]}),
        APIError,
        ["mode: Extra inputs are not"],
    ),
    (
        "429 too many tasks",
        "/v1/finetune",
        start,
        Answer(429, {"detail": "slow down"}, {"retry-after": "7"}),
        APIError,
        ["too many active tasks", "7 seconds", "Nothing was started or charged"],
    ),
    (
        "500 in plain text",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(500, b"Internal Server Error", {"content-type": "text/plain"}),
        APIError,
        ["failed (500)", "Try again in a minute"],
    ),
    (
        "503 with a time to wait",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(503, b"", {"retry-after": "120"}),
        APIError,
        ["failed (503)", "120 seconds"],
    ),
    (
        "the other family: invalid_api_key",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(401, {"error": "invalid_api_key", "message": "The key is wrong", "details": {}}),
        APIError,
        ["refused the key (401", "The key is wrong"],
    ),
    (
        "the other family: insufficient_credits",
        "/v1/finetune",
        start,
        Answer(402, {"error": "insufficient_credits", "message": "Add credits", "details": {}}),
        APIError,
        ["402", "Add credits"],
    ),
    (
        "the other family: rate_limit_exceeded",
        "/v1/finetune",
        start,
        Answer(429, {"error": "rate_limit_exceeded", "message": "Too many concurrent requests", "retry_after": 5}),
        APIError,
        ["429", "Too many concurrent requests"],
    ),
    (
        "the other family: validation_error",
        "/v1/finetune",
        start,
        Answer(400, {"error": "validation_error", "message": "Check it", "details": {"mode": "is unknown"}}),
        APIError,
        ["400", "Check it"],
    ),
    (
        "a page of a proxy",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(200, b"<!doctype html><title>Sign in</title>", {"content-type": "text/html; charset=utf-8"}),
        APIError,
        ["something else than the API's JSON", "text/html", "proxy"],
    ),
    (
        "a page of a proxy in the place of a refusal",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(407, b"<html>", {"content-type": "text/html"}),
        APIError,
        ["407"],
    ),
    (
        "JSON of another shape",
        "/v1/my_finetunes",
        lambda api: api.list_finetunes(),
        Answer(200, [{"finetunes": 7}]),
        APIError,
        ["something else than the API's JSON"],
    ),
    (
        "JSON that breaks off",
        "/v1/finetune_details",
        lambda api: api.get_finetune_details("x"),
        Answer(200, b'{"finetune_details": {"mode": "sty'),
        APIError,
        ["something else than the API's JSON"],
    ),
    (
        "JSON nested without end",
        "/v1/finetune_details",
        lambda api: api.get_finetune_details("x"),
        Answer(200, b'{"finetune_details": ' + b"[" * 200_000),
        APIError,
        ["something else than the API's JSON"],
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
async def test_each_wrong_answer_has_its_sentence(
    bfl: FakeBFL, api: BFLClient, row: tuple[str, str, Ask, Answer, type[BFLError], list[str]]
) -> None:
    """What happened, with which value, and what next; never the request that was repeated."""
    _, path, ask, answer, kind, words = row
    method = "POST" if path == "/v1/finetune" else "GET"
    bfl.say_next(method, path, *[answer] * 4)

    with pytest.raises(kind) as caught:
        await ask(api)

    said = str(caught.value)
    assert type(caught.value) is kind
    assert all(word in said for word in words), said
    assert "QUJDQUJD" not in said
    assert len(said) < 1000


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("ask", [lambda api: api.list_finetunes(), start], ids=["reading", "start"])
async def test_no_redirect_is_followed(bfl: FakeBFL, api: BFLClient, ask: Ask, status: int) -> None:
    """The key and the pictures would go along to wherever it points."""
    with FakeBFL(key=None).serve() as elsewhere:
        redirect = Answer(status, b"", {"location": f"{elsewhere}/v1/my_finetunes"})
        bfl.say_next("GET", "/v1/my_finetunes", redirect)
        bfl.say_next("POST", "/v1/finetune", redirect)

        with pytest.raises(APIError, match=rf"redirects .*{elsewhere}.*\({status}\)"):
            await ask(api)


@pytest.mark.parametrize("cut", [0, 1, 12])
async def test_an_answer_that_breaks_off_is_no_answer(bfl: FakeBFL, api: BFLClient, cut: int) -> None:
    """After the request, or inside the answer: for a reading a sentence, for a start an open outcome."""
    bfl.say_next("GET", "/v1/my_finetunes", Answer(200, {"finetunes": ["a", "b"]}, cut=cut))
    bfl.say_next("POST", "/v1/finetune", Answer(200, {"finetune_id": "abc"}, cut=cut))

    with pytest.raises(APIError, match=r"no usable answer.*Try again in a minute"):
        await api.list_finetunes()
    with pytest.raises(OutcomeUnknownError, match="may be running, and may be billed"):
        await start(api)


@contextmanager
def raw_server(answer: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on a real socket that reads a request's head, and then does what it likes. Gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    try:
                        if context is not None:
                            connection = context.wrap_socket(connection, server_side=True)
                        while b"\r\n\r\n" not in connection.recv(65536):
                            pass
                        answer(connection)
                    except OSError:
                        # Whoever asked has heard enough.
                        continue
                    finally:
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_a_422_of_hundreds_of_megabytes_is_read_as_far_as_needed() -> None:
    """BFL repeats the whole upload: one megabyte of it is read, and the reason stands in it."""
    sent = 0
    size = 400_000_000
    fault = b'{"detail":[{"type":"value_error","loc":["body","file_data"],"msg":"Value error, Bad zip","input":"'

    def echo(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 422 Unprocessable Content\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: %d\r\n\r\n" % (size + len(fault)) + fault)
        block = b"QUJD" * 65536
        while sent < size:
            connection.sendall(block)
            sent += len(block)

    with raw_server(echo) as port:
        client = BFLClient(f"http://127.0.0.1:{port}", SecretStr(KEY))
        before = peak_bytes()
        with pytest.raises(APIError, match="file_data: Value error, Bad zip"):
            await client.list_finetunes()
        grown = peak_bytes() - before
        await client.aclose()

    # What the kernel buffers between the two counts as sent.
    assert sent < 30_000_000
    assert grown < 20_000_000


async def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps any time-out between bytes from firing."""
    monkeypatch.setattr("bfl_mcp.client._READ_SECONDS", 0.3)
    monkeypatch.setattr("bfl_mcp.client._CONNECT_SECONDS", 0.3)

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1\r\n \r\n")
            time.sleep(0.05)

    with raw_server(drip) as port:
        client = BFLClient(f"http://127.0.0.1:{port}", SecretStr(KEY))
        with anyio.fail_after(5), pytest.raises(APIError, match="took too long"):
            await client.list_finetunes()
        await client.aclose()


async def test_what_is_no_http_is_named() -> None:
    """The port of something else."""
    with raw_server(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")) as port:
        client = BFLClient(f"http://127.0.0.1:{port}", SecretStr(KEY))
        with pytest.raises(APIError, match="does not speak HTTP"):
            await client.list_finetunes()
        await client.aclose()


def self_signed(folder: Path) -> ssl.SSLContext:
    """A certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "server.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_a_bad_certificate_gets_no_key_and_its_own_sentence(tmp_path: Path) -> None:
    """Somebody may sit in between; trying again would not change who."""
    asked = []

    def remember(connection: socket.socket) -> None:
        asked.append(connection)

    with raw_server(remember, self_signed(tmp_path)) as port:
        client = BFLClient(f"https://127.0.0.1:{port}", SecretStr(KEY))
        with pytest.raises(APIError, match=r"does not prove who it is.*The key was not sent.*SSL_CERT_FILE"):
            await client.list_finetunes()
        with pytest.raises(APIError, match=r"does not prove who it is.*Nothing was sent or charged"):
            await start(client)
        await client.aclose()

    assert asked == []


async def test_a_certificate_of_one_s_own_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence's advice works: a trainer of one's own behind TLS."""
    context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))

    def answer(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n{"finetunes": []}')

    with raw_server(answer, context) as port:
        client = BFLClient(f"https://127.0.0.1:{port}", SecretStr(KEY))
        assert await client.list_finetunes() == []
        await client.aclose()


# --- the key ----------------------------------------------------------------------------------------------------------

SECRET = "bfl+0123/4567=89ab cd".replace(" ", "_")


def forms(secret: str) -> list[str]:
    plain = secret.encode()
    return [
        secret,
        quote(secret, safe=""),
        base64.b64encode(plain).decode().rstrip("="),
        base64.urlsafe_b64encode(plain).decode().rstrip("="),
        # As in a header of another kind, where something stands before and after it.
        base64.b64encode(b"user:" + plain + b":x").decode(),
        "".join(f"\\u{ord(char):04x}" for char in secret),
    ]


@pytest.mark.parametrize("form", range(6))
async def test_a_provider_that_repeats_the_key_does_not_bring_it_into_the_conversation(form: int) -> None:
    """In a refusal, in the details, in a list, in an address: wherever a text of its can be shown."""
    bfl = FakeBFL(SECRET)
    leak = forms(SECRET)[form]
    escaped = f'"we got {leak} from you"' if leak.startswith("\\u") else json.dumps(f"we got {leak} from you")
    said = []
    with bfl.serve() as url:
        client = BFLClient(url, SecretStr(SECRET))
        bfl.say_next("POST", "/v1/finetune", Answer(422, f'{{"detail": {escaped}}}'.encode()))
        bfl.say_next("GET", "/v1/my_finetunes", Answer(302, b"", {"location": f"https://x.example/?k={leak}"}))
        details = f'{{"finetune_details": {{"note": {escaped}, "more": [{{"k": {escaped}}}]}}}}'
        bfl.say_next("GET", "/v1/finetune_details", Answer(200, details.encode()))
        bfl.say_next("GET", "/v1/credits", Answer(200, b"<html>", {"content-type": f"text/{leak}"}))
        for ask in (start, BFLClient.list_finetunes, BFLClient.get_credits):
            with pytest.raises(APIError) as caught:
                await ask(client)
            said.append(f"{caught.value} {caught.value!r} {caught.value.__cause__!r}")
        said.append(str(await client.get_finetune_details("x")))
        await client.aclose()

    # Of the last form but one only what also holds something else may stand.
    hidden = [*forms(SECRET)[:4], forms(SECRET)[4][8:-4]]
    assert not [text for text in said if any(shown in text for shown in hidden)]
    assert all("[API key]" in text for text in (said[0], said[3]))
