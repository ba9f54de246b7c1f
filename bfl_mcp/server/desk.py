"""The tools of the dataset desk that write: write_captions."""

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

from bfl_mcp.contract import MAX_IMAGES
from bfl_mcp.dataset.captioned import CaptionsWritten, Mode
from bfl_mcp.server.schema import make_tool
from bfl_mcp.server.tools import App, FolderInput


class Caption(BaseModel):
    """An image and what it shall say."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    file: str = Field(min_length=1, description="Name of an image in the folder, without a path, e.g. robot-01.jpg.")
    text: str | None = Field(
        default=None, description="The caption: what varies in this image, with the trigger word. Only in mode set."
    )


class WriteCaptions(FolderInput):
    """Arguments of write_captions."""

    captions: list[Caption] = Field(
        default=[], max_length=MAX_IMAGES, description="Images, and their texts in mode set. Empty: see mode."
    )
    mode: Mode = Field(
        default="set",
        description="set writes the texts. prepend_trigger puts trigger_word before captions that lack it, of all "
        "images if captions is empty. undo takes the last call back or, for files named in captions, all calls.",
    )
    trigger_word: str | None = Field(default=None, description="Needed by prepend_trigger; set tells who lacks it.")
    dry_run: bool = Field(default=False, description="True: show old and new texts, write nothing.")


async def write_captions(request: WriteCaptions, ctx: Context[App]) -> CaptionsWritten:
    """Write captions beside the images of a local folder, as .txt files of the same name. Free; sends nothing.

    Never touches an image. Writes all captions of a call or none; old texts are kept, and mode undo brings them back.
    Use dry_run=true first to show the person what would change.
    """
    from bfl_mcp.dataset import Access
    from bfl_mcp.dataset.captions import CaptionsAsked
    from bfl_mcp.dataset.captions import write_captions as write

    settings = ctx.request_context.lifespan_context.settings
    pairs = tuple((caption.file, caption.text) for caption in request.captions)
    asked = CaptionsAsked(request.folder, pairs, request.mode, request.trigger_word, request.dry_run)
    return await anyio.to_thread.run_sync(write, asked, Access.of_agents(settings), settings.home)


DESK_TOOLS = [
    make_tool(
        write_captions,
        title="Write captions",
        annotations=ToolAnnotations(
            title="Write captions",
            read_only_hint=False,
            # What is written over is kept.
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    ),
]
