"""A small picture of each image of a dataset, drawn on all cores and handed out in order."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from bfl_mcp.dataset.archive import Seen
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


def draw_tiles(dataset: Dataset, seen: Mapping[str, Seen]) -> Iterator[tuple[ImageFile, Tile | None]]:
    """Each image with its tile, None where it cannot be shown. A few are drawn ahead, so that memory stays bounded."""
    waiting: deque[tuple[ImageFile, Future[Tile | None]]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="bfl-mcp-tile") as pool:
        try:
            for image in dataset.images:
                waiting.append((image, pool.submit(_draw_tile, dataset, image, seen.get(image.path.name))))
                if len(waiting) > _WORKERS:
                    first, tile = waiting.popleft()
                    yield first, tile.result()
            while waiting:
                first, tile = waiting.popleft()
                yield first, tile.result()
        finally:
            for _, tile in waiting:
                tile.cancel()


def _draw_tile(dataset: Dataset, image: ImageFile, seen: Seen | None) -> Tile | None:
    try:
        with (seen.picture.open() if seen is not None else None) or dataset.open(image) as source:
            picture = open_upright(source, _TILE_PX)
            buffer = BytesIO()
            picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    except (OSError, DatasetError):
        return None
    return Tile(buffer.getvalue(), picture.width, picture.height)
