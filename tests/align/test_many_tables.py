"""Many modalities and the three checks on a page: a matrix and not a list, numbers from where they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spaner.cache
from spaner.align.report import check_charts, checks, many_tables
from spaner.align.report import write as report
from spaner.align.report.measured import measure
from spaner.align.report.panel import Mark, Panel
from spaner.align.score.evaluate import evaluate, evaluate_modalities
from spaner.align.score.space import joint_of
from spaner.align.train.extend import extend
from spaner.align.train.fit import fit
from spaner.align.train.joint import trained_together
from spaner.errors import RunError
from tests.conftest import made_up_spec, make_toy_cache

FAST: dict[str, Any] = {"heads": 4, "batch_size": 32, "epochs": 2}
NAMES = [f"class {i}" for i in range(11)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy cache with a touch of every image under its id and sounds of their own, and a run whose sound
    joined later."""
    place = tmp_path_factory.mktemp("many")
    make_toy_cache(place / "cache")
    rng = np.random.default_rng(1)
    with spaner.cache.create(place / "cache", "toy", NAMES) as cache:
        for modality, dim, prefix in (("touch", 17, ""), ("audio", 13, "heard ")):
            means = rng.normal(size=(11, dim))
            for split in ("train", "test"):
                table = cache.table(f"image/{split}")
                x = means[table.labels] + 0.5 * rng.normal(size=(table.rows, dim))
                ids = [prefix + name for name in table.ids.tolist()]
                spec = made_up_spec(modality, dim)
                cache.add(modality, split, x.astype(np.float32), table.labels, ids, encoder=spec)
        core = fit(cache, modalities="image,text,touch", **FAST)
        run = extend(core, cache, modality="audio", epochs=1)
        run.metrics, run.cache = evaluate(run, cache), place / "cache"
    run.save(place / "run")
    return place


@pytest.fixture(scope="module")
def entries(place: Path, few_rows_in_the_plane: None) -> Any:
    return measure([place / "run"])


def test_every_ordered_pair_is_in_the_matrix(place, entries):
    (matrix,) = many_tables.matrices(entries)
    run = entries[0].run
    across = evaluate_modalities(run, place / "cache", trained_together(run))
    assert [row.name for row in matrix.rows] == ["image", "text", "touch", "audio"]
    for pair in across["pairs"]:
        row = next(row for row in matrix.rows if row.name == pair["query"])
        cell: Any = row.numbers[pair["target"]]
        assert cell.value == pytest.approx(pair["recall@1"])
    assert all(row.numbers[row.name] is None for row in matrix.rows)
    assert "Emergent, never compared by a loss: text with audio, touch with audio." in matrix.note


def test_what_modalities_are_worth_together_is_measured_on_shared_ids(place, entries):
    content = many_tables.together(entries)
    assert content is not None
    ((heading, rows),) = content.groups
    assert "image, touch, 143 samples; without audio" in heading
    found = joint_of(entries[0].run, place / "cache", list(entries[0].run.widths))
    assert found is not None
    assert [row.name.split(",")[0] for row in rows] == ["0 %", "25 %", "50 %", "75 %", "90 %"]
    for row, plain in zip(rows, found["curve"], strict=True):
        numbers: Any = row.numbers
        assert numbers["joint"].value == pytest.approx(plain["joint"])
        assert numbers["gain"].value == pytest.approx(plain["joint"] - numbers["best"].value)
    assert rows[-1].numbers["empty"].value > 0.7  # type: ignore[union-attr]


def test_clusters_and_agreement_have_their_chance_beside_them(entries):
    clusters, pairs = many_tables.one_space(entries), many_tables.agreement(entries)
    assert clusters is not None
    assert pairs is not None
    assert [row.name for row in clusters.rows] == ["frozen encoder", "run"]
    by_name: dict[str, Any] = {row.name: row.numbers for row in pairs.rows}
    assert set(by_name) >= {"image – text", "image – touch", "touch – audio"}
    assert by_name["image – touch"]["by"] == "143 by id"
    assert by_name["image – text"]["by"] == "11 by class means"
    assert by_name["image – touch"]["mutual_knn_chance"].value == pytest.approx(10 / 142)


