"""Small charts as SVG text, coloured by the page they stand in: light or dark, crisp at any size.

A mark tells its numbers when the pointer rests on it. Nothing is imported: a page costs no time.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Look = Literal["recorded", "policy", "baseline", "third"]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 8, 24, 36
# Points of a line, and places that tell numbers: more cannot be told apart.
MOST_POINTS, MOST_HOVERS = 720, 48


@dataclass(frozen=True)
class Line:
    """Points joined in their order; one that is not finite breaks the line."""

    x: Sequence[float]
    y: Sequence[float]
    look: Look = "policy"
    opacity: float = 1.0
    width: float = 1.5
    dashed: bool = False
    told: str = ""
    """What the pointer is told."""
    ends: bool = False
    """Whether a dot marks where it begins."""


@dataclass(frozen=True)
class Dots:
    x: Sequence[float]
    y: Sequence[float]
    look: Look = "policy"
    opacity: Sequence[float] | float = 1.0
    radius: float = 1.6
    told: Sequence[str] = ()


@dataclass(frozen=True)
class Bars:
    """From 0 up, `width` wide in units of x."""

    x: Sequence[float]
    y: Sequence[float]
    look: Look = "policy"
    width: float = 0.8
    told: Sequence[str] = ()


@dataclass(frozen=True)
class Hover:
    """A strip of x that tells something."""

    low: float
    high: float
    told: str


Mark = Line | Dots | Bars


def chart(
    marks: Sequence[Mark],
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    hovers: Sequence[Hover] = (),
    from_zero: bool = False,
    square: bool = False,
) -> str:
    """One panel. from_zero: y begins at 0. square: one unit is as long in x as in y."""
    height = WIDTH if square else HEIGHT
    across = _Axis([v for m in marks for v in m.x], LEFT, WIDTH - RIGHT)
    zero = from_zero or any(isinstance(mark, Bars) for mark in marks)
    up = _Axis([v for m in marks for v in m.y], height - BOTTOM, TOP, from_zero=zero)
    if square:
        across.widen(up.size)
        up.widen(across.size)
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">']
    parts.append(_text(LEFT, 14, title, "title"))
    for value, words in up.ticks():
        place = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 5, place + 3, words, anchor="end"))
    for value, words in across.ticks():
        parts.append(_text(across(value), height - BOTTOM + 14, words, anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 6, x, anchor="middle"))
    if y:
        middle = (TOP + height - BOTTOM) / 2
        turned = f' transform="rotate(-90 10 {middle:.0f})"'
        parts.append(_text(10, middle, y, anchor="middle", more=turned))
    for mark in marks:
        parts.append(_drawn(mark, across, up))
    for hover in hovers[:: -(-len(hovers) // MOST_HOVERS) or 1]:
        low, high = across(hover.low), across(hover.high)
        parts.append(
            f'<rect class="over" x="{low:.1f}" y="{TOP}" width="{max(high - low, 1):.1f}" '
            f'height="{height - BOTTOM - TOP}">{_told(hover.told)}</rect>'
        )
    return "".join(parts) + "</svg>\n"


class _Axis:
    """From values to places of the drawing."""

    def __init__(
        self, values: Sequence[float], low: float, high: float, *, from_zero: bool = False
    ):
        finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
        least, most = min(finite), max(finite)
        if from_zero:
            least, most = min(least, 0.0), max(most, 0.0)
        # What is constant but for rounding is drawn as a constant.
        size = max(abs(least), abs(most)) or 1.0
        room = 0.04 * (most - least) if most - least > 2e-3 * size else 0.1 * size
        self.least = least if from_zero and least == 0 else least - room
        self.most = most + room
        self.low, self.high = low, high

    @property
    def size(self) -> float:
        """Units for a pixel."""
        return (self.most - self.least) / abs(self.high - self.low)

    def widen(self, size: float) -> None:
        """Take in more, to at least so many units for a pixel."""
        if (more := (size - self.size) * abs(self.high - self.low) / 2) > 0:
            self.least, self.most = self.least - more, self.most + more

    def __call__(self, value: float) -> float:
        share = (value - self.least) / (self.most - self.least)
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Three to six round numbers."""
        rough = (self.most - self.least) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
        first = math.ceil(self.least / step - 1e-9)
        last = math.floor(self.most / step + 1e-9)
        return [(k * step, _number(k * step, step)) for k in range(first, last + 1)]


