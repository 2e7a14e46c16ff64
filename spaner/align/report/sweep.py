"""Sweep folders of a report: read, checked, and told apart by what varies in them.

Reads `sweep.json`; it trains nothing and never averages over anything but seeds and draws.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaner.align.report.measured import check_finite, unique_names
from spaner.align.report.origin import sweep_command
from spaner.align.report.table import OURS, ReportTable, Row, averaged
from spaner.align.report.tables import ACCURACY, COSINE, accuracy_numbers, cosine_numbers
from spaner.align.train import sweep
from spaner.errors import RunError

COLUMNS = [
    *(column for column in ACCURACY if column.key in ("text", "semantic", "gap")),
    *(column for column in COSINE if column.key in ("text_cosine", "semantic_cosine", "semantic_margin")),
]


@dataclass(frozen=True)
class Sweep:
    """The cells of one folder; `varied` are the settings that differ between them, repeats left out."""

    name: str
    anchor: str
    cells: list[dict[str, Any]]

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [cell for cell in self.cells if cell["status"] == "ok"]

    @property
    def varied(self) -> list[str]:
        names = dict.fromkeys(name for cell in self.finished for name in cell["varied"])
        values = {n: {repr(cell["config"].get(n)) for cell in self.finished} for n in names}
        return [n for n in names if n not in sweep.REPEATS and len(values[n]) > 1]

    @property
    def failed(self) -> int:
        return len(self.cells) - len(self.finished)


def read(folders: Sequence[Path]) -> list[Sweep]:
    """Every sweep folder.

    Raises:
        RunError: no sweep there, not JSON, no cells, none finished, cells of different data, or NaN.
    """
    return [
        _read(folder, name, f"sweep-{number}")
        for number, (folder, name) in enumerate(zip(folders, unique_names(folders), strict=True), 1)
    ]


def _read(folder: Path, name: str, anchor: str) -> Sweep:
    file = folder / "sweep.json"
    if not file.exists():
        raise RunError(f"sweep {name}: found no sweep.json; expected a folder that `spaner sweep` wrote")
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))
        states = [cell["status"] for cell in cells]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise RunError(f"sweep {name}: sweep.json is not a list of cells; run `spaner sweep` again") from None
    if not cells:
        raise RunError(
            f"sweep {name} is empty: found 0 cells; expected one or more; run `spaner sweep` again"
        )
    if "ok" not in states:
        reason = cells[0].get("reason", "no reason recorded")
        raise RunError(
            f"sweep {name}: none of {len(cells)} cells finished, first because {reason}; "
            "mend the cause and run `spaner sweep` again"
        )
    for number, cell in enumerate(cells, 1):
        if cell["status"] == "ok":
            check_finite(cell["metrics"], f"sweep {name}, cell {number}")
    _check_one_bench(name, [cell for cell in cells if cell["status"] == "ok"])
    return Sweep(name, anchor, cells)


def _check_one_bench(name: str, cells: Sequence[dict[str, Any]]) -> None:
    tested = {cell["metrics"]["tested"]["manifest_sha256"] for cell in cells}
    if len(tested) > 1:
        raise RunError(
            f"sweep {name}: its cells were tested on {len(tested)} different tables "
            f"({', '.join(sorted(tested))}); expected one, since cells are averaged over seeds; "
            "give every cache a sweep folder of its own"
        )


def table(found: Sweep, settings: Sequence[str] | None = None) -> ReportTable:
    """Mean and standard deviation over seeds and draws of every combination.

    Args:
        settings: what names a row; default: what varies besides the repeats.
    """
    settings = found.varied if settings is None else settings
    rows = []
    for cells in combinations(found.finished, settings):
        config = cells[0]["config"] | cells[0]["varied"]
        name = ", ".join(f"{each.replace('_', ' ')} {config[each]}" for each in settings) or "all cells"
        scored = [accuracy_numbers(cell["metrics"]) | cosine_numbers(cell["metrics"]) for cell in cells]
        about = _origin(found, cells)
        rows.append(Row(f"{name} ({len(cells)})", OURS, averaged(scored), "", about, found.anchor))
    note = "In brackets the number of cells; small figures: standard deviation over seeds and draws."
    if found.failed:
        note += f" {found.failed} of {len(found.cells)} cells failed and are left out."
    return ReportTable(found.anchor, f"Sweep {found.name}", COLUMNS, [("", rows)], note)


def combinations(cells: Sequence[dict[str, Any]], settings: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Cells that share the settings, repeats together, in order of appearance."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        values = cell["config"] | cell["varied"]
        alike.setdefault(repr([values.get(name) for name in settings]), []).append(cell)
    return list(alike.values())


def _origin(found: Sweep, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = cells[0]
    tested, facts = first["metrics"]["tested"], first.get("facts", {})
    draws = {cell.get("facts", {}).get("draw", {}).get("sha256", "") for cell in cells}
    encoder = next(iter(facts.get("encoders", {}).values()), {})
    return {
        "dataset": tested["dataset"],
        "tested": tested["table"],
        "tested_sha256": tested["manifest_sha256"],
        "test_rows": first["metrics"]["rows"],
        "draw_sha256": " ".join(sorted(draws)),
        "encoder": tested["encoder"],
        "weights_sha256": encoder.get("weights_sha256", ""),
        "seed": " ".join(str(cell["config"]["seed"]) for cell in cells),
        "command": sweep_command(found.finished),
    }
