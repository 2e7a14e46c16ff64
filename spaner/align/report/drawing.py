"""A figure, described once: panels side by side and a legend. From it come the page's plots and every file.

    files = write(loss_drawing("loss", "digits", history), folder)

Files lay all parts out on one sheet; the page lets panels wrap as its width allows and writes
the legend as a list. The same drawing gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spaner.align.report import picture, svg
from spaner.align.report.panel import Mark, Panel, Part, Stroke, Words, shortened, width_of
from spaner.align.report.theme import DARK, HANDS, THEMES, Theme, colour
from spaner.cache.files import writing
from spaner.errors import RunError

KINDS = ("png", "svg")
MARGIN, GAP = 16.0, 28.0
KEY_HEIGHT = 20.0


@dataclass(frozen=True)
class Key:
    """What a colour, dash and shape mean: those of the i-th thing, unless it says otherwise."""

    words: str
    index: int
    shape: int | None = None
    ink: str = ""
    line: bool = True

    @property
    def width(self) -> float:
        """Of the sample, which is 16 high."""
        return 32.0 if self.line else 16.0

    def parts(self) -> list[Part]:
        """The sample."""
        ink = self.ink or colour(self.index)
        line = [Stroke(((1, 8), (31, 8)), "line", ink, self.index)] if self.line else []
        return [*line, Mark(self.width / 2, 8, self.index if self.shape is None else self.shape, ink)]


@dataclass(frozen=True)
class Drawing:
    """Panels and their legend; `name` is that of its files, `title` stands above all panels in them."""

    name: str
    panels: Sequence[Panel]
    keys: Sequence[Key] = ()
    title: str = ""
    columns: int = 2

    @property
    def label(self) -> str:
        """What a link to its files says."""
        return self.title or (self.panels[0].title if len(self.panels) == 1 else "")


@dataclass
class Sheet:
    """All parts of a drawing at their places."""

    described: str
    width: float = 0.0
    height: float = MARGIN
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part, x: float, y: float) -> None:
        self.parts.append(part.moved(x, y))


def keys(names: Sequence[str], *, lines: bool = True) -> list[Key]:
    """A legend that names the first thing, the second …; nothing where there is no choice."""
    return [Key(name, i, line=lines) for i, name in enumerate(names)] if any(names) else []


def sheet(drawing: Drawing) -> Sheet:
    """Title, rows of panels, legend."""
    rows = [drawing.panels[i : i + drawing.columns] for i in range(0, len(drawing.panels), drawing.columns)]
    widths = [max(panel.width for panel in column) for column in _columns(rows)]
    made = Sheet(drawing.title or "; ".join(panel.described or panel.title for panel in drawing.panels))
    inner = sum(widths) + GAP * (len(widths) - 1)
    made.width = inner + 2 * MARGIN
    if drawing.title:
        title = shortened(drawing.title, inner, HANDS["heading"].size * 1.05)
        made.add(Words(0, 15, title, "heading"), MARGIN + 8, made.height)
        made.height += 34
    for row in rows:
        x = MARGIN
        for panel, width in zip(row, widths, strict=False):
            for part in panel.all_parts():
                if not (isinstance(part, Mark) and part.kind == "ghost"):  # those are for a pointer
                    made.add(part, x, made.height)
            x += width + GAP
        made.height += max(panel.height for panel in row) + GAP / 2
    _legend(made, drawing.keys)
    made.height += MARGIN - GAP / 2
    return made


def _columns(rows: Sequence[Sequence[Panel]]) -> list[list[Panel]]:
    return [[row[i] for row in rows if i < len(row)] for i in range(len(rows[0]))]


def _legend(made: Sheet, entries: Sequence[Key]) -> None:
    """Keys from left to right, in as many lines as they need."""
    x, start = MARGIN + 8, MARGIN + 8
    for entry in entries:
        size = HANDS["label"].size
        words = shortened(entry.words, made.width - 2 * start - entry.width, size)
        wide = entry.width + 8 + width_of(words, size)
        if x > start and x + wide > made.width - MARGIN:
            x, made.height = start, made.height + KEY_HEIGHT
        for part in [*entry.parts(), Words(entry.width + 8, 12.5, words, "label")]:
            made.add(part, x, made.height)
        x += wide + 18
    made.height += (KEY_HEIGHT + GAP / 2) * bool(entries)


def write(
    drawing: Drawing, folder: Path, *, themes: Sequence[Theme] = THEMES, kinds: Sequence[str] = KINDS
) -> list[Path]:
    """`name`.png and .svg, then `name`-dark.png and .svg. Kinds may also name "pdf", which takes a second."""
    with writing(folder, RunError, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        return _write(drawing, folder, themes, kinds)


def _write(drawing: Drawing, folder: Path, themes: Sequence[Theme], kinds: Sequence[str]) -> list[Path]:
    made, files = sheet(drawing), []
    for theme in themes:
        stem = drawing.name + ("-dark" if theme is DARK else "")
        mine = [folder / f"{stem}.{kind}" for kind in kinds]
        painted = [file for file in mine if file.suffix != ".svg"]
        picture.write(made.width, made.height, made.parts, theme, painted)
        if "svg" in kinds:
            text = svg.document(made.width, made.height, made.parts, theme, made.described)
            (folder / f"{stem}.svg").write_text(text, encoding="utf-8")
        files += mine
    return files