def _number(value: float, step: float) -> str:
    if value and not 1e-4 <= step < 1e6:
        return f"{value:.3g}"
    # A step of 2.5 needs one digit more than its size says.
    digits = -math.floor(math.log10(step) + 1e-9)
    more = abs(step * 10**digits - round(step * 10**digits)) > 1e-6
    return f"{value:,.{max(0, digits + more)}f}"


def _drawn(mark: Mark, across: _Axis, up: _Axis) -> str:
    if isinstance(mark, Line):
        dashed = ' stroke-dasharray="4 3"' if mark.dashed else ""
        path = _path(mark, across, up)
        found = (
            f'<path class="line {mark.look}" d="{path}" opacity="{mark.opacity:.2f}" '
            f'stroke-width="{mark.width:g}" style="stroke-width:{mark.width:.1f}"{dashed}>'
            f"{_told(mark.told)}</path>"
        )
        if mark.ends and len(mark.x):
            first = Dots(mark.x[:1], mark.y[:1], mark.look, mark.opacity, 3)
            found += _drawn(first, across, up)
        return found
    told = [_told(text) for text in mark.told] or [""] * len(mark.x)
    if isinstance(mark, Bars):
        bottom, half = up(0), mark.width / 2
        return "".join(
            f'<rect class="bar {mark.look}" x="{across(a - half):.1f}" y="{up(b):.1f}" '
            f'width="{across(a + half) - across(a - half):.1f}" '
            f'height="{max(bottom - up(b), 0):.1f}">{words}</rect>'
            for a, b, words in zip(mark.x, mark.y, told, strict=True)
        )
    faint = mark.opacity
    shades = [faint] * len(mark.x) if isinstance(faint, float | int) else faint
    if not mark.told:
        return _clouds(mark, shades, across, up)
    return "".join(
        f'<circle class="dot {mark.look}" cx="{across(a):.1f}" cy="{up(b):.1f}" '
        f'r="{mark.radius:g}" opacity="{shade:.2f}">{words}</circle>'
        for a, b, shade, words in zip(mark.x, mark.y, shades, told, strict=True)
    )


def _clouds(mark: Dots, shades: Sequence[float], across: _Axis, up: _Axis) -> str:
    """Dots that tell nothing, those of about one shade as one path: a fifth of the bytes."""
    places: dict[float, list[str]] = {}
    for a, b, shade in zip(mark.x, mark.y, shades, strict=True):
        places.setdefault(round(shade, 1) or 0.05, []).append(f"M{across(a):.0f} {up(b):.0f}h0")
    return "".join(
        f'<path class="cloud {mark.look}" d="{"".join(dots)}" opacity="{shade:g}" '
        f'stroke-width="{2 * mark.radius:g}"/>'
        for shade, dots in sorted(places.items())
    )


def _path(line: Line, across: _Axis, up: _Axis) -> str:
    stride = -(-len(line.x) // MOST_POINTS) or 1
    words, pen = [], "M"
    for a, b in zip(line.x[::stride], line.y[::stride], strict=True):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        words.append(f"{pen}{across(a):.1f} {up(b):.1f}")
        pen = "L"
    return "".join(words)


def _told(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""


def _text(
    x: float, y: float, words: str, look: str = "", *, anchor: str = "start", more: str = ""
) -> str:
    if not words:
        return ""
    named = f' class="{look}"' if look else ""
    return (
        f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
        f"{html.escape(words)}</text>"
    )
