"""Drawings as SVG: a panel of the page, whose colours follow the reader's, or a file of its own in one theme.

Text stays text, to be searched and read aloud. Marks are `<use>` elements of symbols that are defined once.
What a part says to a pointer is in `data-tip` on the page, whose script shows it, and a `<title>` in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape

from spaner.align.report.panel import Box, Panel, Part, Stroke, Words
from spaner.align.report.theme import DASHES, DOTS, PENS, SHAPES, Theme, style

FONTS = '"DejaVu Sans", Verdana, system-ui, sans-serif'
RADII = {dot.radius: f"r{i}-" for i, dot in enumerate(DOTS.values())}
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold."""


def symbols() -> str:
    """Definitions of all shapes of marks in all sizes, once a page or file."""
    made = [
        f'<g id="{size}{i}">{_outline(i, r)}</g>' for r, size in RADII.items() for i in range(len(SHAPES))
    ]
    return f"<defs>{''.join(made)}</defs>"


def _outline(shape: int, radius: float) -> str:
    if not SHAPES[shape]:
        return f'<circle r="{radius:g}"/>'
    path = "L".join(f"{radius * x:g} {radius * y:g}" for x, y in SHAPES[shape])
    return f'<path d="M{path}z"/>'


def inline(panel: Panel) -> str:
    """A panel as an element of the page."""
    drawn = "".join(_part(part, lambda tip: (f' data-tip="{_text(tip)}"', "")) for part in panel.all_parts())
    return (
        f'<svg class="chart" viewBox="0 0 {panel.width:g} {panel.height:g}" role="group" '
        f'aria-label="{_text(panel.described or panel.title)}">{drawn}</svg>'
    )


def sample(width: float, parts: Sequence[Part]) -> str:
    """The line and mark of a legend's entry."""
    drawn = "".join(_part(part, lambda _: ("", "")) for part in parts)
    return f'<svg viewBox="0 0 {width:g} 16" aria-hidden="true">{drawn}</svg>'


def document(width: float, height: float, parts: Sequence[Part], theme: Theme, described: str) -> str:
    """A whole file."""
    drawn = "\n".join(_part(part, lambda tip: ("", f"<title>{_text(tip)}</title>")) for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{_text(described)}">\n'
        f"<style>svg text {{ font-family: {FONTS}; }}\n{style(theme)}</style>\n{symbols()}\n"
        f'<rect width="100%" height="100%" fill="{theme.page}"/>\n{drawn}\n</svg>\n'
    )


def _part(part: Part, told: Callable[[str], tuple[str, str]]) -> str:
    """`told` makes of a tip an attribute and a child."""
    if isinstance(part, Stroke):
        return _stroke(part)
    if isinstance(part, Words):
        return _words(part)
    attribute, child = told(part.tip) if part.tip else ("", "")
    if isinstance(part, Box):
        size = f'width="{part.width:.4g}" height="{part.height:.4g}" rx="2"'
        shown = f'<rect class="cell own {part.fill}" x="{part.x:g}" y="{part.y:g}" {size}{attribute}'
        return f"{shown}>{child}</rect>"
    place = f'href="#{RADII[DOTS[part.kind].radius]}{part.shape % len(SHAPES)}" x="{part.x:g}" y="{part.y:g}"'
    return f'<use {place} class="{part.colour} {part.kind}"{attribute}>{child}</use>'


def _stroke(part: Stroke) -> str:
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in part.points) + "z" * PENS[part.pen].filled
    dash = part.dash % len(DASHES) if part.pen == "line" else 0
    return f'<path class="{part.pen} {part.colour}{f" d{dash}" if dash else ""}" d="{path}"/>'


def _words(part: Words) -> str:
    kind = " ".join(filter(None, [part.hand, part.anchor, part.colour and f"own {part.colour}"]))
    kind = kind.replace(" start", "")
    turn = f' transform="rotate({part.turn:g} {part.x:g} {part.y:g})"' if part.turn else ""
    return f'<text class="{kind}" x="{part.x:g}" y="{part.y:g}"{turn}>{_text(part.words)}</text>'


def _text(words: str) -> str:
    return escape(FORBIDDEN.sub("\ufffd", words))
