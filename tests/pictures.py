"""Pictures made on the spot: small, different from each other, deterministic."""

from pathlib import Path

from PIL import Image


def picture(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """A picture with gradients and edges, different for each seed."""
    gradient = Image.linear_gradient("L").resize((width, height))
    rings = Image.radial_gradient("L").resize((width, height)).rotate(37 * seed)
    flat = Image.new("L", (width, height), 40 * seed % 256)
    return Image.merge("RGB", (gradient, rings, flat))


def fill_folder(folder: Path, count: int = 3, captions: bool = True, size: tuple[int, int] = (320, 240)) -> Path:
    """A folder with `count` good JPEGs named a.jpg, b.jpg, … and their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        stem = chr(ord("a") + number) if count <= 26 else f"{number:04}"
        picture(*size, seed=number).save(folder / f"{stem}.jpg", quality=90)
        if captions:
            (folder / f"{stem}.txt").write_text(f"photo of TOK number {number}\n", encoding="utf-8")
    return folder
