"""What lies beside the page: every figure as PNG and SVG, light and dark, and every number as JSON and CSV.

numbers.csv    one line per number: table, row, mark, value, interval, split hash, encoder, seed, command
numbers.json   the same, with each run's settings, history, accuracy by class and confused pairs
*.png *.svg    the figures, made by `figures` and `maps`
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spaner.align.report import figures, published
from spaner.align.report import map_figures as maps
from spaner.align.report.maps import confused_pairs
from spaner.align.report.measured import Entry, Measured
from spaner.align.report.origin import benches, spaces, train_command
from spaner.align.report.sweep import Sweep
from spaner.align.report.table import ReportTable
from spaner.align.score import metrics
from spaner.align.score.confusion import confusion_matrix, most_confused_classes

SCHEMA = "spaner-report/1"


def write_numbers(
    folder: Path,
    tables: Sequence[ReportTable],
    entries: Sequence[Entry],
    sweeps: Sequence[Sweep],
    apart: list[str],
) -> list[Path]:
    """numbers.json and numbers.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for table in tables for line in table.flat()]
    content = {
        "schema": SCHEMA,
        "published": published.paper()["source"],
        "apart": apart,
        "numbers": lines,
        "runs": [_run(entry) for entry in entries],
        "sweeps": [{"name": sweep.name, "cells": sweep.cells} for sweep in sweeps],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "numbers.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
    return [folder / "numbers.json", folder / "numbers.csv"]


def _run(entry: Entry) -> dict[str, Any]:
    run, names = entry.run, entry.bench.class_names
    by_class = {
        kind: dict(zip(map(str, range(len(names))), found.tolist(), strict=True))
        for kind, match in entry.aligned.matches.items()
        for found in [metrics.per_class_accuracy(match, names)]
    }
    return {
        "name": entry.name,
        "command": train_command(entry),
        "config": run.config.to_json(),
        "draw": run.draw,
        "tables": run.tables | entry.bench.tables,
        "encoders": {modality: asdict(spec) for modality, spec in run.encoders.items()},
        "extensions": run.extensions,
        "seconds": run.seconds,
        "versions": run.versions,
        "history": run.history,
        "class_names": names,
        "accuracy_by_class": by_class,
        "confused": confused_pairs(entry.aligned, names, 20),
    }


def draw_figures(folder: Path, entries: Sequence[Entry], sweeps: Sequence[Sweep]) -> list[Path]:
    """Every figure of the report; what each shows is in its name."""
    return [file for files in _figures(folder, entries, sweeps) for file in files]


def _figures(folder: Path, entries: Sequence[Entry], sweeps: Sequence[Sweep]) -> Iterator[list[Path]]:
    for number, (bench, members) in enumerate(benches(entries), 1):
        shown = {n: s for n, s in spaces(bench, members).items() if s.matches["text"].has_cosines}
        cosines = {k: {n: s.matches[k].positive for n, s in shown.items()} for k in figures.KINDS}
        if shown:
            yield figures.cdf_figure(cosines, folder / f"cosine-{number}", title=bench.dataset)
        if bench.frozen is not None and bench.frozen.plane:
            yield _scatter(
                bench.frozen, folder / f"space-frozen-{number}", "frozen encoder", bench.class_names
            )
    for entry in entries:
        names = entry.bench.class_names
        if entry.aligned.plane:
            yield _scatter(entry.aligned, folder / f"space-{entry.anchor}", entry.name, names)
        for kind, match in entry.aligned.matches.items():
            matrix = confusion_matrix(match, names)
            worst = most_confused_classes(matrix)
            if len(worst):
                title = f"{figures.KINDS[kind]}, {entry.name}"
                path = folder / f"confusion-{kind}-{entry.anchor}"
                chosen = [names[int(c)] for c in worst]
                yield maps.confusion_figure(matrix[np.ix_(worst, worst)], chosen, path, title=title)
        if entry.run.history:
            yield figures.loss_figure(entry.run.history, folder / f"loss-{entry.anchor}")
    for sweep in sweeps:
        if "prompt_length" in sweep.varied:
            yield figures.prompt_length_figure(sweep.finished, folder / f"length-{sweep.anchor}")
        if {"templates", "out_dim"} & set(sweep.varied):
            yield figures.choice_figure(sweep.finished, folder / f"choice-{sweep.anchor}")


def _scatter(measured: Measured, path: Path, title: str, names: Sequence[str]) -> list[Path]:
    plane = measured.plane
    assert plane is not None
    order = sorted(plane.points, key=lambda modality: modality == "text")  # texts on top, with their names
    points = {modality: plane.points[modality] for modality in order}
    return maps.scatter_figure(points, plane.labels, names, path, title=f"t-SNE, {title}")
