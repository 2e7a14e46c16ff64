"""The report from Python: what stands in its tables, and one line for each thing wrong with the input."""

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import clip_like
import numpy as np
import pytest

from spaner import cache as caches
from spaner.align.report import measured as report_run
from spaner.align.report import origin, published
from spaner.align.report import tables as report_tables
from spaner.align.report import write as report
from spaner.align.report.origin import sweep_command, train_command
from spaner.align.report.table import APART, PUBLISHED, averaged, bounds, text
from spaner.align.score import metrics
from spaner.align.score.evaluate import evaluate
from spaner.align.score.intervals import Number
from spaner.align.train import run as checkpoint
from spaner.align.train.fit import fit
from spaner.align.train.sweep import sweep
from spaner.errors import DatasetError, Mismatch, RunError, SpanerError

pytestmark = pytest.mark.usefixtures("few_rows_in_the_plane")
SETTINGS: dict[str, Any] = {"heads": 4, "epochs": 2, "batch_size": 32}


def train(cache: Path, folder: Path, **settings) -> Path:
    with caches.open(cache) as opened:
        run = fit(opened, **SETTINGS | settings)
        run.metrics, run.cache = evaluate(run, opened), cache
    return run.save(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory, few_rows_in_the_plane) -> Path:
    """A cache, two runs that differ in their seed, and a sweep; read only."""
    place = tmp_path_factory.mktemp("report")
    clip_like.build(place / "cache", per_class=3)
    for seed in (1, 2):
        train(place / "cache", place / "runs" / f"seed-{seed}", seed=seed, shots=1)
    grid = {"prompt_length": [1, 2], "aligner": ["attention", "hyena"], "templates": ["mined", "vanilla"]}
    sweep(place / "cache", grid, SETTINGS, place / "sweep", workers=1)
    return place


@pytest.fixture(scope="module")
def entries(place):
    return report_run.measure([place / "runs" / "seed-1", place / "runs" / "seed-2"])


@pytest.fixture(scope="module")
def tables(entries):
    return {found.key: found for found in report_tables.tables(entries)}


def edit(folder: Path, **changes) -> None:
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# --- what is measured and shown ---


def test_runs_are_measured_again_and_agree_with_what_they_recorded(entries):
    for entry in entries:
        for kind in ("text", "semantic"):
            recorded = entry.run.metrics[kind]
            for name, found in entry.aligned.scores[kind].items():
                assert getattr(found, "value", found) == pytest.approx(recorded[name], abs=1e-5), name
        frozen = entry.run.metrics["zero_shot"]["text"]["accuracy"]
        assert entry.bench.frozen.scores["text"]["accuracy"].value == pytest.approx(frozen, abs=1e-5)
        gain = entry.run.metrics["text"]["accuracy"] - frozen
        assert entry.gains["text"].value == pytest.approx(gain, abs=1e-5)
    assert entries[0].bench is entries[1].bench, "the frozen encoder is measured once per table"


def test_published_rows_stand_below_ours_with_the_reason(tables, entries):
    ours, paper = tables["accuracy"].groups
    assert [row.name for row in ours[1]][:3] == ["frozen encoder", "seed-1", "seed-2"]
    assert [row.name for row in paper[1]][-1] == "SPANER"
    assert paper[1][-1].numbers["text"] == Number(0.697)
    assert {row.mark for row in paper[1]} == {APART}
    for reason in (
        "other data (synthetic, not imagenet)",
        "made-up",
        "another encoder",
        "not 16 shots",
        "253 test",
    ):
        assert reason in paper[1][0].because


def test_a_row_made_like_the_papers_is_comparable():
    spec = clip_like.spec("image", name="open_clip/ViT-B-16", weights="openai", synthetic=False)

    def reasons(shots: int | None = 16, draw: int | None = 16_000, rows: int = 50_000) -> list[str]:
        paper = published.benchmark("imagenet")
        return published.reasons(paper, dataset="imagenet", encoder=spec, shots=shots, draw=draw, rows=rows)

    assert reasons() == []
    assert reasons(shots=None, draw=None) == [], "a frozen encoder has no shots"
    assert reasons(shots=4) == ["trained on 4 shots, not 16 shots"]
    assert reasons(rows=10) == ["10 test rows, not 50,000"]


