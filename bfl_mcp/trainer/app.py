"""The HTTP face of the trainer: BFL's finetuning API over a folder of jobs.

It answers as BFL did. It adds `engine` beside a new `finetune_id`, to the details how a finetune stands and what has
come of it, and three answers of its own: what a training would take, the files of a finetune, and that it is there.
Endpoints that write are plain functions, which run in threads to their end: a client that goes away half-way leaves
nothing half done.
"""

import logging
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bfl_mcp import __version__
from bfl_mcp.contract import (
    DEFAULT_CAPTIONER,
    DEFAULT_MODEL,
    FINETUNE_NOT_FOUND,
    INVALID_KEY,
    NOT_AUTHENTICATED,
    TRAINER_HEADER,
    DeleteFinetuneInputs,
    DeleteFinetuneResponse,
    Engine,
    FinetuneDetailResponse,
    FinetuneInputs,
    HTTPValidationError,
    MyFinetunesResponse,
    ResultResponse,
    TrainerNeed,
    TrainerNeedInputs,
)
from bfl_mcp.trainer.bodies import MAX_JSON_BYTES, parse, receive
from bfl_mcp.trainer.hardware import Hardware
from bfl_mcp.trainer.provider import Choices, Provider

logger = logging.getLogger(__name__)

# Where nobody asks, somebody must still see that a worker vanished.
_SECONDS_BETWEEN_LOOKS: Final = 10


def create_app(  # noqa: PLR0913 - each is a decision of the person
    data: Path,
    *,
    api_key: SecretStr | None,
    max_upload_mb: float,
    practice_seconds: float,
    engine: Literal["auto", Engine] = "practice",
    model: str = DEFAULT_MODEL,
    captioner: str = DEFAULT_CAPTIONER,
    max_px: int | None = None,
    gpus: int | None = None,
    tells_paths: bool = False,
    hardware: Hardware | None = None,
) -> FastAPI:
    """Make the trainer's app over a data folder. Without a key everybody is let in: for use inside this process.

    Work that an earlier process left unfinished goes on. `gpus` is how many trainings run at once, one unless given;
    `hardware` is what they run on, looked at when first needed unless given.
    """
    choices = Choices(engine, practice_seconds, model, captioner, max_px, gpus or 1, tells_paths)
    provider = Provider(data, max_upload_mb, choices, hardware)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_look_again_and_again, provider)
            yield
            tasks.cancel_scope.cancel()

    app = FastAPI(title="bfl-mcp trainer", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(OSError, partial(_answer_no_storage, data))
    app.add_middleware(_Signature)
    app.include_router(_routes(provider, _key_check(api_key)))
    app.include_router(_our_routes(provider, _key_check(api_key)))

    @app.get("/healthz", tags=["Not BFL's"])
    def healthz() -> Health:
        return Health(engine=provider.engine, version=__version__)

    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    provider.wake_workers()
    return app


class Health(BaseModel):
    """What anybody may know: that it is there, what it trains with, and its version."""

    status: Literal["ok"] = "ok"
    engine: Engine
    version: str


async def _look_again_and_again(provider: Provider) -> None:
    while True:
        await anyio.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            await anyio.to_thread.run_sync(provider.wake_workers)
        except OSError:
            logger.exception("the data folder cannot be looked at")


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


_INVALID: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": HTTPValidationError, "description": "Validation Error"}
}
_FILE: Final[dict[int | str, dict[str, Any]]] = {
    **_INVALID,
    200: {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The file",
    },
}


def _routes(provider: Provider, check_key: Callable[..., None]) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])

    async def upload(request: Request) -> AsyncIterator[BinaryIO]:
        with tempfile.TemporaryFile(prefix="bfl-mcp-upload-") as file:
            await receive(
                request, file, provider.max_upload_bytes, " (BFL_TRAINER_MAX_UPLOAD_MB), a quarter of it base64"
            )
            yield file

    async def deletion(request: Request) -> DeleteFinetuneInputs:
        return parse(DeleteFinetuneInputs, await _read_json(request))

    @router.post("/finetune", responses=_INVALID, openapi_extra=_body(FinetuneInputs), tags=["Tasks"])
    def finetune(file: Annotated[Any, Depends(upload)]) -> dict[str, Any]:
        return provider.create(file)

    @router.get("/finetune_details", responses=_INVALID, tags=["Utility"])
    def finetune_details(finetune_id: str) -> FinetuneDetailResponse:
        return FinetuneDetailResponse(finetune_details=provider.details(finetune_id))

    @router.get("/get_result", responses=_INVALID, response_model=ResultResponse, tags=["Utility"])
    def get_result(id: str) -> Any:  # noqa: A002 - BFL's name for it
        try:
            return provider.result(id)
        except HTTPException:
            gone = ResultResponse(id=id, status="Task not found")
            return JSONResponse(gone.model_dump(mode="json"), status_code=404)

    @router.get("/my_finetunes", tags=["Utility"])
    def my_finetunes() -> MyFinetunesResponse:
        provider.wake_workers()
        return MyFinetunesResponse(finetunes=[job.finetune_id for job in provider.jobs.all()])

    @router.post("/delete_finetune", responses=_INVALID, openapi_extra=_body(DeleteFinetuneInputs), tags=["Utility"])
    def delete_finetune(inputs: Annotated[DeleteFinetuneInputs, Depends(deletion)]) -> DeleteFinetuneResponse:
        if not provider.jobs.delete(inputs.finetune_id):
            raise HTTPException(404, FINETUNE_NOT_FOUND)
        return DeleteFinetuneResponse(
            status="success",
            message="Finetune deleted",
            deleted_finetune_id=inputs.finetune_id,
            timestamp=datetime.now(UTC).isoformat(),
        )

    return router


def _our_routes(provider: Provider, check_key: Callable[..., None]) -> APIRouter:
    """What BFL's API has no word for."""
    router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)], tags=["Not BFL's"])

    async def question(request: Request) -> TrainerNeedInputs:
        return parse(TrainerNeedInputs, await _read_json(request))

    @router.post("/finetune_need", responses=_INVALID, openapi_extra=_body(TrainerNeedInputs))
    def finetune_need(inputs: Annotated[TrainerNeedInputs, Depends(question)]) -> TrainerNeed:
        return provider.describe_need(inputs)

    @router.get("/finetune_file", responses=_FILE, response_class=FileResponse)
    def finetune_file(finetune_id: str, name: str) -> FileResponse:
        path = provider.find_file(finetune_id, name)
        # As bytes to keep, whatever they are: a browser must not show one as a page of this server.
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    return router


async def _read_json(request: Request) -> bytes:
    file = BytesIO()
    await receive(request, file, MAX_JSON_BYTES)
    return file.getvalue()


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
        for model in (FinetuneInputs, DeleteFinetuneInputs, TrainerNeedInputs):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            described["components"]["schemas"][model.__name__] = schema
        app.openapi_schema = described
    return app.openapi_schema
