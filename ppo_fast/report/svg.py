"""Charts as inline SVG that keep their text readable at any width, without a script.

Text, ticks and marks are placed in per cent of a picture whose width is the page's; only curves are stretched, in a
coordinate system of their own, with strokes that are not. Colours are classes of the page's style sheet.

P points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppo_fast.report.page import Html, tag

Floats = NDArray[np.float64]
Place = Callable[[float], float]  # from a value to a share of the picture's width or height

COLORS = 6
_UNITS = 1000  # of the curves' coordinates, along either side
_MARKS = 60  # more points than that would only be a thick line


@dataclass(frozen=True)
class Curve:
    """A line, with the band around it if ``low`` and ``high`` are given; all values are finite."""

    x: Floats  # (P,)
    y: Floats  # (P,)
    label: str = ""
    color: int = 0
    low: Floats | None = None  # (P,)
    high: Floats | None = None  # (P,)
    marked: bool = False  # a dot at each point that tells its value
    faint: bool = False

    @property
    def classes(self) -> str:
        """Classes of its colour; those beyond the last begin again, with other dashes."""
        return f"c{self.color % COLORS}" + (f" d{1 + self.color // COLORS % 2}" if self.color >= COLORS else "")


def thin(y: ArrayLike, buckets: int = 300) -> list[int]:
    """Return which points to draw, in order: both ends, and the lowest and the highest of each bucket of neighbours."""
    values = np.asarray(y, np.float64)
    if values.size <= 2 * buckets:
        return list(range(values.size))
    kept = {0, values.size - 1}
    for start, end in pairwise(np.linspace(0, values.size, buckets + 1).astype(int).tolist()):
        kept |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return sorted(kept)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers between ``low`` and ``high``, some ``about`` of them: multiples of 1, 2 or 5 times 10^k."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.6 * rough)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def labels(at: Sequence[float]) -> list[str]:
    """Return ticks in words, all with the same unit (k: thousand, M: million) and as many decimals as they need."""
    largest = max((abs(value) for value in at), default=0.0)
    step = min((b - a for a, b in pairwise(at)), default=largest)
    if 0 < largest < 1e-3:
        digits = math.floor(math.log10(largest) + 1e-9) - math.floor(math.log10(step) + 1e-9)
        return [f"{value:.{digits}e}".replace("e-0", "e-") if value else "0" for value in at]
    scale, unit = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1, "")
    decimals = max(0, -math.floor(math.log10(step / scale) + 1e-9)) if step else 0
    return [f"{value / scale:,.{decimals}f}{unit}" if value else "0" for value in at]


def number(value: float) -> str:
    """Return a number with about four significant digits."""
    if abs(value) >= 1:
        return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2}f}"
    return f"{value:.3g}".replace("e-0", "e-")


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_label: str = "",
    x_scale: float = 1.0,
    small: bool = False,
    window: tuple[float, float] | None = None,
) -> Html:
    """Draw curves, at least one with a point, over an axis that starts at 0.

    Args:
        title: what is drawn.
        curves: those that come later lie above.
        x_label: of the horizontal axis; none where the page says it.
        x_scale: what ``x`` is divided by, to be in the units of ``x_label``.
        small: of less height, with the first curve's last value beside the title.
        window: what lies outside is cut off.
    """
    curves = [curve for curve in curves if curve.x.size]
    x_end = max(float(curve.x.max()) for curve in curves) / x_scale or 1.0
    low, high = _limits(curves, window)
    right: Place = lambda x: x / x_scale / x_end  # noqa: E731
    down: Place = lambda y: (high - y) / (high - low)  # noqa: E731
    about = 3 if small else 5
    across, up = ticks(0, x_end, about), ticks(low, high, about)
    parts = [tag("title", title)]
    for value, text in zip(up, labels(up), strict=True):
        y = _percent(down(value))
        parts.append(tag("line", x1="0", x2="100%", y1=y, y2=y, class_=None if value else "zero"))
        parts.append(tag("text", text, x="-8", y=y, dy=".32em", class_="y"))
    for value, text in zip(across, labels(across), strict=True):
        parts.append(tag("text", text, x=_percent(value / x_end), y="100%", dy="1.5em", class_="x"))
    parts.append(tag("text", x_label, x="100%", y="100%", dy="3em", class_="y"))
    drawn = [shape for curve in curves for shape in _shapes(curve, right, down, 150 if small else 300)]
    box = f"0 0 {_UNITS} {_UNITS}"
    parts.append(tag("svg", *drawn, viewBox=box, preserveAspectRatio="none", width="100%", height="100%"))
    for curve in (curve for curve in curves if curve.marked and curve.x.size <= _MARKS):
        for x, y in zip(curve.x.tolist(), curve.y.tolist(), strict=True):
            hint = tag("title", f"{curve.label}: {number(y)} at {number(x / x_scale)} {x_label}")
            at = {"cx": _percent(right(x)), "cy": _percent(down(y))}
            parts.append(tag("circle", hint, **at, r="3.5", class_=f"mark {curve.classes}"))
    words = f"{title}: {'; '.join(_words(curve) for curve in curves if not curve.faint)}"
    picture = tag("svg", *parts, role="img", aria_label=words, width="100%", height=96 if small else 260)
    last = [tag("span", number(float(curves[0].y[-1])), class_="last")] if small else []
    plot = tag("div", picture, class_="plot" if x_label else "plot bare")
    return tag("figure", tag("figcaption", title, *last), plot)


def legend(curves: Sequence[Curve], bands: str = "") -> Html:
    """Return what the colours mean; ``bands`` is what the bands are."""
    rows = [tag("li", tag("i", class_=f"key {curve.classes}"), curve.label) for curve in curves]
    if bands:
        shaded = next(curve for curve in curves if curve.low is not None)
        rows.append(tag("li", tag("i", class_=f"key shade {shaded.classes}"), bands))
    return tag("ul", *rows, class_="legend")


def bar(title: str, shares: Sequence[tuple[str, float]]) -> Html:
    """Draw the parts of a whole side by side; ``shares`` are (name, share), and add up to 1."""
    parts, start = [tag("title", title)], 0.0
    for i, (name, share) in enumerate(shares):
        at = {"x": _percent(start), "width": _percent(share), "height": "100%", "class": f"c{i % COLORS}"}
        parts.append(tag("rect", tag("title", f"{name} {share:.1%}"), **at))
        start += share
    words = f"{title}: {', '.join(f'{name} {share:.1%}' for name, share in shares)}"
    return tag("svg", *parts, role="img", aria_label=words, class_="bar", width="100%", height="28")


def _limits(curves: Sequence[Curve], window: tuple[float, float] | None) -> tuple[float, float]:
    arrays = [array for curve in curves for array in (curve.y, curve.low, curve.high) if array is not None]
    low, high = min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
    if window is not None:
        low, high = (min(max(value, window[0]), window[1]) for value in (low, high))
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant, or all of it cut off
        low, high = low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _shapes(curve: Curve, right: Place, down: Place, buckets: int) -> list[Html]:
    """Return the band, then the line, each thinned without losing an extreme."""

    def points(y: Floats) -> list[str]:
        return [f"{_unit(right(curve.x[i]))},{_unit(down(y[i]))}" for i in thin(y, buckets)]

    line, shapes = points(curve.y), []
    if curve.low is not None and curve.high is not None:
        around = " ".join(points(curve.high) + points(curve.low)[::-1])
        shapes.append(tag("polygon", points=around, class_=f"band {curve.classes}"))
    kind = "line faint" if curve.faint else "line strong" if curve.marked else "line"
    line += line if len(line) == 1 else []  # a line of one point is a dot
    return [*shapes, tag("polyline", points=" ".join(line), class_=f"{kind} {curve.classes}")]


def _words(curve: Curve) -> str:
    """Return what a reader who does not see the chart should know."""
    first, last, low, high = (number(float(y)) for y in (curve.y[0], curve.y[-1], curve.y.min(), curve.y.max()))
    return f"{curve.label or 'values'} from {first} to {last}, lowest {low}, highest {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _unit(share: float) -> str:
    return f"{_UNITS * min(max(share, -9.0), 9.0):.1f}".removesuffix(".0")  # farther outside, it is cut off anyway
