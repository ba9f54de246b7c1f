"""BFL's finetuning API over HTTP, one method for each endpoint. The only module that knows httpx.

The key travels in `x-key` to the configured host alone, redirects are never followed, a start is never repeated, and
the archive is encoded while it is sent, so memory does not grow with it.
"""

import base64
import json
import logging
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Generator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import anyio
import anyio.to_thread
import httpx
import pydantic_core
from pydantic import BaseModel, SecretStr

from bfl_mcp.config import is_bfl_host, is_loopback
from bfl_mcp.contract import (
    BFL_RETIRED_HOSTS,
    BFL_TRAINING_CLOSED_ON,
    FILE_PATH,
    NEED_FAULT,
    TRAINER_HEADER,
    CreditsResponse,
    FinetuneCreated,
    FinetuneDetailResponse,
    MyFinetunesResponse,
    ResultResponse,
    TrainerNeed,
)
from bfl_mcp.errors import (
    APIError,
    ConfigError,
    NotFoundError,
    OutcomeUnknownError,
    TrainingClosedError,
    quote_foreign,
    quoted,
)

logger = logging.getLogger(__name__)

Transport = httpx.AsyncBaseTransport
"""What carries the requests; tests put a fake here."""

_Model = TypeVar("_Model", bound=BaseModel)

_ANSWER_LIMIT_BYTES: Final = 1 << 20
"""BFL's 422 repeats the whole upload (observed 2025, hundreds of megabytes); nothing we need comes after this."""

_QUOTE: Final = '"'
_APOSTROPHE: Final = "'"

# A multiple of 3, so that each block becomes base64 without padding.
_BLOCK_BYTES: Final = 3 << 18

_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 20.0
_START_SECONDS: Final = 15 * 60.0
_OPEN_FOR_SECONDS: Final = 60.0

# What may pass if a reading is tried again; BFL's docs name 429, 500, 502 and 503, gateways add 504.
_PASSING_STATUSES: Final = frozenset({429, 500, 502, 503, 504})
_RETRIES: Final = 3
_FIRST_PAUSE_SECONDS: Final = 0.5

_WORDS_SECONDS: Final = 1.0
"""Left of a caller's time when a reading gives up, to put it into words."""

_WORDS_CHARACTERS: Final = 300
_NEED_CHARACTERS: Final = 600
"""Need, present and every remedy do not fit into less."""

_SHORTEST_SECRET: Final = 6
_DAY_SECONDS: Final = 86_400

# The request did not leave this machine.
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)

