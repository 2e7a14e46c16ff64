"""Every number of a report, for programs.

numbers.csv    a line a number: table, row, mark, value, interval, split hash, encoder, seed, command
numbers.json   the same, with each run's settings, history, accuracy by class and confused pairs
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spaner.align.report import published
from spaner.align.report.measured import Entry, confused_pairs
from spaner.align.report.origin import train_command
from spaner.align.report.sweep import Sweep
from spaner.align.report.table import ReportTable
from spaner.align.score import metrics
from spaner.cache import files

SCHEMA = "spaner-report/1"


def write_numbers(
    folder: Path,
    tables: Sequence[ReportTable],
    entries: Sequence[Entry],
    sweeps: Sequence[Sweep],
    apart: list[str],
) -> list[Path]:
    """numbers.json and numbers.csv."""
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
    files.write_result(folder / "numbers.json", text + "\n")
    files.write_rows(folder / "numbers.csv", lines)
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
