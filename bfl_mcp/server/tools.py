"""The tools: create_finetune and get_finetune_details."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations
from pydantic import Field, field_validator

from bfl_mcp.config import Settings
from bfl_mcp.contract import TrainingParameters
from bfl_mcp.finetunes.provider import Provider
from bfl_mcp.finetunes.start import FinetuneStarted, start_finetune
from bfl_mcp.finetunes.status import FinetuneStatus, follow_status
from bfl_mcp.server.schema import ToolInput, make_tool

if TYPE_CHECKING:
    from bfl_mcp.server.build import Connection


@dataclass(frozen=True, slots=True)
class App:
    """What the tools share for the life of the process."""

    settings: Settings
    provider: Provider
    connection: "Connection"


class FolderInput(ToolInput):
    """Where the images are."""

    folder: str = Field(
        min_length=1, description="Whole path of the local folder with the images, e.g. /home/ana/Pictures/teapot."
    )


class CreateFinetune(TrainingParameters, FolderInput):
    """Arguments of create_finetune."""

    dry_run: bool = Field(default=False, description="True: check and pack the folder, send nothing, start nothing.")

    @field_validator("lora_rank", mode="before")
    @classmethod
    def _read_rank(cls, value: object) -> object:
        # Some hosts send every argument as a string.
        return int(value) if isinstance(value, str) and value.isdecimal() else value


class GetFinetuneDetails(ToolInput):
    """Arguments of get_finetune_details."""

    finetune_id: str = Field(min_length=1, description="Id that create_finetune returned.")
    wait_seconds: int = Field(
        default=0, ge=0, le=45, description="Wait up to this many seconds for the state to change. 0 answers at once."
    )


async def create_finetune(request: CreateFinetune, ctx: Context[App]) -> FinetuneStarted:
    """Pack a local folder of images and start one FLUX finetune from it; may cost money at a paid provider.

    Checks every image, sends a clean archive and returns the finetune_id at once, while training goes on. Refuses a bad
    folder with all its faults and sends nothing. Use dry_run=true first to see what would be sent. Each call without
    dry_run starts a new finetune: never repeat one to check on it, use get_finetune_details for that.
    """
    app = ctx.request_context.lifespan_context
    return await start_finetune(
        app.connection.client,
        app.provider,
        request.folder,
        request,
        max_megapixels=app.settings.max_megapixels,
        dry_run=request.dry_run,
        on_progress=ctx.report_progress,
    )


async def get_finetune_details(request: GetFinetuneDetails, ctx: Context[App]) -> FinetuneStatus:
    """Tell how a finetune stands (queued, training, ready, failed), how far it is, and its parameters. Free.

    Changes nothing. With wait_seconds it waits for the state to change and reports progress meanwhile; call it again
    until the state is ready or failed.
    """
    app = ctx.request_context.lifespan_context
    client = await app.connection.client()
    return await follow_status(client, request.finetune_id, request.wait_seconds, ctx.report_progress)


TOOLS = [
    make_tool(
        create_finetune,
        title="Start a finetune from a folder",
        annotations=ToolAnnotations(
            title="Start a finetune from a folder",
            read_only_hint=False,
            # Not undone once billed.
            destructive_hint=True,
            idempotent_hint=False,
            open_world_hint=True,
        ),
    ),
    make_tool(
        get_finetune_details,
        title="How a finetune stands",
        annotations=ToolAnnotations(
            title="How a finetune stands",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=True,
        ),
    ),
]