_CLOSED: Final = (
    f"Black Forest Labs closed hosted FLUX finetuning on {BFL_TRAINING_CLOSED_ON}: {{host}} {{how}}. "
    "Nothing was uploaded and nothing was charged. What you can do instead: run `bfl-mcp trainer` on a machine with a "
    "GPU and set BFL_API_URL and BFL_API_KEY to its address and key; or leave both unset for the trainer inside this "
    "server, which trains on a GPU of this machine and rehearses where there is none. The LoRA that comes of it can be "
    "uploaded in BFL's dashboard. Finetunes made earlier can still be looked up."
)


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response read as far as the limit. `whole` is False where there was more."""

    status: int
    headers: httpx.Headers
    body: bytes
    whole: bool
    redaction: "_Redaction"

    def json(self) -> Any:
        """The body as JSON, or None. Of a body cut at the limit, what can be read. The key is made unreadable in it."""
        try:
            return self.redaction.clean(pydantic_core.from_json(self.body, allow_partial=not self.whole))
        except (ValueError, RecursionError):
            return None

    def header(self, name: str, default: str) -> str:
        """A header, fit to be shown."""
        return quote_foreign(self.redaction.clean(self.headers.get(name, default)), 120)


class BFLClient:
    """One provider of the finetuning API.

    Args:
        base_url: The provider's address, without `/v1`.
        api_key: Sent as `x-key` with every request, or None.
        transport: Carries the requests instead of the network.
        app: An ASGI application that answers instead of a network host.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr | None = None,
        *,
        transport: Transport | None = None,
        app: Any = None,
    ) -> None:
        self.base_url = base_url
        self.is_our_trainer = False
        """Whether the last answer said that it came from the trainer of this project."""
        self._bfl = is_bfl_host(base_url)
        self._open_until = 0.0
        self.is_in_process = app is not None
        """Whether the trainer inside this server answers, whose files lie on this machine."""
        # A provider that repeats the key must not bring it into the conversation.
        self._redaction = _Redaction(api_key)
        if app is not None:
            # An exception of the application becomes its 500, as it would over a network.
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        # Compressed, a small answer could unfold to any size.
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": "bfl-mcp"}
        try:
            self._http = httpx.AsyncClient(
                base_url=base_url,
                headers=headers,
                auth=_Key(api_key) if api_key is not None else None,
                transport=transport,
                # Not left to `trust_env`: a trainer on this machine may have a certificate of its own (SSL_CERT_FILE).
                verify=httpx.create_ssl_context() if transport is None else True,
                follow_redirects=False,
                # A proxy for the internet has no business with this machine's own servers.
                trust_env=not is_loopback(base_url),
                timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
            )
        except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            raise ConfigError(
                # Their own words may quote a password of a proxy.
                f"No connection can be set up ({type(error).__name__}). Nothing was sent. Check BFL_API_URL and the "
                "variables for proxies and certificates (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE)."
            ) from None

    async def aclose(self) -> None:
        await self._http.aclose()

    async def create_finetune(
        self, archive: BinaryIO, archive_bytes: int, parameters: Mapping[str, Any]
    ) -> FinetuneCreated:
        """Send one archive and start one training. Never repeated, whatever happens.

        Raises:
            TrainingClosedError: The host is BFL's and does not train; nothing was uploaded.
            OutcomeUnknownError: Everything was sent and no usable answer came back.
            APIError: Refused or unreachable; nothing was started.
        """
        await self.check_training_is_open()
        upload = _Upload(archive, archive_bytes, parameters)
        try:
            with anyio.fail_after(_START_SECONDS):
                answer = await self._send(
                    "POST",
                    "/v1/finetune",
                    content=upload,
                    headers={"content-type": "application/json", "content-length": str(upload.size_bytes)},
                    timeout=httpx.Timeout(_START_SECONDS, connect=_CONNECT_SECONDS, write=60.0),
                )
        except _NEVER_SENT as error:
            raise APIError(f"{self._unreachable(error)} Nothing was sent or charged.") from None
        except (httpx.HTTPError, TimeoutError) as error:
            if not upload.handed_over:
                raise APIError(
                    f"The upload to {self._host} broke off half-way ({_kind(error)}): the provider cannot have started "
                    "anything without the rest. Nothing was charged. Try again."
                ) from None
            raise OutcomeUnknownError(self._unclear(f"no answer came back ({_kind(error)})")) from None
        if 200 <= answer.status < 300:
            created = _parsed(FinetuneCreated, answer.json())
            if created is None:
                raise OutcomeUnknownError(self._unclear(f"the answer ({answer.status}) holds no finetune_id"))
            return created
        if answer.status >= 500 and self.is_in_process:
            raise APIError(
                f"The trainer inside this server could not keep the finetune ({answer.status}{_said(answer)}). Nothing "
                "was started. Its log has the details; BFL_MCP_HOME names the folder it writes to."
            )
        if answer.status >= 500:
            raise OutcomeUnknownError(self._unclear(f"the server failed ({answer.status}{_said(answer)})"))
        if answer.status == 404 and self._bfl:
            raise TrainingClosedError(_CLOSED.format(host=self._host, how="answered 404"))
        raise self._refusal(answer, "POST /v1/finetune", "Nothing was started or charged.")

    async def ask_need(self, parameters: Mapping[str, Any], images: int) -> TrainerNeed | None:
        """What a training of so many images would take at our trainer; None where somebody else answers.

        Nothing is started, and no image is sent.

        Raises:
            APIError: It refused or could not be reached.
        """
        # Whoever answers there need not know what it is about.
        told = {**parameters, "finetune_comment": "", "images": images}
        told.pop("trigger_word", None)
        answer = await self._exchange("POST", "/v1/finetune_need", json=told)
        # An older one of ours, and any other server, knows no such question.
        if not self.is_our_trainer or answer.status in (404, 405):
            return None
        return self._expect(TrainerNeed, answer, "POST /v1/finetune_need")

    def file_url(self, finetune_id: str, name: str) -> str:
        """Where our trainer gives one file of a ready finetune to whoever has the key."""
        return f"{self.base_url}{FILE_PATH}?{urlencode({'finetune_id': finetune_id, 'name': name})}"

    async def get_finetune_details(self, finetune_id: str) -> dict[str, Any]:
        """Parameters and metadata of a finetune: every key the API gave.

        Raises:
            NotFoundError: The API knows no such finetune.
            APIError: The API refused, failed or could not be reached.
        """
        answer = await self._get("/v1/finetune_details", {"finetune_id": finetune_id})
        return self._expect(FinetuneDetailResponse, answer, "GET /v1/finetune_details").finetune_details

    async def get_result(self, finetune_id: str) -> ResultResponse:
        """The task behind a finetune: its status, and progress where the API tells it.

        Raises:
            NotFoundError: The API knows no such task, or no longer.
            APIError: The API refused, failed or could not be reached.
        """
        answer = await self._get("/v1/get_result", {"id": finetune_id})
        body = answer.json()
        # Observed 2026-09-21: a task that failed comes as a 422 whose body is the task.
        if answer.status in (200, 422) and isinstance(body, dict):
            result = _parsed(ResultResponse, {**body, "id": str(body.get("id", finetune_id))})
            if result is not None:
                return result
        return self._expect(ResultResponse, answer, "GET /v1/get_result")

    async def list_finetunes(self) -> list[str]:
        """Ids of the account's finetunes.

        Raises:
            APIError: The API refused, failed or could not be reached.
        """
        answer = await self._get("/v1/my_finetunes")
        return self._expect(MyFinetunesResponse, answer, "GET /v1/my_finetunes").finetune_ids

    async def delete_finetune(self, finetune_id: str) -> None:
        """Delete a finetune for good. Never repeated.

        Raises:
            NotFoundError: The API knows no such finetune.
            APIError: The API refused, failed or could not be reached.
        """
        answer = await self._exchange("POST", "/v1/delete_finetune", json={"finetune_id": finetune_id})
        if not 200 <= answer.status < 300:
            raise self._refusal(answer, "POST /v1/delete_finetune")

    async def get_credits(self) -> float:
        """What the account has left, in credits of US$ 0.01.

        Raises:
            APIError: The API refused, failed or could not be reached.
        """
        return self._expect(CreditsResponse, await self._get("/v1/credits"), "GET /v1/credits").credits

    async def check_training_is_open(self) -> None:
        """Ask BFL with an empty request, which can start nothing, whether it trains: 422 is yes, 404 is no.

        Other hosts are not asked, and an answer holds for a minute.

        Raises:
            TrainingClosedError: The host is BFL's and does not train.
            APIError: It refused or could not be reached.
        """
        if not self._bfl or anyio.current_time() < self._open_until:
            return
        try:
            answer = await self._exchange("POST", "/v1/finetune", json={})
        except APIError as error:
            host = urlsplit(self.base_url).hostname
            if host in BFL_RETIRED_HOSTS and isinstance(error.__cause__, httpx.ConnectTimeout):
                how = "was one of the two hosts that trained, and no longer takes connections"
                raise TrainingClosedError(_CLOSED.format(host=host, how=how)) from None
            raise APIError(f"{error} Nothing was uploaded or charged.") from None
        if answer.status == 404:
            raise TrainingClosedError(_CLOSED.format(host=self._host, how="answers 404 to POST /v1/finetune"))
        if answer.status != 422:
            raise self._refusal(answer, "POST /v1/finetune", "Nothing was uploaded or charged.")
        self._open_until = anyio.current_time() + _OPEN_FOR_SECONDS

    async def _get(self, path: str, parameters: Mapping[str, str] | None = None) -> _Answer:
        """Read, and try again where that may help: reading starts, deletes and pays nothing.

        It ends within a connection's and a reading's time, and before the caller's, so that the caller has its words.
        """
        now = anyio.current_time()
        until = min(now + _CONNECT_SECONDS + _READ_SECONDS, anyio.current_effective_deadline() - _WORDS_SECONDS)
        for attempt in range(_RETRIES + 1):
            answer: _Answer | APIError
            try:
                answer = await self._exchange("GET", path, until - anyio.current_time(), params=parameters)
            except APIError as error:
                cause = error.__cause__
                if not isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout)) or _is_about_trust(cause):
                    raise
                answer = error
            # Jitter, so that many who failed together do not come back together.
            pause = _FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
            if isinstance(answer, _Answer):
                if answer.status not in _PASSING_STATUSES:
                    return answer
                pause = max(pause, _retry_after(answer.headers))
            if attempt == _RETRIES or anyio.current_time() + pause >= until:
                break
            logger.info("%s is asked again for %s in %.1f s", self._host, path, pause)
            await anyio.sleep(pause)
        if isinstance(answer, APIError):
            raise answer
        return answer

    async def _exchange(
        self, method: str, path: str, seconds: float = _CONNECT_SECONDS + _READ_SECONDS, **options: Any
    ) -> _Answer:
        try:
            # The in-process transport knows no time-outs, and a body may never end: bound the whole exchange.
            with anyio.fail_after(max(seconds, 0.0)):
                return await self._send(method, path, **options)
        except httpx.InvalidURL:
            raise APIError(f"{self._host} cannot be asked that way: an id is too long or has odd characters.") from None
        except _NEVER_SENT as error:
            raise APIError(self._unreachable(error)) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise APIError(f"{self._host} gave no usable answer ({_kind(error)}). Try again in a minute.") from error

    async def _send(self, method: str, path: str, **options: Any) -> _Answer:
        async with self._http.stream(method, path, **options) as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                # A few bytes could unfold to gigabytes, and we asked for none of it.
                raise httpx.DecodingError("compressed")
            body = bytearray()
            async for block in response.aiter_bytes():
                body += block
                if len(body) > _ANSWER_LIMIT_BYTES:
                    break
            self.is_our_trainer = TRAINER_HEADER in response.headers
            whole = len(body) <= _ANSWER_LIMIT_BYTES
            kept = bytes(body[:_ANSWER_LIMIT_BYTES])
            return _Answer(response.status_code, response.headers, kept, whole, self._redaction)

    def _expect(self, model: type[_Model], answer: _Answer, request: str) -> _Model:
        if answer.status != 200:
            raise self._refusal(answer, request)
        parsed = _parsed(model, answer.json()) if answer.whole else None
        if parsed is None:
            kind = answer.header("content-type", "no content type")
            raise APIError(
                f"{self._host} answered {request} with something else than the API's JSON ({kind}). "
                "Check BFL_API_URL, and whether a proxy stands in between."
            )
        return parsed

    def _refusal(self, answer: _Answer, request: str, consequence: str = "") -> APIError:
        """Put a refusal into words: what happened, with which value, what to do next."""
        said = _said(answer)
        kind: type[APIError] = APIError
        match answer.status:
            case 401 | 403:
                text = (
                    f"{self._host} refused the key ({answer.status}{said}). Check BFL_API_KEY: it must be set, whole, "
                    "and belong to this provider."
                )
            case 402:
                text = (
                    f"{self._host} says that credits are missing (402{said}). Either the account is empty, or costs of "
                    "running jobs are still being settled: check the balance, or wait a minute."
                )
            case 404 if request == "POST /v1/finetune":
                text = (
                    f"{self.base_url} has no POST /v1/finetune (404{said}). Check BFL_API_URL: it must be the address "
                    "of a server that answers BFL's finetuning API, without /v1 at the end."
                )
            case 404:
                kind = NotFoundError
                text = f"{self._host} does not know it (404{said})."
            case 413:
                text = f"The archive is too large for {self._host} (413{said}). Use fewer or smaller images."
            case 422:
                text = self._words_for_invalid(answer)
            case 429:
                text = (
                    f"{self._host} has too many active tasks of this account (429{said}). Try again when one has ended"
                    f"{_asked_to_wait(answer.headers)}."
                )
            case status if 300 <= status < 400:
                target = answer.header("location", "nowhere")
                text = (
                    f"{self._host} redirects {request} to {quoted(target)} ({status}). Redirects are not followed, "
                    "because the key would go along: if that address is right, set BFL_API_URL to it."
                )
            case status if status >= 500:
                text = f"{self._host} failed ({status}{said}). Try again in a minute{_asked_to_wait(answer.headers)}."
            case status:
                text = f"{self._host} refused {request} ({status}{said})."
        return kind(f"{text} {consequence}".rstrip())

    def _words_for_invalid(self, answer: _Answer) -> str:
        if self.is_our_trainer and (needs := _needs(answer.json())):
            # It takes more than is there: its words say what, and what to change.
            return f"{self._host} cannot train this (422: it says {_marked(needs, _NEED_CHARACTERS)})."
        return f"{self._host} found the request invalid (422{_said(answer)})."

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, httpx.UnsupportedProtocol):
            return f"{self.base_url} is no address that can be used. Check BFL_API_URL."
        if _is_about_trust(error):
            return (
                f"The server at {self.base_url} does not prove who it is: {quote_foreign(error, 160)}. The key was not "
                "sent. If a proxy or a trainer of your own stands there, let SSL_CERT_FILE name the file with its "
                "certificate; else check BFL_API_URL."
            )
        reason = "it took too long" if isinstance(error, httpx.TimeoutException) else quote_foreign(error, 120)
        advice = "Check this machine's network" if self._bfl else "Start it there, or correct BFL_API_URL"
        return f"No server can be reached at {self.base_url} ({reason}). {advice}, and try again."

    def _unclear(self, what: str) -> str:
        where = (
            "its data folder" if self.is_in_process else f"{self.base_url}/v1/my_finetunes or the provider's dashboard"
        )
        return (
            f"The finetune was sent to {self._host}, but {what}. It may be running, and may be billed. A repeat is "
            "blocked until this is settled, which the next call tries by itself. If it stays unclear, ask the person "
            f"to look into {where}."
        )

    @property
    def _host(self) -> str:
        return "The trainer inside this server" if self.is_in_process else urlsplit(self.base_url).netloc


