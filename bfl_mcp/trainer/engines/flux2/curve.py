"""The loss of every step as a picture."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bfl_mcp.trainer.engines.flux2.store import write_whole

_SIZE: Final = (1200, 675)
_LEFT, _TOP, _RIGHT, _BOTTOM = 96, 84, 1168, 590
_TEXT, _FAINT, _LINES = "#222222", "#666666", "#e4e4e4"
_EACH, _MEAN = "#b8cdea", "#1f5fbf"
_TITLE_PX, _TEXT_PX = 26, 18
_TICKS: Final = 6


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values along one side of the picture, with round numbers to write beside it."""

    first: float
    last: float
    ticks: tuple[float, ...]
    begin_px: int
    end_px: int

    def place(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first)
        return self.begin_px + share * (self.end_px - self.begin_px)


def draw_curve(path: Path, losses: Sequence[float]) -> None:
    """Draw the loss of each step, pale, and its running mean over it: single losses say little."""
    from PIL import Image, ImageDraw, ImageFont

    window = max(1, len(losses) // 10)
    means = [statistics.fmean(losses[max(0, at + 1 - window) : at + 1]) for at in range(len(losses))]
    across = _scale(0, len(losses), _LEFT, _RIGHT, whole=True)
    up = _scale(min(losses), max(losses), _BOTTOM, _TOP)
    # At twice the size, then halved: Pillow draws lines with steps.
    picture = Image.new("RGB", (2 * _SIZE[0], 2 * _SIZE[1]), "white")
    draw = ImageDraw.Draw(picture)
    text, title = (ImageFont.load_default(2 * size) for size in (_TEXT_PX, _TITLE_PX))
    for tick in up.ticks:
        y = 2 * up.place(tick)
        draw.line([(2 * _LEFT, y), (2 * _RIGHT, y)], fill=_LINES, width=2)
        draw.text((2 * _LEFT - 16, y), f"{tick:g}", fill=_FAINT, font=text, anchor="rm")
    for tick in across.ticks:
        x = 2 * across.place(tick)
        draw.line([(x, 2 * _BOTTOM), (x, 2 * _BOTTOM + 12)], fill=_FAINT, width=2)
        draw.text((x, 2 * _BOTTOM + 20), f"{tick:g}", fill=_FAINT, font=text, anchor="ma")
    draw.line([(2 * _LEFT, 2 * _BOTTOM), (2 * _RIGHT, 2 * _BOTTOM)], fill=_FAINT, width=2)
    for values, colour, width in ((losses, _EACH, 3), (means, _MEAN, 7)):
        points = [(2 * across.place(step), 2 * up.place(value)) for step, value in enumerate(values, start=1)]
        draw.line(points, fill=colour, width=width, joint="curve")
    draw.text((2 * _LEFT, 32), "Loss of each training step", fill=_TEXT, font=title, anchor="la")
    draw.text((2 * _LEFT, 96), "each step", fill=_FAINT, font=text, anchor="la")
    beside = draw.textlength("each step   ", font=text)
    draw.text((2 * _LEFT + beside, 96), f"mean of the last {window}", fill=_MEAN, font=text, anchor="la")
    draw.text((_LEFT + _RIGHT, 2 * _BOTTOM + 72), "step", fill=_TEXT, font=text, anchor="ma")
    small = picture.reduce(2)
    write_whole(path, lambda part: small.save(part, "PNG"))


def _scale(least: float, most: float, begin_px: int, end_px: int, *, whole: bool = False) -> _Axis:
    """An axis from one round number to another, or to the last value where `whole` numbers are counted."""
    spread = (most - least) or abs(most) or 1.0
    rough = spread / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first = math.floor(least / step) * step
    last = most if whole else math.ceil(most / step) * step
    if last <= first:
        last = first + step
    count = math.floor((last - first) / step + 0.001)
    ticks = tuple(round(first + at * step, 10) for at in range(count + 1))
    return _Axis(first, last, ticks, begin_px, end_px)
