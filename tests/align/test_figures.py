"""Figures are looked at by people; here: the files, their bytes, the numbers drawn."""

import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from spaner.align.report import figures
from spaner.align.report import map_figures as maps
from spaner.errors import DatasetError


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


def words(svg: Path) -> str:
    """All writing of a figure: it is kept as text, so that it can be searched and read aloud."""
    return " ".join(ET.parse(svg).getroot().itertext())


def test_four_files_and_the_same_bytes_every_time(tmp_path):
    before = dict(mpl.rcParams)
    files = figures.prompt_length_figure(CELLS, tmp_path / "deep" / "figure.png")
    assert [file.name for file in files] == ["figure.png", "figure.svg", "figure-dark.png", "figure-dark.svg"]
    first = [file.read_bytes() for file in files]
    assert first[0].startswith(b"\x89PNG")
    assert first[0] != first[2]
    again = figures.prompt_length_figure(CELLS, tmp_path / "deep" / "figure.png")
    assert [file.read_bytes() for file in again] == first
    assert dict(mpl.rcParams) == before


def test_prompt_length_figure_draws_means_and_deviations(tmp_path, monkeypatch):
    drawn = []
    from matplotlib.axes import Axes

    original = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda self, *args, **kw: drawn.append(args) or original(self, *args, **kw)
    )
    svg = figures.prompt_length_figure([*CELLS, cell(8, 1, 0, status="failed")], tmp_path / "f")[1]
    lengths, mean, std = drawn[0]
    assert lengths == [1, 2, 4]
    assert mean == pytest.approx([70.4, 71.4, 73.4])
    assert std == pytest.approx([0.2, 0.2, 0.2])  # sample deviation of 0.2, 0.4, 0.6
    assert drawn[1][1] == pytest.approx([68.4, 69.4, 71.4])  # semantic
    assert "frozen encoder 66.7" in words(svg)
    assert "frozen encoder 64.1" in words(svg)


def test_each_kind_of_fusion_has_its_line_and_seeds_have_none(tmp_path):
    cells = CELLS + [cell(p, s, 0.6, aligner="hyena") for p in (1, 2, 4) for s in (1, 2)]
    svg = words(figures.prompt_length_figure(cells, tmp_path / "f")[1])
    assert "attention" in svg
    assert "hyena" in svg
    assert "seed" not in svg


def test_cells_without_zero_shot_and_a_single_seed(tmp_path):
    lone = cell(2, 1, 0.7)
    lone["metrics"]["zero_shot"] = None
    assert "frozen" not in words(figures.prompt_length_figure([lone], tmp_path / "f")[1])


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(
        DatasetError, match="nothing to draw: 1 cells, none finished; expected at least one; run `spaner"
    ):
        figures.prompt_length_figure([cell(1, 1, 0, status="failed")], tmp_path / "f")
    with pytest.raises(DatasetError, match="nothing to draw: 0 cells"):
        figures.choice_figure([], tmp_path / "f")


def test_choice_figure_writes_every_mean(tmp_path):
    cells = [
        cell(2, s, a + s / 1000, templates=t, out_dim=e)
        for t, e, a in [("mined", 64, 0.5), ("mined", None, 0.6), ("vanilla", 64, 0.7)]
        for s in (1, 3)
    ]
    svg = words(figures.choice_figure(cells, tmp_path / "f")[1])
    for shown in ("50.2", "60.2", "70.2", "48.2", "E = 64", "E = D", "mined", "vanilla"):
        assert shown in svg


def test_cdf_figure_writes_the_means(tmp_path):
    rng = np.random.default_rng(0)
    spaces = {"frozen": rng.normal(0.3, 0.02, 97), "aligned": rng.normal(0.7, 0.05, 101)}
    svg = words(figures.cdf_figure({"text": spaces, "semantic": spaces}, tmp_path / "f", title="digits")[1])
    for values in spaces.values():
        assert svg.count(f"mean {values.mean():.3f}") == 2
    assert "digits" in svg


def test_loss_figure_shows_the_terms_that_exist(tmp_path):
    history = [{"epoch": e, "loss": 2.0 / e, "align": 1.0 / e} for e in (1, 2)]
    svg = words(figures.loss_figure(history, tmp_path / "f")[1])
    assert "alignment, on f" in svg
    assert "cross-attention" not in svg


def test_confusion_figure_counts_errors_and_right_answers(tmp_path):
    matrix = np.array([[41, 3, 0], [0, 37, 7], [0, 0, 43]])
    svg = maps.confusion_figure(matrix, ["toad", "frog", "newt"], tmp_path / "f")[1]
    found = [text.strip() for text in ET.parse(svg).getroot().itertext() if text.strip()]
    assert [text for text in found if text.isdigit()] == ["41", "3", "37", "7", "43"]  # zeros are left blank
    assert found.count("newt") == 2


def test_class_names_are_not_mathematics(tmp_path):
    """matplotlib reads what stands between two dollar signs as a formula, and refuses a wrong one."""
    names = ["$1", "C$_2$", r"$\frac{$"]
    matrix = np.array([[41, 3, 0], [0, 37, 7], [0, 0, 43]])
    svg = words(maps.confusion_figure(matrix, names, tmp_path / "f", title="$x_$")[1])
    for name in [*names, "$x_$"]:
        assert name in svg


def test_scatter_figure_names_classes_and_counts_modalities(tmp_path):
    rng = np.random.default_rng(0)
    points = {"image": rng.random((31, 2)), "text": rng.random((3, 2))}
    labels = {"image": np.arange(31) % 3, "text": np.arange(3)}
    svg = words(maps.scatter_figure(points, labels, ["zero", "one", "two"], tmp_path / "f")[1])
    for shown in ("zero", "one", "two", "image (31)", "text (3)"):
        assert shown in svg
