"""The HTTP face of the trainer: BFL's finetuning API over a folder of jobs.

It answers as BFL did, and adds `engine` beside a new `finetune_id`, and `engine`, `state`, `queue_position` and
`seconds_left` to the details. Endpoints that write are plain functions, which run in threads to their end: a client
that goes away half-way leaves nothing half done.
"""

import binascii
import logging
import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, TypeVar

import anyio.to_thread
import pydantic
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bfl_mcp import __version__
from bfl_mcp.contract import (
    DEFAULT_LEARNING_RATE,
    FINETUNE_NOT_FOUND,
    INVALID_KEY,
    NOT_AUTHENTICATED,
    TRAINER_HEADER,
    DeleteFinetuneInputs,
    DeleteFinetuneResponse,
    FinetuneDetailResponse,
    FinetuneInputs,
    HTTPValidationError,
    MyFinetunesResponse,
    ResultResponse,
)
from bfl_mcp.trainer.jobs import UNFINISHED, Job, JobGoneError, Jobs, Progress
from bfl_mcp.trainer.uploads import BadArchiveError, unpack
from bfl_mcp.trainer.worker import Workers

logger = logging.getLogger(__name__)

_BLOCK_BYTES: Final = 1 << 20
# What JSON unfolds to in memory is bounded by parsing no more of it than this: some of it takes twenty times its size.
_MAX_JSON_BYTES: Final = 1 << 20
# Four characters of base64 are three bytes. Decoding holds the interpreter's lock, so it is done in pieces.
_DECODED_AT_A_TIME: Final = 4 << 18
# What an archive may unfold to, in sizes of the largest upload: images are compressed already.
_UNFOLDING: Final = 4
_NOT_ALONE: Final = (
    f"Value error, file_data is not base64, or the request holds more than {_MAX_JSON_BYTES >> 20} MB beside it"
)
_Model = TypeVar("_Model", bound=BaseModel)
_STATUS: Final = {"queued": "Pending", "training": "Pending", "ready": "Ready", "failed": "Error"}