def test_comparable_runs_make_the_papers_rows_published(entries, monkeypatch):
    monkeypatch.setattr(published, "reasons", lambda *_, **__: [])
    marks = {row.mark for row in report_tables.tables(entries)[0].groups[-1][1]}
    assert marks == {PUBLISHED}


def test_published_numbers_fit_together():
    for row in published.benchmark("imagenet")["rows"]:
        if "gap" in row:
            assert row["text"] - row["semantic"] == pytest.approx(row["gap"], abs=1e-9), row["name"]


def test_runs_that_differ_in_their_seed_alone_have_a_mean(tables, entries):
    (mean,) = [row for row in tables["accuracy"].groups[0][1] if row.name.startswith("mean")]
    values = [entry.aligned.scores["text"]["accuracy"].value for entry in entries]
    assert mean.numbers["text"].value == pytest.approx(np.mean(values))
    assert mean.numbers["text"].std == pytest.approx(np.std(values, ddof=1))
    assert mean.origin["seed"] == "1, 2"


def test_confidence_stands_beside_that_at_the_temperature_of_validation_rows(entries, tables):
    assert all(entry.run.temperature for entry in entries)
    rows = {row.name: row.numbers for row in tables["calibration"].rows}
    for entry in entries:
        found, run = rows[entry.name], entry.run
        for key in ("ece", "nll", "ece_fitted", "nll_fitted"):
            recorded = run.metrics["text"][key]
            told = found[key] and found[key].value
            assert told == (recorded if recorded is None else pytest.approx(recorded, rel=1e-3)), (
                entry.name,
                key,
            )
        assert (found["temperature"] is None) == (run.temperature is None) == (found["nll_fitted"] is None)


def test_collapse_controls_stand_beside_every_cosine(tables):
    keys = {column.key for column in tables["cosine"].columns}
    for kind in ("text", "semantic"):
        assert {f"{kind}_{key}" for key in ("cosine", "margin", "negative", "centred")} <= keys


def test_every_number_says_where_it_comes_from(tables, entries):
    for found in tables.values():
        for line in found.flat():
            if line["mark"] == "ours":
                assert len(line["tested_sha256"]) == 64
                assert line["encoder"] == "synthetic none"
                assert line["command"].startswith("spaner ")
                if line["row"].startswith("seed"):
                    assert line["draw_sha256"] == entries[0].run.draw["sha256"]
                    assert line["seed"] in (1, 2)


def test_the_command_repeats_the_run(entries):
    command = train_command(entries[1])
    assert command == "spaner train --cache cache --shots 1 --seed 2 --heads 4 --epochs 2 --batch-size 32"


def test_the_command_repeats_the_sweep(place):
    cells = json.loads((place / "sweep" / "sweep.json").read_text())
    assert sweep_command(cells) == (
        "spaner sweep --cache CACHE --prompt-lengths 1,2 --aligners attention,hyena --template-sets "
        "mined,vanilla --heads 4 --epochs 2 --batch-size 32"
    )


def test_numbers_as_printed():
    assert text(Number(0.6974), "percent") == "69.7"
    assert text(Number(-0.0213), "points") == "−2.1"
    assert text(Number(-0.0001), "points") == "0.0"
    assert text(None, "percent") == "–"
    assert bounds(Number(0.5, 0.4, 0.6), "cosine") == "0.400 … 0.600"
    assert bounds(Number(0.5), "cosine") == ""


def test_absent_numbers_are_dashes_and_never_a_gap_of_zero():
    """A head that ignores the query has no semantic score; one without a space has no cosine."""
    probe = {"text": {"accuracy": 0.5, "accuracy_tie_aware": 0.5}, "semantic": None, "gap": None}
    accuracy = report_tables.accuracy_numbers(probe)
    assert accuracy["text"] == Number(0.5)
    assert [text(accuracy[key], "percent") for key in ("semantic", "gap", "ceiling")] == ["–", "–", "–"]
    assert set(report_tables.cosine_numbers(probe).values()) == {None}
    assert averaged([accuracy, accuracy])["gap"] is None
    assert averaged([accuracy, accuracy])["text"] == Number(0.5, std=0.0, n=2)