class _Key(httpx.Auth):
    """Adds the key to each request, so that it stands in no client's headers, which show themselves in logs."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["x-key"] = self._key.get_secret_value()
        yield request


class _Upload:
    """The body of a start: JSON whose `file_data` is made from the archive while it is read. Iterated once."""

    def __init__(self, archive: BinaryIO, archive_bytes: int, parameters: Mapping[str, Any]) -> None:
        self._archive = archive
        self._head = json.dumps(dict(parameters)).encode().removesuffix(b"}") + b', "file_data": "'
        self._tail = b'"}'
        self.size_bytes = len(self._head) + (archive_bytes + 2) // 3 * 4 + len(self._tail)
        self.handed_over = False
        """Whether the last byte has been given to the transport: before that, no server can have a whole request."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._head
        while block := await anyio.to_thread.run_sync(self._next_block):
            yield block
        self.handed_over = True
        yield self._tail

    def _next_block(self) -> bytes:
        return base64.b64encode(self._archive.read(_BLOCK_BYTES))


class _Redaction:
    """Makes a key unreadable in what a provider says: as it is, URL-encoded, and in base64 wherever it begins."""

    def __init__(self, key: SecretStr | None) -> None:
        value = "" if key is None else key.get_secret_value()
        # So short a key is no secret, and its letters stand in every word.
        forms = _forms_of(value) if len(value) >= _SHORTEST_SECRET else set()
        # The longest first, so that nothing of it is left over.
        ordered = sorted(forms, key=len, reverse=True)
        pattern = "|".join(re.escape(form) for form in ordered)
        self._forms = re.compile(pattern, re.IGNORECASE) if ordered else None

    def clean(self, value: Any) -> Any:
        """The same value without the key, in all texts that it holds."""
        if self._forms is None:
            return value
        if isinstance(value, str):
            return self._forms.sub("[API key]", value)
        if isinstance(value, list):
            return [self.clean(item) for item in value]
        if isinstance(value, dict):
            return {self.clean(name): self.clean(item) for name, item in value.items()}
        return value


