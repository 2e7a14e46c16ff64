"""Figures are looked at by people; here: what is drawn where, the same on the page and in files."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from spaner.align.report import charts, maps, svg
from spaner.align.report.drawing import Drawing, Key, keys, sheet, write
from spaner.align.report.measured import Plane
from spaner.align.report.page import figure
from spaner.align.report.panel import Box, Mark, Panel, Stroke, Words, shortened, width_of
from spaner.align.report.theme import DARK, LIGHT, STRENGTHS, THEMES, contrast, style
from spaner.errors import DatasetError

HOSTILE = ["$1", "C$_2$", r"$\frac{$", "سيارة حمراء", "<b>&\"'", "bell \x07", "two\nlines", "x" * 90, ""]


def cell(length: int, seed: int, text: float, *, status: str = "ok", **varied):
    settings = {
        "prompt_length": length,
        "seed": seed,
        "aligner": "attention",
        "templates": "mined",
        "out_dim": None,
    }
    scores = {"text": {"accuracy": text}, "semantic": {"accuracy": text - 0.02}}
    frozen = {"text": {"accuracy": 0.667}, "semantic": {"accuracy": 0.641}}
    return {
        "varied": {"prompt_length": length, "seed": seed, **varied},
        "config": {**settings, **varied},
        "status": status,
        "metrics": {**scores, "zero_shot": frozen},
    }


CELLS = [cell(p, s, 0.69 + 0.01 * p + 0.002 * s) for p in (1, 2, 4) for s in (1, 2, 3)]


def parts(drawing: Drawing, kind: type) -> list[Any]:
    return [part for panel in drawing.panels for part in panel.all_parts() if isinstance(part, kind)]


def words(drawing: Drawing) -> list[str]:
    """All writing of a figure, its legend included."""
    return [part.words for part in sheet(drawing).parts if isinstance(part, Words)]


def tips(drawing: Drawing) -> list[str]:
    return [part.tip for part in parts(drawing, Mark)]


# --- one drawing, all its renderings ---


def test_files_and_the_same_bytes_every_time(tmp_path):
    before = dict(mpl.rcParams)
    drawing = charts.length_drawing("figure", CELLS)
    files = write(drawing, tmp_path / "deep")
    assert [file.name for file in files] == ["figure.png", "figure.svg", "figure-dark.png", "figure-dark.svg"]
    first = [file.read_bytes() for file in files]
    assert first[0].startswith(b"\x89PNG")
    assert first[0] != first[2]
    assert [file.read_bytes() for file in write(drawing, tmp_path / "deep")] == first
    assert dict(mpl.rcParams) == before
    (paper,) = write(drawing, tmp_path, themes=[LIGHT], kinds=["pdf"])
    assert paper.read_bytes().startswith(b"%PDF")


def test_the_readers_own_matplotlib_settings_do_not_count(tmp_path):
    drawing = charts.length_drawing("figure", CELLS)
    plain = write(drawing, tmp_path / "a", kinds=["png"])[0].read_bytes()
    with mpl.rc_context({"font.size": 31, "text.color": "red", "savefig.transparent": True}):
        assert write(drawing, tmp_path / "b", kinds=["png"])[0].read_bytes() == plain


def test_page_and_file_hold_the_same_elements(tmp_path):
    """What is in the panels of the page is, at another place, in the file."""
    drawing = maps.confusion_drawing("f", {"text": np.array([[9, 2], [1, 8]])}, ["toad", "newt"])
    inline = re.findall(r'class="([^"]+)"', figure([drawing], ""))
    document = re.findall(r'class="([^"]+)"', write(drawing, tmp_path)[1].read_text())
    assert [kind for kind in inline if kind not in ("panels", "chart")] == document


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_part_lands_at_its_pixel(theme, tmp_path):
    """Marks, boxes and strokes in the PNG have the colour of their thing where the drawing says."""
    panel = Panel("", width=200, height=100)
    panel.parts += [
        Box(10, 10, 30, 20, "h5"),
        Mark(100, 50, 1, "c0"),
        Stroke(((10, 90), (190, 90)), "line", "c1"),
        Mark(150, 20, 0, "c2", kind="ghost"),
    ]
    file = write(Drawing("f", [panel]), tmp_path, themes=[theme], kinds=["png"])[0]
    with Image.open(file) as image:
        pixels = image.convert("RGB")

    def at(x: float, y: float) -> str:
        return "#" + bytes(pixels.getpixel((round(2 * (x + 16)), round(2 * (y + 16))))).hex()  # pyright: ignore

    assert at(25, 20) == theme.named["h5"]
    assert at(100, 50) == theme.named["c0"]
    assert at(60, 90) == theme.named["c1"]
    assert at(150, 20) == theme.page, "what is for a pointer is not printed"


def test_files_follow_one_theme_and_the_page_the_readers(tmp_path):
    drawing = charts.length_drawing("f", CELLS)
    text = [file.read_text() for file in write(drawing, tmp_path, kinds=["svg"])]
    assert LIGHT.ink in text[0]
    assert DARK.ink in text[1]
    assert not any("var(" in each for each in text)
    assert "var(--ink)" in style()


def test_writing_can_be_read_on_every_ground():
    for theme in THEMES:
        assert contrast(theme.ink, theme.page) > 7
        assert contrast(theme.faint, theme.page) > 4.5
        for step in range(1, STRENGTHS + 1):
            assert contrast(theme.named[f"on{step}"], theme.named[f"h{step}"]) > 4, (theme.name, step)
        for i in range(10):
            assert contrast(theme.named[f"c{i}"], theme.page) > 2.7, (theme.name, i)


def test_hostile_names_are_drawn_and_stay_in_the_drawing(tmp_path):
    """matplotlib reads what stands between two dollar signs as a formula, and refuses a wrong one; XML has no
    place for a bell."""
    count = len(HOSTILE)
    matrix = np.arange(count * count).reshape(count, count)
    drawing = maps.confusion_drawing("f", {"text": matrix}, HOSTILE, title="$x_$")
    files = write(drawing, tmp_path)
    text = " ".join(ET.parse(files[1]).getroot().itertext())
    for name in ["$1", "C$_2$", r"$\frac{$", "سيارة حمراء", "<b>&\"'", "two lines", "xxx…", "$x_$"]:
        assert name in text, name
    page = figure([drawing], "")
    assert "<b>" not in page
    assert "\x07" not in page
    shown = sheet(drawing)
    for part in shown.parts:
        if isinstance(part, Words) and not part.turn:
            wide = width_of(part.words, 11.5)
            start = part.x - {"start": 0, "mid": wide / 2, "end": wide}[part.anchor]
            assert start >= 0, part
            assert start + wide <= shown.width, part


def test_a_legend_wraps_and_long_names_do_not_widen_the_sheet():
    panel = Panel("x" * 200)
    names = [*(f"method {i}" for i in range(14)), "y" * 200]
    made = sheet(Drawing("f", [panel], keys(names), title="z" * 200))
    assert made.width == panel.width + 32
    rows = {part.y for part in made.parts if isinstance(part, Words) and part.words.startswith("method")}
    assert len(rows) > 2
    assert all(part.x < made.width for part in made.parts if isinstance(part, Words))


def test_shortened():
    assert shortened("cat", 100, 12) == "cat"
    assert shortened("a b\n c", 100, 12) == "a b c"
    cut = shortened("antidisestablishmentarianism", 100, 12)
    assert cut.endswith("…")
    assert width_of(cut, 12) <= 100
    assert width_of("熊", 12) == 12.0


def test_labels_never_cover_each_other():
    panel = Panel("", width=400, height=300)
    panel.keep_free(0.5, 0.5, 8)
    spots = [(0, -11, "mid"), (0, 20, "mid")]
    assert panel.label(0.5, 0.5, "first", "note", spots)
    assert panel.label(0.5, 0.5, "second", "note", spots)
    assert not panel.label(0.5, 0.5, "third", "note", spots)
    first, second = [part for part in panel.parts if isinstance(part, Words)]
    assert abs(first.y - second.y) > 11.5


# --- what each figure shows ---


def test_length_drawing_draws_means_and_deviations():
    drawing = charts.length_drawing("f", [*CELLS, cell(8, 1, 0, status="failed")])
    marks = tips(drawing)
    assert marks[:3] == [f"SPANER, P = {p}\n{m:.1f} ± 0.2 %" for p, m in ((1, 70.4), (2, 71.4), (4, 73.4))]
    assert marks[3].endswith("\n68.4 ± 0.2 %"), "semantic"
    assert {"frozen encoder 66.7", "frozen encoder 64.1"} <= set(words(drawing))
    line = next(part for part in parts(drawing, Stroke) if part.pen == "line")
    placed = [drawing.panels[0].at(p, v) for p, v in ((1, 70.4), (2, 71.4), (4, 73.4))]
    assert line.points == tuple(pytest.approx(point) for point in placed)


def test_each_kind_of_fusion_has_its_line_and_seeds_have_none():
    cells = CELLS + [cell(p, s, 0.6, aligner="hyena") for p in (1, 2, 4) for s in (1, 2)]
    drawing = charts.length_drawing("f", cells)
    assert drawing.keys == [Key("attention", 0), Key("hyena", 1)]
    assert charts.length_drawing("f", CELLS).keys == ()


def test_cells_without_zero_shot_and_a_single_seed():
    lone = cell(2, 1, 0.7)
    lone["metrics"]["zero_shot"] = None
    assert "frozen" not in " ".join(words(charts.length_drawing("f", [lone])))


def test_nothing_to_draw_is_said():
    with pytest.raises(
        DatasetError, match="nothing to draw: 1 cells, none finished; expected at least one; run `spaner"
    ):
        charts.length_drawing("f", [cell(1, 1, 0, status="failed")])
    with pytest.raises(DatasetError, match="nothing to draw: 0 cells"):
        charts.choice_drawing("f", [])


def test_choice_drawing_writes_every_mean():
    cells = [
        cell(2, s, a + s / 1000, templates=t, out_dim=e)
        for t, e, a in [("mined", 64, 0.5), ("mined", None, 0.6), ("vanilla", 64, 0.7)]
        for s in (1, 3)
    ]
    shown = words(charts.choice_drawing("f", cells))
    assert {"50.2", "60.2", "70.2", "48.2", "E = 64", "E = D", "mined", "vanilla"} <= set(shown)


def test_cosine_drawing_marks_the_means():
    rng = np.random.default_rng(0)
    spaces = {"frozen": rng.normal(0.3, 0.02, 97), "aligned": rng.normal(0.7, 0.05, 101)}
    drawing = charts.cosine_drawing("f", {"text": spaces, "semantic": spaces}, title="digits")
    shown = words(drawing)
    for name, values in spaces.items():
        assert shown.count(f"{values.mean():.3f}") == 2
        assert tips(drawing).count(f"{name}\nmean cosine {values.mean():.3f}") == 2
    assert "digits" in shown
    many = {f"run {i}": values for i, values in enumerate(rng.normal(0.5, 0.1, (23, 29)))}
    (panel,) = charts.cosine_drawing("f", {"text": many}).panels
    assert all(part.x > 60 for part in panel.parts if isinstance(part, Words) and part.words == "mean")


def test_loss_drawing_shows_the_terms_that_exist():
    history = [{"epoch": e, "loss": 2.0 / e, "align": 1.0 / e} for e in (1, 2)]
    shown = words(charts.loss_drawing("f", "digits", history))
    assert "alignment, on f" in shown
    assert not any("cross-attention" in each for each in shown)


def test_confusion_counts_errors_and_right_answers():
    matrix = np.array([[41, 3, 0], [0, 37, 7], [0, 0, 43]])
    drawing = maps.confusion_drawing("f", {"text": matrix}, ["toad", "frog", "newt"])
    boxes = {part.tip: part.fill for part in parts(drawing, Box)}
    assert boxes["frog taken for newt\n7 rows"] == "h5"
    assert boxes["toad taken for frog\n3 rows"] == "h3"
    assert boxes["newt taken for toad\n0 rows"] == "h0"
    assert boxes["toad recognised\n41 rows"] == "even"
    counts = [each for each in words(drawing) if each.isdigit()]
    assert sorted(counts) == ["3", "37", "41", "43", "7"], "zeros are left blank"
    assert words(drawing).count("newt") == 2


def test_no_confusion_is_said():
    drawing = maps.confusion_drawing("f", {"text": np.diag([3, 5])}, ["toad", "frog"])
    assert "no row was taken for another class" in words(drawing)


def test_plane_names_classes_and_counts_modalities():
    rng = np.random.default_rng(0)
    points = {"image": rng.random((31, 2)), "text": rng.random((3, 2))}
    labels = {"image": np.arange(31) % 3, "text": np.arange(3)}
    ids = {modality: [f"{modality}/{i}" for i in range(len(each))] for modality, each in points.items()}
    drawing = maps.plane_drawing("f", "t-SNE", Plane(points, labels, ids), ["zero", "one", "two"])
    assert {"zero", "one", "two", "image (31)", "text (3)"} <= set(words(drawing))
    assert len(parts(drawing, Mark)) == 34
    assert tips(drawing)[0] == "zero\nimage · image/0"


def test_symbols_are_defined_once_for_all_marks(tmp_path):
    text = write(charts.length_drawing("f", CELLS), tmp_path)[1].read_text()
    for used in set(re.findall(r'href="#([^"]+)"', text)):
        assert text.count(f'id="{used}"') == 1, used
    assert svg.symbols() in text


def test_files_are_named_and_linked(tmp_path: Path):
    drawing = charts.length_drawing("figure", CELLS)
    assert 'href="beside/figure.png"' in figure([drawing], "", "beside")
    assert "<a " not in figure([drawing], ""), "no link to a file that was not written"