def create_app(
    data: Path, *, api_key: SecretStr | None, max_upload_mb: float, practice_seconds: float, engine: str = "practice"
) -> FastAPI:
    """Make the trainer's app over a data folder. Without a key everybody is let in: for use inside this process.

    Work that an earlier process left unfinished goes on.
    """
    trainer = _Trainer(data, max_upload_mb, engine, {"practice_seconds": practice_seconds})
    app = FastAPI(title="bfl-mcp trainer", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(OSError, partial(_answer_no_storage, data))
    app.add_middleware(_Signature)
    app.include_router(_routes(trainer, _key_check(api_key)))
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    trainer.wake_worker()
    return app


class _Signature:
    """Says on every answer that it comes from this trainer, which costs nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (TRAINER_HEADER.encode(), __version__.encode())]
            await send(message)

        await self._app(scope, receive, sign)


class _Trainer:
    """The jobs of one data folder, in the words of the API."""

    def __init__(self, data: Path, max_upload_mb: float, engine: str, options: Mapping[str, Any]) -> None:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.jobs = Jobs(data)
        self.max_upload_bytes = int(max_upload_mb * 1_000_000)
        self._engine = engine
        self._options = options
        self._workers = Workers(data)
        # An upload needs up to three times its size in memory while it is read; mostly less than two.
        self._reading = threading.Lock()

    def wake_worker(self) -> None:
        if self.jobs.unfinished():
            self._wake()

    def create(self, upload: BinaryIO) -> dict[str, Any]:
        with self._reading:
            inputs, archive = _read_inputs(upload)
            parameters = inputs.model_dump(mode="json", exclude={"file_data", "webhook_url", "webhook_secret"})
            notes = ("this trainer sends no notifications: webhook_url is ignored",) if inputs.webhook_url else ()

            def fill(dataset: Path) -> None:
                try:
                    unpack(archive, dataset, _UNFOLDING * self.max_upload_bytes)
                except BadArchiveError as error:
                    raise _invalid("value_error", "file_data", f"Value error, {error}") from None

            job = self.jobs.create(parameters, self._engine, self._options, fill, notes)
        self._wake()
        return {"finetune_id": job.finetune_id, "engine": job.engine}

    def details(self, finetune_id: str) -> dict[str, Any]:
        job, progress = self._look_at(finetune_id)
        rate = job.parameters["learning_rate"] or DEFAULT_LEARNING_RATE[job.parameters["finetune_type"]]
        details: dict[str, Any] = {
            **job.parameters,
            "learning_rate": rate,
            "timestamp": job.created,
            "engine": job.engine,
            "state": progress.state,
        }
        if progress.state == "queued":
            details["queue_position"] = sum(other.order < job.order for other in self.jobs.unfinished()) + 1
        if progress.seconds_left is not None:
            details["seconds_left"] = round(progress.seconds_left, 1)
        return details

    def result(self, finetune_id: str) -> ResultResponse:
        job, progress = self._look_at(finetune_id)
        return ResultResponse(
            id=finetune_id,
            status=_STATUS[progress.state],
            progress=progress.step / (job.parameters.get("iterations") or 1),
            details={"error": progress.error} if progress.error else None,
        )

    def _look_at(self, finetune_id: str) -> tuple[Job, Progress]:
        job = self.jobs.find(finetune_id)
        try:
            if job is None:
                raise JobGoneError(finetune_id)
            progress = job.read_progress()
        except JobGoneError:
            raise HTTPException(404, FINETUNE_NOT_FOUND) from None
        if progress.state in UNFINISHED:
            # Whoever sees that nobody works on it sets somebody to work.
            self._wake()
        return job, progress

    def _wake(self) -> None:
        try:
            self._workers.wake()
        except OSError:
            # The finetune is safe on disk, and the next look tries again.
            logger.exception("no worker could be started for %s", self.jobs.data)


def _routes(trainer: _Trainer, check_key: Callable[..., None]) -> APIRouter:
    invalid: dict[int | str, dict[str, Any]] = {422: {"model": HTTPValidationError, "description": "Validation Error"}}
    router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    async def upload(request: Request) -> AsyncIterator[BinaryIO]:
        with tempfile.TemporaryFile(prefix="bfl-mcp-upload-") as file:
            await _receive(
                request, file, trainer.max_upload_bytes, " (BFL_TRAINER_MAX_UPLOAD_MB), a quarter of it base64"
            )
            yield file

    async def deletion(request: Request) -> DeleteFinetuneInputs:
        file = BytesIO()
        await _receive(request, file, _MAX_JSON_BYTES)
        return _parse(DeleteFinetuneInputs, file.getvalue())

    @router.post("/finetune", responses=invalid, openapi_extra=_body(FinetuneInputs), tags=["Tasks"])
    def finetune(file: Annotated[Any, Depends(upload)]) -> dict[str, Any]:
        return trainer.create(file)

    @router.get("/finetune_details", responses=invalid, tags=["Utility"])
    def finetune_details(finetune_id: str) -> FinetuneDetailResponse:
        return FinetuneDetailResponse(finetune_details=trainer.details(finetune_id))

    @router.get("/get_result", responses=invalid, response_model=ResultResponse, tags=["Utility"])
    def get_result(id: str) -> Any:  # noqa: A002 - BFL's name for it
        try:
            return trainer.result(id)
        except HTTPException:
            gone = ResultResponse(id=id, status="Task not found")
            return JSONResponse(gone.model_dump(mode="json"), status_code=404)

    @router.get("/my_finetunes", tags=["Utility"])
    def my_finetunes() -> MyFinetunesResponse:
        trainer.wake_worker()
        return MyFinetunesResponse(finetunes=[job.finetune_id for job in trainer.jobs.all()])

    @router.post("/delete_finetune", responses=invalid, openapi_extra=_body(DeleteFinetuneInputs), tags=["Utility"])
    def delete_finetune(inputs: Annotated[DeleteFinetuneInputs, Depends(deletion)]) -> DeleteFinetuneResponse:
        if not trainer.jobs.delete(inputs.finetune_id):
            raise HTTPException(404, FINETUNE_NOT_FOUND)
        return DeleteFinetuneResponse(
            status="success",
            message="Finetune deleted",
            deleted_finetune_id=inputs.finetune_id,
            timestamp=datetime.now(UTC).isoformat(),
        )

    return router


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand: FastAPI would read all of it, however long, before it looks at the key."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}


def _key_check(api_key: SecretStr | None) -> Callable[..., None]:
    header = APIKeyHeader(name="x-key", auto_error=False)

    def check_key(given: Annotated[str | None, Security(header)]) -> None:
        if api_key is None:
            return
        if given is None:
            raise HTTPException(403, NOT_AUTHENTICATED)
        if not secrets.compare_digest(given.encode(), api_key.get_secret_value().encode()):
            raise HTTPException(403, INVALID_KEY)

    return check_key


async def _receive(request: Request, file: BinaryIO, max_bytes: int, note: str = "") -> None:
    """Write the request's body to disk, so that waiting uploads need no memory."""
    announced = request.headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    block = bytearray()
    if size <= max_bytes:
        size = 0
        async for part in request.stream():
            size += len(part)
            block += part
            if size > max_bytes:
                break
            if len(block) >= _BLOCK_BYTES:
                await anyio.to_thread.run_sync(file.write, block)
                block = bytearray()
    if size > max_bytes:
        raise HTTPException(
            413,
            f"The request has {size / 1e6:.1f} MB or more; this trainer takes at most {max_bytes / 1e6:g} MB{note}.",
        )
    await anyio.to_thread.run_sync(file.write, block)


def _read_inputs(upload: BinaryIO) -> tuple[FinetuneInputs, BytesIO]:
    """Read the parameters and the archive. In a long body `file_data` is not parsed, only found."""
    upload.seek(0)
    body = upload.read()
    if len(body) <= _MAX_JSON_BYTES:
        inputs = _parse(FinetuneInputs, body)
        return inputs, _decode(inputs.file_data)
    start, end = _find_longest_string(body)
    mark = secrets.token_hex()
    if len(body) - (end - start) > _MAX_JSON_BYTES:
        raise _invalid("value_error", "file_data", _NOT_ALONE)
    inputs = _parse(FinetuneInputs, body[:start] + mark.encode() + body[end:])
    if inputs.file_data != mark:
        raise _invalid("value_error", "file_data", _NOT_ALONE)
    # Some encoders escape the slashes. One byte is found at once where two take a fifth of a second.
    escaped = b"\\" in body
    return inputs, _decode(body[start:end].replace(b"\\/", b"/") if escaped else memoryview(body)[start:end])


def _find_longest_string(body: bytes) -> tuple[int, int]:
    """Where the longest run between two quotation marks stands. Looks no further once the rest is too long anyway."""
    longest, beside = (0, 0), 0
    before = body.find(b'"')
    while before >= 0 and beside <= _MAX_JSON_BYTES:
        after = body.find(b'"', before + 1)
        run = (before + 1, after if after >= 0 else len(body))
        shorter, longest = sorted((longest, run), key=lambda span: span[1] - span[0])
        beside += 1 + shorter[1] - shorter[0]
        before = after
    return longest


def _parse(model: type[_Model], body: bytes) -> _Model:
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise RequestValidationError(
            [
                {**fault, "loc": ("body", *fault["loc"])}
                for fault in error.errors(include_url=False, include_input=False)
            ]
        ) from None


def _decode(file_data: str | bytes | memoryview) -> BytesIO:
    archive = BytesIO()
    try:
        for start in range(0, len(file_data), _DECODED_AT_A_TIME):
            piece = file_data[start : start + _DECODED_AT_A_TIME]
            decoded = binascii.a2b_base64(piece, strict_mode=True)
            if len(decoded) * 4 != len(piece) * 3 and start + len(piece) < len(file_data):
                raise ValueError("padding in the middle")
            archive.write(decoded)
    except ValueError:
        raise _invalid("value_error", "file_data", "Value error, file_data is not base64") from None
    archive.seek(0)
    return archive


def _invalid(kind: str, field: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", field), "msg": message}])


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422, without `input`: BFL's repeats the whole upload."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for nothing else
    faults = [{key: fault[key] for key in ("type", "loc", "msg") if key in fault} for fault in error.errors()]
    return JSONResponse({"detail": faults}, status_code=422)


async def _answer_no_storage(data: Path, _: Request, error: Exception) -> JSONResponse:
    """A disk that is full, closed or gone: nothing was started, and the person can mend it."""
    logger.error("the data folder cannot be used", exc_info=error)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return JSONResponse({"detail": f"the data folder {str(data)!r} cannot be used: {reason}"}, status_code=507)


def _describe(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for model in (FinetuneInputs, DeleteFinetuneInputs):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            described["components"]["schemas"][model.__name__] = schema
        app.openapi_schema = described
    return app.openapi_schema
