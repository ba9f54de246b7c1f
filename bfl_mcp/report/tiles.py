"""A small picture of each image of a dataset, drawn on all cores and handed out in order."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from bfl_mcp.dataset.folder import Dataset, ImageFile
from bfl_mcp.dataset.images import open_upright
from bfl_mcp.errors import DatasetError

_TILE_PX: Final = 384
_QUALITY: Final = 82
_WORKERS: Final = min(os.cpu_count() or 1, 8)


@dataclass(frozen=True, slots=True)
class Tile:
    """A JPEG and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


def draw_tiles(dataset: Dataset) -> Iterator[tuple[ImageFile, Tile | None]]:
    """Each image with its tile, None where it cannot be shown. A few are drawn ahead, so that memory stays bounded."""
    waiting: deque[tuple[ImageFile, Future[Tile | None]]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="bfl-mcp-tile") as pool:
        try:
            for image in dataset.images:
                waiting.append((image, pool.submit(draw_tile, dataset, image)))
                if len(waiting) > _WORKERS:
                    first, tile = waiting.popleft()
                    yield first, tile.result()
            while waiting:
                first, tile = waiting.popleft()
                yield first, tile.result()
        finally:
            for _, tile in waiting:
                tile.cancel()


def draw_tile(dataset: Dataset, image: ImageFile) -> Tile | None:
    """The tile of one image, None where it cannot be shown."""
    try:
        with dataset.open(image) as source:
            picture = open_upright(source, _TILE_PX)
            buffer = BytesIO()
            picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    except (OSError, DatasetError):
        return None
    return Tile(buffer.getvalue(), picture.width, picture.height)