def test_repetitions_are_printed_with_their_deviation():
    several = Number.over([0.5, 0.6, 0.7])
    assert (text(several, "percent"), bounds(several, "percent")) == ("60.0", "± 10.0")
    assert bounds(several, "points") == "± 10.0", "a deviation has no sign"
    assert bounds(Number.over([0.5]), "percent") == ""


def probe_of(entry) -> Any:
    """The entry as a linear probe would give it: one kind, no cosines, no space, no losses."""
    match = entry.aligned.matches["text"]
    bare = metrics.Match(match.labels, match.predicted, match.credit, match.credit_by_name)
    scores = report_run.scores_of({"text": bare}, entry.bench.class_names)
    aligned = report_run.Measured({"text": bare}, scores, pairs=[], directions=[], plane=None)
    gains = {"text": entry.gains["text"]}
    run = dataclasses.replace(entry.run, history=[])
    return dataclasses.replace(entry, name="probe", aligned=aligned, gains=gains, run=run)


@pytest.mark.parametrize("alone", [True, False])
def test_a_head_without_space_or_semantic_score_has_a_page(entries, tmp_path, monkeypatch, alone):
    probe = probe_of(entries[0])
    if alone:
        probe = dataclasses.replace(probe, bench=dataclasses.replace(probe.bench, frozen=None), gains=None)
    shown = [probe] if alone else [probe, entries[1]]
    monkeypatch.setattr(report, "measure", lambda *_: shown)
    files = report.write([Path("probe")], tmp_path / "page.html")
    page = files[0].read_text()
    assert "nan" not in page
    assert (">Space</h2>" in page) is not alone
    with (tmp_path / "page_files" / "numbers.csv").open(newline="") as file:
        mine = {line["number"] for line in csv.DictReader(file) if line["row"] == "probe"}
    assert {"text", "tie_aware", "chance"} <= mine
    assert not mine & {"semantic", "gap", "text_cosine", "modality_gap"}
    for target in re.findall(r'href="(page_files/[^"]+)"', page):
        assert (tmp_path / target).exists(), target


def test_rows_that_nothing_may_be_compared_with_are_folded_away(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "measure", lambda *_: entries)

    def page() -> str:
        return report.write([Path("run")], tmp_path / "page.html", figures=False)[0].read_text()

    assert page().count('<details class="fold"><summary>') == 2, "Tables 1 and 2, closed"
    monkeypatch.setattr(published, "reasons", lambda *_, **__: [])
    assert 'class="fold"' not in page(), "open where they may be compared"


def test_the_page_and_what_lies_beside_it(place, tmp_path):
    runs = [place / "runs" / "seed-1", place / "runs" / "seed-2"]
    files = report.write(
        runs, tmp_path / "page.html", sweeps=[place / "sweep"], shifts=[place / "cache"], figures=False
    )
    page = files[0].read_text()
    assert not re.search(r'(src|href)="(https?:)?//', page), "the page asks nobody for anything"
    assert str(place) not in page
    for title in (
        "Accuracy",
        "Alignment",
        "Space",
        "Retrieval",
        "Confusion",
        "Domain shift",
        "Ablations",
        "Origins",
    ):
        assert f">{title}</h2>" in page
    with (tmp_path / "page_files" / "numbers.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["table"] for line in lines} >= {
        "accuracy",
        "cosine",
        "modality_gap",
        "retrieval",
        "shift",
        "sweep-1",
    }
    content = json.loads((tmp_path / "page_files" / "numbers.json").read_text())
    assert len(content["numbers"]) == len(lines)
    assert [run["name"] for run in content["runs"]] == ["seed-1", "seed-2"]
    assert str(place) not in json.dumps(content)


