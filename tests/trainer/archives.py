"""Archives and requests made on the spot, good ones and bad ones."""

import base64
import io
import zipfile
from collections.abc import Iterable
from typing import Any

from PIL import Image

from tests.pictures import picture

Entry = tuple[str | zipfile.ZipInfo, bytes]


def jpeg(seed: int = 0, width: int = 32, height: int = 24) -> bytes:
    file = io.BytesIO()
    picture(width, height, seed).save(file, "JPEG")
    return file.getvalue()


def slow_png() -> bytes:
    """Quickly sent and slowly decoded: twenty megapixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("RGB", (5000, 4000)).save(file, "PNG")
    return file.getvalue()


def zipped(entries: Iterable[Entry], method: int = zipfile.ZIP_STORED) -> bytes:
    """The same entries make the same bytes: a name alone gets a fixed time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in entries:
            info = zipfile.ZipInfo(entry) if isinstance(entry, str) else entry
            archive.writestr(info, content, method)
    return file.getvalue()


def good_archive(images: int = 2) -> bytes:
    """`images` pictures with captions, as our own client packs them."""
    return zipped(
        entry
        for number in range(1, images + 1)
        for entry in ((f"{number:03}.jpg", jpeg(number)), (f"{number:03}.txt", b"photo of TOK"))
    )


def start(archive: bytes | None = None, **others: Any) -> dict[str, Any]:
    """The body of `POST /v1/finetune`."""
    data = base64.b64encode(good_archive() if archive is None else archive).decode()
    return {"finetune_comment": "a comment", "mode": "style", "file_data": data, **others}
