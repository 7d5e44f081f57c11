"""Lines in a frame, as SVG text that stands in an HTML page. Colours and dashes are the page's, by a line's number.

Knows of axes and points, nothing of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 44
TICKS = 5
LOG_FROM = 50.0
"""Spread of an axis from which on it is logarithmic, where it may be."""
MARKED_POINTS_MAX = 40
"""Lines of more points than this are drawn without a mark at each."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name, its number in the legend, its points by x, and the span of each point if it has one."""

    name: str
    number: int
    points: Sequence[Point]
    spans: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it says, how its values are written, and where it must reach."""

    label: str
    write: Callable[[float], str]
    low: float | None = None
    high: float | None = None
    may_be_log: bool = False
    padding: float = 0.0
    """Room left free at both ends, as a share of what the values span."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values to places along one side of the frame."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool

    def __call__(self, value: float) -> float:
        low, high, at = (_log(each) if self.is_log else each for each in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))


def line_chart(title: str, lines: Sequence[Line], x: Axis, y: Axis, guide: float | None = None) -> str:
    """Draw lines; `guide` is a value of y that is drawn across."""
    drawn = [line for line in lines if line.points]
    across = _scale(x, [point[0] for line in drawn for point in line.points], LEFT, WIDTH - RIGHT)
    up = _scale(y, [point[1] for line in drawn for point in line.points], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        *_frame(x, y, across, up),
    ]
    if guide is not None:
        parts.append(f'<path class="guide" d="M{LEFT} {up(guide):.1f}H{WIDTH - RIGHT}"/>')
    for line in drawn:
        parts += _line(line, across, up, x, y)
    if not drawn:
        parts.append(f'<text class="none" x="{WIDTH / 2}" y="{HEIGHT / 2}">no request has this figure</text>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """A few round values from low to high."""
    if high <= low:
        return [low]
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with their doubles and fives where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    low = axis.low if axis.low is not None else min(values, default=0.0)
    high = axis.high if axis.high is not None else max(values, default=1.0)
    spare = axis.padding * (high - low)
    low, high = low - spare, high + spare
    positive = [value for value in values if value > 0]
    if axis.may_be_log and positive and max(positive) / min(positive) >= LOG_FROM:
        return _Scale(min(positive), max(positive), start, end, is_log=True)
    if axis.may_be_log:
        low = 0.0
    return _Scale(low, high if high > low else low + max(abs(low), 1.0), start, end, is_log=False)


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def _frame(x: Axis, y: Axis, across: _Scale, up: _Scale) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in _ticks(across):
        at = f"{across(value):.1f}"
        yield f'<path class="grid" d="M{at} {TOP}V{bottom}"/>'
        yield f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{escape(x.write(value))}</text>'
    for value in _ticks(up):
        at = f"{up(value):.1f}"
        yield f'<path class="grid" d="M{LEFT} {at}H{right}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{escape(y.write(value))}</text>'
    yield f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    yield f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}">{escape(x.label)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text class="label" x="14" y="{middle}" transform="rotate(-90 14 {middle})">{escape(y.label)}</text>'


def _ticks(scale: _Scale) -> list[float]:
    return log_ticks(scale.low, scale.high) if scale.is_log else ticks(scale.low, scale.high)


def _line(line: Line, across: _Scale, up: _Scale, x: Axis, y: Axis) -> Iterator[str]:
    places = [(across(at), up(value)) for at, value in line.points]
    path = "L".join(f"{at:.1f} {value:.1f}" for at, value in places)
    yield f'<g class="line n{line.number}">'
    if len(places) > 1:
        yield f'<path d="M{path}"><title>{escape(line.name)}</title></path>'
    for (at, _), (low, high) in zip(places, line.spans, strict=False):
        if high > low:
            yield f'<path class="span" d="M{at:.1f} {up(low):.1f}V{up(high):.1f}"/>'
    if len(places) <= MARKED_POINTS_MAX:
        for (at, value), (left, right) in zip(places, line.points, strict=True):
            said = escape(f"{line.name}: {y.write(right)} at {x.write(left)}")
            yield f'<circle cx="{at:.1f}" cy="{value:.1f}" r="3.5"><title>{said}</title></circle>'
    yield "</g>"
