"""Which pictures are trained on, and at which size: each in its own shape, at the number of pixels the recipe gives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bfl_mcp.dataset.images import SUFFIXES, open_upright, read_upright_size
from bfl_mcp.errors import DatasetError, quote_name
from bfl_mcp.trainer.engines import TrainingError
from bfl_mcp.trainer.engines.flux2.recipe import GRID_PX, Recipe

if TYPE_CHECKING:
    from PIL import Image

# Wider or taller pictures are cropped to it: a bucket of one patch's height teaches nothing.
_MOST_ELONGATED: Final = 3.0
_WHOLE_PX: Final = 1 << 16
# What was brought to a megapixel has a little less: sides are whole numbers.
_LARGE_ENOUGH: Final = 0.99


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A size that pictures are brought to before they are encoded."""

    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture and the bucket it is trained in."""

    picture: Path
    bucket: Bucket

    @property
    def name(self) -> str:
        return self.picture.name


def list_pictures(dataset: Path) -> list[Path]:
    """The pictures of a dataset folder, by name."""
    return sorted(path for path in dataset.iterdir() if path.suffix in SUFFIXES.values())


def place_pictures(pictures: Sequence[Path], recipe: Recipe) -> list[Placed]:
    """Choose a bucket for each picture. With `high_res_only` small ones stay out, and none is scaled up.

    Raises:
        TrainingError: No picture is left, or one cannot be read.
    """
    buckets = list_buckets(recipe.bucket_pixels, recipe.bucket_step_px)
    placed = []
    for picture in pictures:
        width, height = _read_size(picture)
        if recipe.priority != "high_res_only":
            placed.append(Placed(picture, choose_bucket(width, height, buckets)))
        elif width * height >= _LARGE_ENOUGH * recipe.bucket_pixels:
            placed.append(Placed(picture, shrink(width, height, recipe.bucket_pixels)))
    if not placed:
        raise TrainingError(
            f"priority='high_res_only' leaves none of the {len(pictures)} images: each has less than "
            f"{recipe.bucket_pixels / 1e6:.2g} megapixels. Take larger images, or priority='quality'."
        )
    return placed


def list_buckets(pixels: int, step_px: int) -> tuple[Bucket, ...]:
    """All sizes of at most `pixels` whose sides lie on the grid, each as high as its width allows."""
    widest = math.isqrt(int(pixels * _MOST_ELONGATED))
    buckets = []
    for width in range(step_px, widest + 1, step_px):
        height = pixels // width // step_px * step_px
        if height and max(width / height, height / width) <= _MOST_ELONGATED:
            buckets.append(Bucket(width, height))
    return tuple(buckets)


def choose_bucket(width_px: int, height_px: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of the nearest shape; of two equally near the larger."""
    shape = math.log(width_px / height_px)
    return min(
        buckets,
        key=lambda each: (
            round(abs(math.log(each.width_px / each.height_px) - shape), 6),
            -each.width_px * each.height_px,
            each,
        ),
    )


def shrink(width_px: int, height_px: int, pixels: int) -> Bucket:
    """The largest size on the grid that a picture gives without being scaled up."""
    longest = _MOST_ELONGATED * min(width_px, height_px)
    width, height = min(width_px, longest), min(height_px, longest)
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    sides = (max(GRID_PX, int(side * scale) // GRID_PX * GRID_PX) for side in (width, height))
    return Bucket(*sides)


def open_picture(picture: Path, longer_side_px: int = _WHOLE_PX) -> "Image.Image":
    """Decode a picture, clean: upright, sRGB, alpha laid on white.

    Raises:
        TrainingError: It cannot be read.
    """
    try:
        with picture.open("rb") as file:
            return open_upright(file, longer_side_px)
    except DatasetError as error:
        raise TrainingError(f"{quote_name(picture.name)}: {error}. Start again without it.") from None


def fit_picture(picture: "Image.Image", bucket: Bucket) -> "Image.Image":
    """Scale a picture until it covers the bucket, and cut off what stands over on both sides alike."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    return ImageOps.fit(picture, (bucket.width_px, bucket.height_px), Resampling.LANCZOS)


def _read_size(picture: Path) -> tuple[int, int]:
    try:
        with picture.open("rb") as file:
            return read_upright_size(file)
    except DatasetError as error:
        raise TrainingError(f"{quote_name(picture.name)}: {error}. Start again without it.") from None
