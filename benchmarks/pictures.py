"""Folders of photograph-like pictures: noisy like a sensor, each different, made in seconds."""

import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageChops

_NOISES: Final = 6
_QUALITIES: Final = range(86, 95)


@dataclass(frozen=True, slots=True)
class Kind:
    """What the pictures of a folder are, 12 megapixels unless said. `orientation` None means no EXIF at all."""

    name: str
    form: str = "JPEG"
    orientation: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (4000, 3000)


KINDS: Final = (
    Kind("baseline"),
    Kind("exif-upright", orientation=1),
    Kind("exif-turned", orientation=6),
    Kind("progressive", options={"progressive": True}),
    Kind("png", form="PNG", options={"compress_level": 1}),
)


def fill_folder(folder: Path, kind: Kind, megabytes: float = math.inf, most: float = math.inf) -> tuple[int, float]:
    """Write pictures until they have so many megabytes together, or are so many. Returns their number and megabytes."""
    folder.mkdir(parents=True)
    workers = os.cpu_count() or 1
    files, written = 0, 0.0
    pictures = _pictures(kind.size)
    with ThreadPoolExecutor(workers) as pool:
        while written < megabytes and files < most:
            batch = list(enumerate(itertools.islice(pictures, int(min(workers, most - files))), start=files))
            sizes = pool.map(lambda numbered: _write(folder, kind, *numbered), batch)
            written += sum(sizes) / 1e6
            files += len(batch)
    return files, written


def _write(folder: Path, kind: Kind, number: int, picture: Image.Image) -> int:
    path = folder / f"{number:04}{'.png' if kind.form == 'PNG' else '.jpg'}"
    options = dict(kind.options)
    if kind.form == "JPEG":
        options["quality"] = _QUALITIES[number % len(_QUALITIES)]
    if kind.orientation is not None:
        options["exif"] = _camera_exif(kind.orientation)
    picture.save(path, kind.form, **options)
    return path.stat().st_size


def _pictures(size: tuple[int, int]) -> Iterator[Image.Image]:
    """Gradients under noise, without end. Noise is dear, so few are made and each is moved along a little."""
    light = Image.linear_gradient("L").resize(size)
    colours = (light, Image.radial_gradient("L").resize(size), ImageChops.invert(light))
    noises = [Image.effect_noise(size, 44) for _ in range(_NOISES)]
    for number in itertools.count():
        noise = ImageChops.offset(noises[number % _NOISES], 1 + number // _NOISES, 0)
        yield Image.merge("RGB", [ImageChops.add(noise, colour, scale=2) for colour in colours])


def _camera_exif(orientation: int) -> Image.Exif:
    """What a camera writes: maker, model, exposure, place, and a maker note of 40 kB."""
    exif = Image.Exif()
    exif.update({0x010F: "Benchmark", 0x0110: "Model 12", 0x0112: orientation, 0x0132: "2026:01:02 03:04:05"})
    exif.get_ifd(0x8769).update({0x829A: 0.008, 0x8827: 200, 0x9003: "2026:01:02 03:04:05", 0x927C: os.urandom(40_000)})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 0.0, 0.0), 3: "E", 4: (7.0, 51.0, 0.0)})
    return exif