@pytest.mark.usefixtures("few_rows_in_the_plane")
def test_the_page_shows_matrix_and_checks(place, tmp_path):
    for name, told in (("ablation", ABLATION), ("scale", SCALE), ("transfer", TRANSFER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps(told))
    folders = [tmp_path / name for name in ("ablation", "scale", "transfer")]
    page, csv, *_ = report.write([place / "run"], tmp_path / "r.html", checks=folders, figures=False)
    text = page.read_text()
    for said in (
        "from each modality (rows) to each other (columns)",
        "What are the modalities of one sample worth together?",
        "What the prompt contributes",
        "no prompt (P = 0)",
        "+1.0",
        "joined one by one to a frozen core",
        "Other data sets, other classes",
        "another encoder",
        "H is the harmonic mean",
    ):
        assert said in text, said
    assert "r_files" in str(csv)


def test_a_page_of_checks_alone_has_their_figures(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, told in (("ablation", ABLATION), ("scale", SCALE), ("transfer", TRANSFER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps(told))
    done = cli("report", "--check", "scale", "--check", "ablation", "--check", "transfer", "-o", "r.html")
    assert done.status == 0, done.err
    assert "the newest run" not in done.err
    text = (tmp_path / "r.html").read_text()
    assert "More modalities" in text
    for drawn in ("scale-check-1", "prompt-check-2", "transfer-check-3"):
        assert (tmp_path / "r_files" / f"{drawn}.png").stat().st_size > 1000
        assert f"r_files/{drawn}.svg" in text


def test_figures_of_checks_show_the_numbers():
    """What a pointer is told: each number of the file once, with its interval, faint where 0 lies inside."""
    tips = [mark.tip for panel in check_charts.scale_drawing("s", SCALE).panels for mark in marks(panel)]
    text, seconds = 100 * STEP["text"][0], STEP["seconds"][0]
    assert f"trained together, 3 modalities\n{text:.1f} ± {100 * STEP['text'][1]:.1f} accuracy (%)" in tips
    assert f"joined one by one, 3 modalities\n{seconds:.1f} ± {STEP['seconds'][1]:.1f} seconds" in tips
    assert sum("emergent" in tip for tip in tips) == 1
    drawn = [mark for panel in check_charts.prompt_drawing("p", ABLATION).panels for mark in marks(panel)]
    assert {mark.tip for mark in drawn} == {"no prompt (P = 0)\n+1.0 points (95 %: -1.0 … +3.0)"}
    assert {mark.colour for mark in drawn} == {"faint"}
    (gain,) = [mark for panel in check_charts.transfer_drawing("t", TRANSFER).panels for mark in marks(panel)]
    assert gain.tip == "other, a\n+1.0 points (95 %: -1.0 … +3.0)"
    sure = {**TRANSFER, "rows": [TRANSFER["rows"][1] | {"gains": {"text": LOST | {"low": 0.001}}}]}
    (gain,) = [mark for panel in check_charts.transfer_drawing("t", sure).panels for mark in marks(panel)]
    assert gain.colour != "faint"


def marks(panel: Panel) -> list[Mark]:
    return [part for part in panel.parts if isinstance(part, Mark)]


def test_what_is_no_check_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"found none of ablation\.json, scale\.json, transfer\.json"):
        checks.read([tmp_path])
    (tmp_path / "scale.json").write_text("[]")
    with pytest.raises(RunError, match=r"scale\.json is not a result; run its command again"):
        checks.read([tmp_path])


LOST = {"mean": 0.01, "low": -0.01, "high": 0.03, "std": 0.02}
SPREAD = {"mean": 0.8, "std": 0.01}
ABLATION = {
    "check": "prompt",
    "dataset": "toy",
    "title": "paper",
    "modalities": ["image", "text"],
    "seeds": [1, 2],
    "zero_shot": {"text": 0.7, "semantic": 0.6},
    "rows": [
        {"variant": "no prompt (P = 0)", "runs": 2, "text": SPREAD, "semantic": SPREAD, "text_lost": LOST}
        | {"semantic_lost": LOST, "pairs": None, "parameters": 7, "seconds": 1.0}
    ],
}
STEP = {
    name: [1.0, 0.0]
    for name in ("seconds", "megabytes", "parameters", "text", "semantic", "trained", "chance", "emergent")
}
SCALE = {
    "check": "scale",
    "dataset": "toy",
    "title": "paper",
    "modalities": ["image", "text", "audio"],
    "seeds": [1],
    "rows": [
        {"modalities": 3, "added": "audio", "way": "joint", **STEP, "step_ms": [1.0, 0.0], "emergent": None},
        {"modalities": 3, "added": "audio", "way": "extended", **STEP, "step_ms": None},
    ],
}
ASKED = {"run": "a", "trained_on": "toy", "dataset": "other", "classes": 7, "chance": 1 / 7}
TRANSFER = {
    "check": "transfer",
    "rows": [
        {**ASKED, "reason": "image/test was made by another encoder"},
        {**ASKED, "reason": None, "text": 0.5, "semantic": None, "gap": None, "v_measure": 0.4}
        | {"gains": {"text": LOST, "v_measure": 0.1}, "frozen": None},
    ],
    "base_to_new": [
        {"run": "a", "text": {"base": 0.8, "new": 0.6, "H": 0.69}, "zero_shot": None, "classes": [6, 5]},
        {"run": "b", "reason": "its cache is gone"},
    ],
}