def _forms_of(key: str) -> set[str]:
    plain = key.encode()
    forms = {key, quote(key, safe=""), plain.hex()}
    for before in range(3):
        coded = base64.b64encode(bytes(before) + plain).decode()
        # Without the characters that also hold bits of what stands before or after.
        core = coded[(before * 8 + 5) // 6 : (before + len(plain)) * 8 // 6]
        forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms


def _is_about_trust(error: BaseException) -> bool:
    """Whether a connection failed because the other side's certificate cannot be trusted."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds a server asks to be left alone, given as a number or as a date; 0 where it asks for nothing usable."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, OSError):
        return 0.0


def _asked_to_wait(headers: httpx.Headers) -> str:
    seconds = _retry_after(headers)
    if seconds > _DAY_SECONDS:
        return "; it asks to wait for more than a day"
    return f"; it asks to wait {seconds:.0f} seconds" if seconds >= 1 else ""


def _parsed(model: type[_Model], body: object) -> _Model | None:
    if not isinstance(body, dict):
        return None
    try:
        return model.model_validate(body)
    except ValueError:
        return None


def _kind(error: Exception) -> str:
    """What went wrong on the wire, in words."""
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return "it took too long"
        case httpx.RemoteProtocolError():
            return "the connection was closed, or does not speak HTTP"
        case httpx.DecodingError():
            return "the answer was compressed, which was not asked for"
        case httpx.NetworkError():
            return "the connection broke"
        case _:
            return quote_foreign(type(error).__name__)


def _said(answer: _Answer, limit: int = _WORDS_CHARACTERS) -> str:
    """The API's own words, cleaned and marked as such: `: it says "…"`, or nothing."""
    words = _words(answer.json())
    return f": it says {_marked(words, limit)}" if words else ""


def _marked(words: str, limit: int) -> str:
    # Without its own quotation marks, or it could end ours and speak on in our name.
    return f'"{quote_foreign(words.replace(_QUOTE, _APOSTROPHE), limit)}"'


def _needs(body: Any) -> str:
    """What our trainer lacks for a training, in its words; empty where that is not what it refuses."""
    detail = body.get("detail") if isinstance(body, dict) else None
    faults = [fault for fault in detail if isinstance(fault, dict)] if isinstance(detail, list) else []
    if not faults or any(fault.get("type") != NEED_FAULT for fault in faults):
        return ""
    return " ".join(str(fault.get("msg") or "") for fault in faults)


def _words(body: Any) -> str:
    """The message in any of the shapes seen: `detail` as text or list, or `error` and `message`.

    Of a list only `loc` and `msg` are read: `input` repeats the request.
    """
    if not isinstance(body, dict):
        return ""
    detail = body.get("detail")
    if isinstance(detail, str):
        return detail
    if isinstance(detail, list):
        faults = [item for item in detail if isinstance(item, dict)]
        return "; ".join(_fault(item) for item in faults[:20])
    message = body.get("message") or body.get("error")
    return message if isinstance(message, str) else ""


def _fault(item: Mapping[str, Any]) -> str:
    loc = item.get("loc")
    place = ".".join(str(part) for part in loc if part != "body") if isinstance(loc, list) else ""
    message = str(item.get("msg", item.get("type", "")))
    return f"{place}: {message}" if place else message
