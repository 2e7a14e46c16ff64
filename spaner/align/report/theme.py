"""How every figure of spaner looks: fonts, a palette safe for colour-blind readers, light and dark.

Colours are Okabe and Ito's, lightened for dark pages. The i-th thing of a figure has the i-th colour,
and no figure tells things apart by colour alone. matplotlib is imported when the first figure is drawn;
nothing needs a display, and the user's own matplotlib settings are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours of one page background."""

    name: str
    page: str
    ink: str
    faint: str
    grid: str
    colours: tuple[str, ...]
    ramp: tuple[str, ...] = field(default=())
    """From nothing to much, for heat maps; starts at the page."""

    def colour(self, index: int) -> str:
        """The colour of the i-th thing, starting over after the last."""
        return self.colours[index % len(self.colours)]


LIGHT = Theme(
    "light",
    page="#ffffff",
    ink="#1f2328",
    faint="#656d76",
    grid="#e3e6ea",
    colours=(
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#b8579a",
        "#b27d00",
        "#3f9fd8",
        "#6b6ecf",
        "#8c564b",
        "#5f7d23",
        "#7d8590",
    ),
    ramp=("#ffffff", "#fbd9b5", "#f0934e", "#c5480c", "#6e2203"),
)
DARK = Theme(
    "dark",
    page="#0d1117",
    ink="#e6edf3",
    faint="#9198a1",
    grid="#262c36",
    colours=(
        "#58b4ef",
        "#ff9147",
        "#2ec4a0",
        "#e58ec5",
        "#f0c93a",
        "#a5d8ff",
        "#a9abff",
        "#d3a297",
        "#b4d66b",
        "#9aa4af",
    ),
    ramp=("#0d1117", "#4a2410", "#a34a12", "#f08a3c", "#ffe3bf"),
)
THEMES = (LIGHT, DARK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


def draw(path: str | Path, paint: Callable[[Any, Theme], None], *, size: tuple[float, float]) -> list[Path]:
    """Paint a figure once a theme and write it as PNG and SVG.

    Args:
        path: where to; a suffix is replaced. `x.png`, `x.svg`, `x-dark.png` and `x-dark.svg` are written.
        paint: draws into an empty matplotlib figure.
        size: inches.

    Returns:
        The files, light PNG first. The same input gives the same bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no window, no global figure list

    base = Path(path).with_suffix("")
    base.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for theme in THEMES:
        with mpl.rc_context(_settings(theme)):  # pyright: ignore[reportArgumentType]
            figure = Figure(figsize=size, layout="constrained")
            paint(figure, theme)
            for kind in ("png", "svg"):
                file = base.with_name(base.name + ("-dark" if theme is DARK else "") + f".{kind}")
                figure.savefig(file, metadata={"Date": None} if kind == "svg" else {"Software": None})
                files.append(file)
    return files


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "figure.facecolor": theme.page,
        "savefig.facecolor": theme.page,
        "savefig.dpi": 200,
        "axes.facecolor": theme.page,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 8,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "text.color": theme.ink,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 2,
        "lines.markersize": 6,
        "lines.solid_capstyle": "round",
        "text.parse_math": False,  # a class may be called "$1" or "C$_2"
        "svg.fonttype": "none",
        "svg.hashsalt": "spaner",
    }


def plain(axes: Any, *, grid: str = "y") -> None:
    """Only the grid lines that help to read a value: "x", "y", "both" or "none"."""
    axes.grid(visible=False)
    if grid != "none":
        axes.grid(visible=True, axis=grid)
    axes.tick_params(length=0 if grid == "none" else 3)


def plate(theme: Theme) -> dict[str, Any]:
    """A patch of page under writing on lines or dots; an outline would turn the text into shapes."""
    return {"facecolor": theme.page, "alpha": 0.7, "edgecolor": "none", "boxstyle": "round,pad=0.12"}
