"""Draws charts as inline SVG; colours and type come from the page's style sheet, so that charts follow light and dark."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from promptmill.jobs.report.facts import Histogram, Scores

WIDTH = 340
EDGE = 12  # left and right of a scale, so that its outermost words stay inside


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two, at most `most`: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)][:most]


def _svg(height: float, label: str, *parts: Markup) -> Markup:
    made = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, round(height), label)
    return made + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, words)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _bar(x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> Markup:
    size = (max(width, 0.5), max(height, 0.0), radius)
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="{}" class="{}"/>').format(x, y, *size, kind)


def _dot(x: float, y: float, said: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="kept"><title>{}</title></circle>').format(x, y, said)


def _scale(low: float, high: float, first: float, last: float) -> tuple[float, float]:
    """Return slope and offset of the line that takes `low` to `first` and `high` to `last`."""
    slope = (last - first) / ((high - low) or 1.0)
    return slope, first - slope * low


def _axis(low: float, high: float, slope: float, offset: float, top: float, bottom: float) -> list[Markup]:
    """Draw lines and words of a horizontal scale."""
    made = []
    for tick in ticks(low, high):
        x = tick * slope + offset
        made += [_line(x, top, x, bottom, "grid"), _text(x, bottom + 16, f"{tick:g}", "middle")]
    return made


def histogram(shown: Histogram, score: str = "CLIP score") -> Markup:
    """Draw the scores of all candidates, the kept among them in the accent colour."""
    tall, bottom = 150.0, 158.0
    slope, offset = _scale(shown.low, shown.high, EDGE, WIDTH - EDGE)
    width = (WIDTH - 2 * EDGE) / len(shown.all)
    most = max(max(shown.all), 1)
    bars = []
    for place, (all_, kept) in enumerate(zip(shown.all, shown.kept, strict=True)):
        for number, kind in ((all_, "all"), (kept, "kept")):
            if number:
                height = max(tall * number / most, 1.0)
                bars.append(_bar(EDGE + place * width + 0.5, bottom - height, width - 1, height, kind, 1))
    said = f"{score}s from {shown.low:.1f} to {shown.high:.1f}: {sum(shown.all):,} candidates, {sum(shown.kept):,} of them kept"
    base = _line(EDGE, bottom, WIDTH - EDGE, bottom, "base")
    return _svg(bottom + 24, said, *_axis(shown.low, shown.high, slope, offset, 8, bottom), *bars, base)


def strips(groups: Sequence[Scores], what: str, score: str = "CLIP score") -> Markup:
    """Draw a strip for each group of requests: the middle half and 80% of its scores, their median, the kept ones' mean."""
    row, top = 42.0, 4.0
    bottom = top + row * len(groups)
    low = min(group.all.quantiles[0] for group in groups)
    high = max(max(group.all.quantiles[4], group.kept.mean if group.kept else low) for group in groups)
    slope, offset = _scale(low, high, EDGE, WIDTH - EDGE)
    parts = _axis(low, high, slope, offset, top, bottom)
    for place, group in enumerate(groups):
        y = top + place * row + 28
        tenth, quarter, middle, three, ninety = (quantile * slope + offset for quantile in group.all.quantiles)
        parts += [
            _text(0, y - 13, group.name, kind="name"),
            _text(WIDTH, y - 13, f"{group.requests:,}", "end"),
            _line(tenth, y, ninety, y, "whisker"),
            _bar(quarter, y - 6, three - quarter, 12, "all", 3),
            _line(middle, y - 6, middle, y + 6, "median"),
        ]
        if group.kept:
            parts.append(_dot(group.kept.mean * slope + offset, y, f"kept: {group.kept.mean:.2f} on average"))
    said = "; ".join(
        f"{group.name}: candidates {group.all.mean:.1f}, kept {group.kept.mean:.1f}"
        if group.kept
        else f"{group.name}: candidates {group.all.mean:.1f}"
        for group in groups
    )
    return _svg(bottom + 22, f"Mean {score}s by {what}: {said}", *parts)


def curve(points: Sequence[float], score: str = "CLIP score") -> Markup:
    """Draw the expected best score of 1, 2, … candidates."""
    top, bottom, left = 22.0, 168.0, 44.0
    low, high = points[0], max(points[-1], points[0] + 1e-6)
    x_slope, x_offset = _scale(1, max(len(points), 2), left + 10, WIDTH - 26)
    y_slope, y_offset = _scale(low, high, bottom - 14, top)
    places = [((n + 1) * x_slope + x_offset, point * y_slope + y_offset) for n, point in enumerate(points)]
    parts = []
    for tick in ticks(low, high, 4):
        y = tick * y_slope + y_offset
        parts += [_line(left, y, WIDTH, y, "grid"), _text(left - 6, y + 4, f"{tick:g}", "end")]
    every = -(-len(points) // 8)
    numbers = [n for n in range(1, len(points) + 1) if n == 1 or n % every == 0]
    parts += [_text(n * x_slope + x_offset, bottom + 16, str(n), "middle") for n in numbers]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts += [_line(left, bottom, WIDTH, bottom, "base"), Markup('<polyline points="{}" class="curve"/>').format(path)]
    parts += [_dot(x, y, f"best of {n + 1}: {points[n]:.2f}") for n, (x, y) in enumerate(places)]
    if len(points) > 1:
        (first_x, first_y), (last_x, last_y) = places[0], places[-1]
        parts += [_text(first_x + 9, first_y + 4, f"{points[0]:.2f}", kind="value")]
        parts += [_text(last_x - 8, last_y - 8, f"{points[-1]:.2f}", "end", "value")]
    said = f"Expected best {score}: {', '.join(f'of {n + 1} {point:.2f}' for n, point in enumerate(points))}"
    return _svg(bottom + 22, said, *parts)


def bars(rows: Sequence[tuple[str, float, str]], what: str) -> Markup:
    """Draw horizontal bars from zero; a row has a name, a number, and the number in words."""
    row, most = 38.0, max((number for _, number, _ in rows), default=0.0) or 1.0
    parts: list[Markup] = []
    for place, (name, number, said) in enumerate(rows):
        y = place * row
        parts += [_text(0, y + 13, name, kind="name"), _text(WIDTH, y + 13, said, "end")]
        parts += [_bar(0, y + 19, WIDTH, 8, "track", 4), _bar(0, y + 19, WIDTH * number / most, 8, "kept", 4)]
    return _svg(row * len(rows), f"{what}: {'; '.join(f'{name} {said}' for name, _, said in rows)}", *parts)
