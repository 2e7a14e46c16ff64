"""The page: tables and charts as one HTML file that asks the network for nothing.

Style, script and drawings are inside; a content policy forbids everything else. Colours are `theme`'s, as
variables that follow the reader's light or dark setting. Sections are made by `sections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from spaner.align.report import svg
from spaner.align.report.drawing import KINDS, Drawing
from spaner.align.report.table import APART, OURS, Column, ReportTable, Row, bounds, text
from spaner.align.report.theme import DARK, LIGHT, Theme, style

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its contents; `body` is HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, lede: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document. `title` is text; `lede` and `footer` are HTML."""
    links = "".join(f'<li><a href="#{s.anchor}">{escape(s.title)}</a></li>' for s in sections)
    parts = "".join(
        f'<section id="{s.anchor}" aria-labelledby="{s.anchor}-title">'
        f'<h2 id="{s.anchor}-title">{escape(s.title)}</h2>{s.body}</section>\n'
        for s in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{_variables(LIGHT)}
@media (prefers-color-scheme: dark) {{ {_variables(DARK)} }}
{style()}
{_resource("page.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<svg width="0" height="0" aria-hidden="true" class="defs">{svg.symbols()}</svg>
<header><h1>{escape(title)}</h1>{lede}</header>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main id="content" tabindex="-1">
{parts}</main>
<footer>{footer}</footer>
<div id="tip" role="status" hidden></div>
<script>
{_resource("page.js")}</script>
</body>
</html>
"""


def table(content: ReportTable) -> str:
    """A table that scrolls sideways on a narrow screen, by touch and by keyboard.

    Published rows that no run may be compared with are folded away behind one line.
    """
    folded = [group for group in content.groups if _nothing_to_compare(*group)]
    shown = [group for group in content.groups if group not in folded]
    note = f'<p class="note">{escape(content.note)}</p>' if content.note else ""
    return (
        (_grid(content, shown, content.title) if shown else "")
        + note
        + "".join(
            f'<details class="fold"><summary>{escape(heading)}: {len(rows)} rows, not comparable</summary>'
            f"{_grid(content, [(heading, rows)], f'{content.title}, {heading}')}</details>"
            for heading, rows in folded
        )
    )


def _nothing_to_compare(heading: str, rows: Sequence[Row]) -> bool:
    return bool(heading) and all(row.mark == APART for row in rows)


def _grid(content: ReportTable, groups: Sequence[tuple[str, list[Row]]], title: str) -> str:
    head = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in content.columns)
    marked = any(row.mark != OURS for row in content.rows)  # where all are ours, nobody asks whose they are
    body = "".join(_group(heading, rows, content.columns, marked=marked) for heading, rows in groups)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}, table">'
        f"<table><caption><span>{escape(title)}</span></caption>"
        f'<thead><tr><th scope="col">{escape(content.first)}</th>{head}</tr></thead>{body}</table></div>'
    )


def _group(heading: str, rows: Sequence[Row], columns: Sequence[Column], *, marked: bool) -> str:
    shared = {row.because for row in rows}
    because = shared.pop() if len(shared) == 1 and len(rows) > 1 else ""
    lines = [_row(row, columns, said=bool(because), marked=marked) for row in rows]
    if heading:
        why = f'<span class="because">Not comparable, because of {escape(because)}.</span>' if because else ""
        span = f'<th colspan="{len(columns) + 1}" scope="rowgroup"><span>{escape(heading)}{why}</span></th>'
        lines.insert(0, f'<tr class="group">{span}</tr>')
    return f"<tbody>{''.join(lines)}</tbody>"


def _row(row: Row, columns: Sequence[Column], *, said: bool, marked: bool) -> str:
    name = escape(row.name)
    if row.anchor:
        name = f'<a href="#{row.anchor}">{name}</a>'
    badge = _badge(row.mark) if marked else ""
    why = ""
    if row.because and not said:
        why = f'<small class="note because">because of {escape(row.because)}</small>'
    cells = []
    for column in columns:
        number = row.numbers.get(column.key)
        sure = bounds(number, column.unit)
        kind = "none" if number is None else "words" if isinstance(number, str) else ""
        empty = f' class="{kind}"' if kind else ""
        small = f"<small>{sure}</small>" if sure else ""
        cells.append(f"<td{empty}>{escape(text(number, column.unit))}{small}</td>")
    origin = "; ".join(f"{key} {value}" for key, value in row.origin.items() if value != "")
    kind = "" if row.mark == OURS else ' class="published"'
    return f'<tr{kind} title="{escape(origin)}"><th scope="row">{name}{badge}{why}</th>{"".join(cells)}</tr>'


def _badge(mark: str) -> str:
    kind = "not" if mark == APART else mark
    return f' <span class="badge {kind}">{mark}</span>'


def figure(drawings: Sequence[Drawing], caption: str, beside: str = "") -> str:
    """Drawings side by side with what they show, their legend, and links to their files in the folder
    `beside`, if they are there. `caption` is text."""
    panels = "".join(svg.inline(panel) for drawing in drawings for panel in drawing.panels)
    entries = dict.fromkeys(key for drawing in drawings for key in drawing.keys)
    keys = "".join(f"<li>{svg.sample(key.width, key.parts())}{escape(key.words)}</li>" for key in entries)
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    links = [_links(drawing, beside) for drawing in drawings] if beside else []
    linked = f'<span class="files">{" · ".join(links)}</span>' if links else ""
    return (
        f'<figure><div class="panels">{panels}</div>{legend}'
        f"<figcaption>{escape(caption)} {linked}</figcaption></figure>"
    )


def _links(drawing: Drawing, beside: str) -> str:
    place = escape(f"{beside}/{drawing.name}")
    kinds = " ".join(f'<a href="{place}.{kind}">{kind.upper()}</a>' for kind in KINDS)
    return f"{escape(drawing.label)} {kinds}"


def _resource(name: str) -> str:
    return (files("spaner.align.report") / name).read_text(encoding="utf-8")


def _variables(theme: Theme) -> str:
    return ":root { " + " ".join(f"--{name}: {value};" for name, value in theme.named.items()) + " }"
