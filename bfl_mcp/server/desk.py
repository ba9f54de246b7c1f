"""The tools of the dataset desk: check_dataset, view_dataset, write_captions and export_dataset."""

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

from bfl_mcp.contract import (
    MAX_IMAGES,
    MAX_ITERATIONS,
    MAX_PATH_CHARACTERS,
    MAX_TRIGGER_WORD_CHARACTERS,
    MIN_ITERATIONS,
)
from bfl_mcp.contract import Mode as TrainingMode
from bfl_mcp.dataset.captioned import CaptionsWritten, Mode
from bfl_mcp.errors import DatasetError
from bfl_mcp.finetunes.checked import DatasetChecked, Detail
from bfl_mcp.finetunes.exported import DatasetExported
from bfl_mcp.finetunes.viewed import Picture
from bfl_mcp.server.schema import make_tool
from bfl_mcp.server.tools import IN_HAND, App, FolderInput


class CheckDataset(FolderInput):
    """Arguments of check_dataset."""

    mode: TrainingMode | None = Field(default=None, description="What the images teach, to check what that asks for.")

    trigger_word: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TRIGGER_WORD_CHARACTERS,
        description="Trigger word, to check that the captions hold it.",
    )
    iterations: int | None = Field(
        default=None, ge=MIN_ITERATIONS, le=MAX_ITERATIONS, description="Training steps, to tell the price."
    )
    detail: Detail = Field(default="concise", description="full names every file of every finding.")


async def check_dataset(request: CheckDataset, ctx: Context[App]) -> DatasetChecked:
    """Judge a local folder of images before training: faults, warnings, what will be changed, and its verdict. Free.

    Looks at every image and caption: damage, size, blur, duplicates, captions, trigger word. Sends nothing and changes
    nothing. Only folder is required; checks that need another argument are left out and named.
    """
    desk = ctx.request_context.lifespan_context.desk
    checked = await desk.check(
        request.folder,
        {"mode": request.mode, "trigger_word": request.trigger_word},
        request.iterations,
        request.detail,
        IN_HAND.get().call,
    )
    if checked is None:
        raise _not_yet(f"Still looking at the folder: {desk.how_far(request.folder)}", "check_dataset")
    return checked


class ViewDataset(FolderInput):
    """Arguments of view_dataset."""

    page: int = Field(default=1, ge=1, le=MAX_IMAGES, description="Page of the contact sheet, 12 images each.")
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PATH_CHARACTERS,
        description="Name of one image of the folder, to see it large; no path.",
    )


async def view_dataset(request: ViewDataset, ctx: Context[App]) -> Picture:
    """Show the images of a local folder: a contact sheet of numbered, named tiles, or one image large. Free.

    Use it to describe or caption images, and to see what a finding is about. Orange frames have warnings, red ones
    faults. Sends nothing and changes nothing. Names a file with the picture, for a person whose host shows none.
    """
    desk = ctx.request_context.lifespan_context.desk
    picture = await desk.view(request.folder, request.page, request.image, IN_HAND.get().call)
    if picture is None:
        raise _not_yet(f"Still looking at the folder: {desk.how_far(request.folder)}", "view_dataset")
    return picture


def _not_yet(doing: str, tool: str) -> DatasetError:
    return DatasetError(
        f"{doing}. The work goes on: call {tool} again with the same arguments. Nothing was sent or charged."
    )


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
    from bfl_mcp.dataset.access import Access
    from bfl_mcp.dataset.captions import CaptionsAsked
    from bfl_mcp.dataset.captions import write_captions as write

    settings = ctx.request_context.lifespan_context.settings
    pairs = tuple((caption.file, caption.text) for caption in request.captions)
    asked = CaptionsAsked(request.folder, pairs, request.mode, request.trigger_word, request.dry_run)
    return await anyio.to_thread.run_sync(write, asked, Access.of_agents(settings), settings.home)


class ExportDataset(FolderInput):
    """Arguments of export_dataset."""

    to: str = Field(
        min_length=1,
        max_length=MAX_PATH_CHARACTERS,
        description="Whole path of what to make, outside folder: a new folder, or with .zip at its end an archive. "
        "Nothing may be there yet.",
    )


async def export_dataset(request: ExportDataset, ctx: Context[App]) -> DatasetExported:
    """Write a clean copy of a local folder of images to disk, for other trainers: a new folder or a ZIP. Free.

    The same images and captions that create_finetune would send, named 001.jpg and 001.txt and so on, without a limit
    of the provider. Sends nothing, changes no file and never overwrites one. Refuses a bad folder with all its faults.
    """
    app = ctx.request_context.lifespan_context
    exported = await app.exports.export(request.folder, request.to, IN_HAND.get().call)
    if exported is None:
        raise _not_yet(f"Still exporting: {app.exports.how_far(request.folder, request.to)}", "export_dataset")
    return exported


DESK_TOOLS = [
    make_tool(
        check_dataset,
        title="Check a folder of images",
        annotations=ToolAnnotations(
            title="Check a folder of images",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    ),
    make_tool(
        view_dataset,
        title="Look at the images of a folder",
        annotations=ToolAnnotations(
            title="Look at the images of a folder",
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
    ),
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
    make_tool(
        export_dataset,
        title="Export a clean copy of a folder",
        annotations=ToolAnnotations(
            title="Export a clean copy of a folder",
            read_only_hint=False,
            destructive_hint=False,
            # What is there is never overwritten, so that a second call is refused.
            idempotent_hint=False,
            open_world_hint=False,
        ),
    ),
]
