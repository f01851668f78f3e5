"""SVG charts with horizontal bars, side by side, readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_BAR, _GAP, _NAMES, _WIDTH, _VALUES, _HEAD = 18, 8, 130, 170, 62, 58
_SIZE = "font-size='12'"
_OURS, _OTHER, _INK, _PAPER = "#1f6feb", "#9aa4b2", "#24292f", "#ffffff"


@dataclass(frozen=True)
class Bar:
    """A bar. `label` is the shown text of its value."""

    name: str
    value: float
    label: str
    stands_out: bool = False


@dataclass(frozen=True)
class Chart:
    """Bars that start at zero and have the same scale."""

    title: str
    bars: Sequence[Bar]


def as_svg(title: str, charts: Sequence[Chart]) -> str:
    """Return the charts in a row. All charts have the same bars, whose names are shown once."""
    height = _HEAD + max(len(chart.bars) for chart in charts) * (_BAR + _GAP) + _GAP
    width = _NAMES + len(charts) * (_WIDTH + _VALUES)
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}'",
        f"viewBox='0 0 {width} {height}' font-family='sans-serif' fill='{_INK}' role='img'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{width}' height='{height}' fill='{_PAPER}'/>",
        f"<text x='8' y='20' font-size='14' font-weight='bold'>{escape(title)}</text>",
    ]
    for row, bar in enumerate(charts[0].bars):
        lines.append(_text(_NAMES - 8, row, bar.name, bar, anchor="end"))
    for column, chart in enumerate(charts):
        left = _NAMES + column * (_WIDTH + _VALUES)
        longest = max(bar.value for bar in chart.bars) or 1
        lines.append(f"<text x='{left}' y='44' {_SIZE}>{escape(chart.title)}</text>")
        for row, bar in enumerate(chart.bars):
            length = max(1.0, bar.value / longest * _WIDTH)
            color = _OURS if bar.stands_out else _OTHER
            lines.append(f"<rect x='{left}' y='{_top(row)}' width='{length:.1f}' height='{_BAR}' fill='{color}'/>")
            lines.append(_text(left + length + 5, row, bar.label, bar))
    return "\n".join([*lines, "</svg>\n"])


def _top(row: int) -> int:
    return _HEAD + row * (_BAR + _GAP)


def _text(x: float, row: int, words: str, bar: Bar, anchor: str = "start") -> str:
    weight = " font-weight='bold'" if bar.stands_out else ""
    return f"<text x='{x:.1f}' y='{_top(row) + 13}' {_SIZE} text-anchor='{anchor}'{weight}>{escape(words)}</text>"
