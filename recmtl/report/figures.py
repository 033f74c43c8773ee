"""One small plot as SVG that goes into the page: its colours are those of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

SERIES = 8
"""Hues; further series repeat them with dashes."""
INK, MUTED, GRID, SURFACE = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
"""Stand-ins for the page's colours, which matplotlib takes for colours."""
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))
MARKERS, GLYPHS = "os^Dv<>p", "●■▲◆▼◀▶⬟"
"""Of matplotlib, and the same for text."""

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "recmtl",  # the same runs give the same file
    "text.parse_math": False,  # a name may hold a dollar sign
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.5,
}


def color(series: int) -> str:
    """Stand-in for the colour of a series."""
    return f"#0b0c{series % SERIES:02d}"


def dashes(series: int) -> object:
    """Line style of a series: what tells it from others of its colour."""
    return DASHES[series // SERIES % len(DASHES)]


def marker(series: int) -> str:
    """Marker of a series; with the colour it is unique among the first 64."""
    return MARKERS[(series + series // SERIES) % SERIES]


def legend(labels: list[str]) -> str:
    """The labels of series 0, 1, … beside their markers, as HTML."""
    items = [
        f'<li><i style="color:var(--series-{i % SERIES})">{GLYPHS[MARKERS.index(marker(i))]}</i>{escape(label)}</li>'
        for i, label in enumerate(labels)
    ]
    return f'<ul class="legend series">{"".join(items)}</ul>'


def svg(draw: Callable[[Axes], None], description: str, size: tuple[float, float] = (4.0, 3.0)) -> str:
    """Draw on fresh axes and return an SVG element as wide as its place in the page.

    Args:
        draw: fills the axes.
        description: what is to be seen, for those who cannot.
        size: inches; at 96 dots each, text has its nominal size.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=72)
        FigureCanvasSVG(figure)
        figure.subplots_adjust(left=0.19, right=0.97, bottom=0.15, top=0.97)  # alike, so that plots line up
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue(), description)


def plain_ticks(axes: Axes) -> None:
    """Numbers as one writes them, also on a logarithmic axis, which has enough of them."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            if high < 100 * low:
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _for_page(text: str, description: str) -> str:
    """The bare element of a whole SVG file, with the page's colours and font."""
    text = text[text.index("<svg") :].strip()
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(description)}">'
    text = re.sub(r"<svg [^>]*>", lambda _: head, text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # they repeat in every plot, and nothing refers to them
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for name, stand_in in {"ink": INK, "muted": MUTED, "grid": GRID, "surface": SURFACE}.items():
        text = text.replace(stand_in, f"var(--{name})")
    text = re.sub(r"#0b0c0(\d)", lambda match: f"var(--series-{match[1]})", text)
    return re.sub(r"\s*\n\s*", "\n", text)