def test_figures_are_written_as_png_and_svg(place, tmp_path):
    files = report.write([place / "runs" / "seed-1"], tmp_path / "page.html")
    names = {file.name for file in files}
    stems = ("cosine-1", "space-frozen-1", "space-run-1", "confusion-run-1", "loss-run-1", "accuracy-1")
    assert {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")} <= names
    page = files[0].read_text()
    for target in re.findall(r'href="(page_files/[^"]+)"', page):
        assert (tmp_path / target).exists(), target


def test_names_are_escaped(tmp_path):
    with caches.create(tmp_path / "cache", "<b>&", ["<i>0", "<i>1"]) as cache:
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            labels = np.repeat([0, 1], 5)
            x = rng.normal(size=(10, 8)).astype(np.float32)
            cache.add("image", split, x, labels, encoder=clip_like.spec("image", dim=8))
        for name in ("mined", "vanilla", "classname"):
            x = rng.normal(size=(2, 8)).astype(np.float32)
            cache.add("text", name, x, np.arange(2), encoder=clip_like.spec("text", dim=8))
    folder = train(tmp_path / "cache", tmp_path / "run")
    page = report.write([folder], tmp_path / "page.html", figures=False)[0].read_text()
    assert "<i>0" not in page
    assert "<b>&" not in page


# --- runs that must not be mixed ---


def test_other_splits_and_encoders_stand_side_by_side_with_the_reason(place, tmp_path):
    clip_like.build(tmp_path / "other", per_class=5)
    folder = train(tmp_path / "other", tmp_path / "more-rows")
    entries = report_run.measure([place / "runs" / "seed-1", folder, place / "runs" / "seed-2"])
    (reason,) = origin.apart(entries)
    assert reason.startswith("different training draw (seed-1, seed-2: ")
    assert "more-rows: " in reason
    rows = [row for _, rows in report_tables.tables(entries)[0].groups for row in rows]
    (mean,) = [row.name for row in rows if row.name.startswith("mean")]
    assert mean == "mean of seeds 1, 2 (± s.d.)"
    moved = dataclasses.replace(
        entries[1],
        bench=dataclasses.replace(entries[1].bench, tables={"image/test": "f" * 64}, table="image/test"),
    )
    assert any(line.startswith("different tested table") for line in origin.apart([entries[0], moved]))
    differences = report_tables.tables([entries[0], moved])[-1].groups[0][1]
    assert differences[0].mark == APART
    assert "tested on other rows (image/test ffffffffffff, image/test " in differences[0].because


# --- bad input: one line each ---


@pytest.fixture
def run(place, tmp_path) -> Path:
    """A run of its own beside a cache of its own, to spoil."""
    clip_like.build(tmp_path / "cache", per_class=3)
    loaded = checkpoint.load(place / "runs" / "seed-1")
    return dataclasses.replace(loaded, cache=tmp_path / "cache").save(tmp_path / "mine")


def refusal(kind: type[SpanerError], *args, **kwargs) -> str:
    with pytest.raises(kind) as error:
        report.write(*args, figures=False, **kwargs)
    line = str(error.value)
    assert "\n" not in line
    assert "; " in line, "it says what to do next"
    return line


def test_no_run_and_no_sweep(tmp_path):
    assert "found no run and no sweep" in refusal(RunError, [], tmp_path / "page.html")


def test_a_cache_that_is_gone(run, tmp_path):
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    line = refusal(RunError, [run], tmp_path / "page.html")
    assert line.startswith("run mine: its cache cache is gone: found no image/train, expected hash ")
    assert checkpoint.load(run).tables["image/train"] in line
    report.write([run], tmp_path / "page.html", cache=tmp_path / "elsewhere", figures=False)


def test_a_run_that_does_not_know_its_cache(place, tmp_path):
    folder = dataclasses.replace(checkpoint.load(place / "runs" / "seed-1"), cache=None).save(
        tmp_path / "old"
    )
    assert "run old: its cache is not recorded" in refusal(RunError, [folder], tmp_path / "page.html")


def test_a_changed_cache_is_named_with_both_hashes(run, tmp_path):
    clip_like.build(tmp_path / "other", per_class=5)
    line = refusal(Mismatch, [run], tmp_path / "page.html", cache=tmp_path / "other")
    with caches.open(tmp_path / "other") as cache:
        found = cache.table("image/train").manifest.sha256
    recorded = checkpoint.load(run).tables["image/train"]
    assert line.startswith(f"run mine: image/train of other has hash {found}, the run recorded {recorded}")


def test_a_table_that_is_gone(run, tmp_path):
    clip_like.build(tmp_path / "less", skip=("text/mined",), per_class=3)
    line = refusal(Mismatch, [run], tmp_path / "page.html", cache=tmp_path / "less")
    assert "text/mined of less has hash no such table" in line


def test_weights_that_do_not_give_the_recorded_numbers(run, tmp_path):
    metrics = checkpoint.load(run).metrics or {}
    edit(run, metrics=metrics | {"text": metrics["text"] | {"accuracy": 0.123}})
    assert "run mine: text accuracy is" in refusal(RunError, [run], tmp_path / "page.html")


def test_nan_in_a_result(run, tmp_path):
    metrics = checkpoint.load(run).metrics or {}
    edit(run, metrics=metrics | {"gap": float("nan")})
    assert "run mine: metrics.gap is nan" in refusal(RunError, [run], tmp_path / "page.html")


def test_nan_in_the_weights(run, tmp_path):
    loaded = checkpoint.load(run)
    for parameter in loaded.model.parameters():
        parameter.data.fill_(float("nan"))
    dataclasses.replace(loaded, cache=loaded.cache).save(run)
    line = refusal(DatasetError, [run], tmp_path / "page.html")
    assert line.startswith("run mine: ")
    assert "NaN" in line


def odd_cache(path: Path, names: list[str], tested: list[int]) -> None:
    """Classes without training problems, tested on the given labels only."""
    rng = np.random.default_rng(0)
    with caches.create(path, "odd", names) as cache:
        for split, labels in (("train", np.repeat(np.arange(len(names)), 3)), ("test", np.array(tested))):
            x = rng.normal(size=(len(labels), 8)).astype(np.float32)
            cache.add("image", split, x, labels, encoder=clip_like.spec("image", dim=8))
        for name in ("mined", "vanilla", "classname"):
            x = rng.normal(size=(len(names), 8)).astype(np.float32)
            cache.add("text", name, x, np.arange(len(names)), encoder=clip_like.spec("text", dim=8))


def test_a_class_without_test_rows(tmp_path):
    odd_cache(tmp_path / "cache", ["cat", "dog", "owl"], [0, 0, 2, 2, 0])
    folder = train(tmp_path / "cache", tmp_path / "run")
    line = refusal(DatasetError, [folder], tmp_path / "page.html")
    assert line.startswith("run run: 1 of 3 classes have no test rows: 'dog'")


def test_one_class_only(tmp_path):
    odd_cache(tmp_path / "cache", ["cat"], [0, 0, 0])
    with caches.open(tmp_path / "cache") as opened:
        run = fit(opened, **SETTINGS)
    run.cache = tmp_path / "cache"
    line = refusal(DatasetError, [run.save(tmp_path / "run")], tmp_path / "page.html")
    assert line.startswith("run run: ")
    assert "one class only" in line


def spoiled_sweep(place: Path, folder: Path, change) -> Path:
    cells = json.loads((place / "sweep" / "sweep.json").read_text())
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(change(cells)))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda cells: [], "sweep mine is empty: found 0 cells"),
        (lambda cells: {"a": 1}, "sweep mine: sweep.json is not a list of cells"),
        (
            lambda cells: [{"status": "failed", "reason": "no room"}],
            "none of 1 cells finished, first because no room",
        ),
        (
            lambda cells: [*cells[:1], spoiled(cells[1], gap=float("nan"))],
            "sweep mine, cell 2: metrics.gap is nan",
        ),
        (
            lambda cells: [*cells[:1], spoiled(cells[1], tested={"manifest_sha256": "ff"})],
            "sweep mine: its cells were tested on 2 different tables",
        ),
    ],
)
def test_sweeps_with_nothing_to_show(place, tmp_path, change, said):
    folder = spoiled_sweep(place, tmp_path / "mine", change)
    assert said in refusal(RunError, [], tmp_path / "page.html", sweeps=[folder])


def spoiled(cell: dict, **metrics) -> dict:
    return cell | {"metrics": cell["metrics"] | metrics}


def test_no_sweep_there(tmp_path):
    (tmp_path / "nothing").mkdir()
    line = refusal(RunError, [], tmp_path / "page.html", sweeps=[tmp_path / "nothing"])
    assert line.startswith("sweep nothing: found no sweep.json")


def test_nothing_is_written_when_something_is_wrong(tmp_path):
    refusal(RunError, [tmp_path / "no-run"], tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
