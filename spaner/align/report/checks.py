"""The three checks as parts of a report: what the prompt contributes, more modalities, other data sets.

Reads the folders that `spaner ablate prompt`, `spaner scale` and `spaner transfer` wrote, and makes a table
or two of each. Nothing is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row
from spaner.align.score.intervals import Number
from spaner.errors import RunError

FILES = ("ablation.json", "scale.json", "transfer.json")


@dataclass(frozen=True)
class Check:
    """A part of the page: its heading, a line about it, its tables, and what its command wrote."""

    title: str
    about: str
    tables: list[ReportTable]
    told: dict[str, Any]

    @property
    def anchor(self) -> str:
        """Of its part of the page."""
        return self.tables[0].key


def read(folders: Sequence[Path]) -> list[Check]:
    """Every folder's check.

    Raises:
        RunError: a folder that no check wrote, or a file that is none.
    """
    return [_read(folder, number) for number, folder in enumerate(folders, 1)]


def _read(folder: Path, number: int) -> Check:
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise RunError(
            f"check {folder}: found none of {', '.join(FILES)}; expected a folder of `spaner ablate prompt`, "
            "`spaner scale` or `spaner transfer`; run one of them with --out"
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return {"prompt": prompt, "scale": scale, "transfer": transfer}[told["check"]](
            told, f"check-{number}"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RunError(f"check {folder}: {file.name} is not a result; run its command again") from None


def prompt(told: dict[str, Any], key: str) -> Check:
    """A row a variant, and what the reference is better by."""
    columns = [
        Column("text", "text", "percent"),
        Column("text_lost", "lost, over rows", "points"),
        Column("text_seeds", "lost, over seeds", "points"),
        Column("semantic", "semantic", "percent"),
        Column("semantic_lost", "lost, over rows", "points"),
        Column("semantic_seeds", "lost, over seeds", "points"),
        Column("pairs", "all pairs", "percent"),
        Column("parameters", "parameters", "count"),
    ]
    title = f"{told['dataset']}, {told['title']}: {', '.join(told['modalities'])}; {len(told['seeds'])} seeds"
    rows = [Row(row["variant"], OURS, _variant(row, len(told["seeds"]))) for row in told["rows"]]
    if told["zero_shot"]:
        rows.append(Row("frozen encoder", OURS, {kind: Number(v) for kind, v in told["zero_shot"].items()}))
    note = "Lost: the reference minus the variant on the same rows and draws; an interval with 0 in it says "
    note += "that what the variant takes away was not needed. All pairs: mean recall@1 between modalities."
    about = "The same training without the shared prompt, with more of it, and with a wrong one."
    return Check(
        "What the prompt contributes",
        about,
        [ReportTable(key, title, columns, [("", rows)], note, "variant")],
        told,
    )


def _variant(row: dict[str, Any], seeds: int) -> dict[str, Cell]:
    numbers: dict[str, Cell] = {"parameters": Number(row["parameters"])}
    for kind in ("text", "semantic"):
        lost = row[f"{kind}_lost"]
        numbers[kind] = Number(row[kind]["mean"], std=row[kind]["std"], n=seeds)
        numbers[f"{kind}_lost"] = Number(lost["mean"], lost["low"], lost["high"])
        numbers[f"{kind}_seeds"] = Number(lost["mean"], std=lost["std"], n=seeds)
    if row["pairs"]:
        numbers["pairs"] = Number(row["pairs"]["mean"], std=row["pairs"]["std"], n=seeds)
    return numbers


def scale(told: dict[str, Any], key: str) -> Check:
    """A row for every number of modalities, the two ways in groups."""
    columns = [
        Column("seconds", "seconds", "amount"),
        Column("step_ms", "ms a step", "amount"),
        Column("megabytes", "MB", "amount"),
        Column("parameters", "parameters", "count"),
        Column("text", "text", "percent"),
        Column("semantic", "semantic", "percent"),
        Column("trained", "trained pairs", "percent"),
        Column("emergent", "emergent pairs", "percent"),
        Column("chance", "chance", "percent"),
    ]
    ways = {
        "joint": "trained together, every pair compared",
        "extended": "joined one by one to a frozen core, paired with the first",
    }
    groups = [
        (title, [_step(row, len(told["seeds"])) for row in told["rows"] if row["way"] == way])
        for way, title in ways.items()
    ]
    title = f"{told['dataset']}, {told['title']}: {', '.join(told['modalities'])}"
    note = "Pairs: mean recall@1 over ordered pairs; emergent ones were never compared by a loss. MB: "
    note += "parameters, slopes, the optimiser's moments, and what a step keeps for its backward pass."
    about = "Two to eight modalities from one cache: what they cost and what they find."
    table = ReportTable(key, title, columns, groups, note, "modalities")
    return Check("More modalities", about, [table], told)


def _step(row: dict[str, Any], seeds: int) -> Row:
    keys = (
        "seconds",
        "step_ms",
        "megabytes",
        "parameters",
        "text",
        "semantic",
        "trained",
        "emergent",
        "chance",
    )
    numbers: dict[str, Cell] = {}
    for name in keys:
        value = row[name]
        std = None if value is None or seeds < 2 else value[1]
        numbers[name] = None if value is None else Number(value[0], std=std, n=seeds)
    more = f", + {row['added']}" if row["modalities"] > 2 else ""
    return Row(f"{row['modalities']}{more}", OURS, numbers)


def transfer(told: dict[str, Any], key: str) -> Check:
    """A group a data set, a row a run; and base-to-new classes."""
    columns = [
        Column("text", "text", "percent"),
        Column("text_gain", "gain on frozen", "points"),
        Column("semantic", "semantic", "percent"),
        Column("semantic_gain", "gain on frozen", "points"),
        Column("gap", "gap", "points"),
        Column("v_measure", "V-measure", "percent"),
        Column("v_gain", "gain on frozen", "points"),
        Column("chance", "chance", "percent"),
    ]
    groups: dict[str, list[Row]] = {}
    for row in told["rows"]:
        groups.setdefault(f"{row['dataset']}, {row['classes']} classes", []).append(_asked(row))
    note = (
        "Gains are paired over test rows, with 95 % intervals: below 0 a run has lost what its encoder knew."
    )
    tables = [ReportTable(key, "On data sets that no step has seen", columns, list(groups.items()), note)]
    halves = [row for row in told["base_to_new"] if "text" in row]
    if halves:
        kinds = [
            Column(f"{who}{name}", f"{who}{name}", "percent")
            for who in ("", "frozen ")
            for name in ("base", "new", "H")
        ]
        rows = [_halved(row) for row in halves]
        note = (
            "Trained on the first half of the classes, asked about both halves apart; H is the harmonic mean."
        )
        tables.append(ReportTable(f"{key}-halves", "New classes", kinds, [("text retrieval", rows)], note))
    about = "Trained here, asked there, without training."
    return Check("Other data sets, other classes", about, tables, told)


def _asked(row: dict[str, Any]) -> Row:
    if row["reason"] is not None:
        return Row(row["run"], OURS, {"text": None}, row["reason"])
    numbers: dict[str, Cell] = {
        name: Number.of(row[name]) for name in ("text", "semantic", "gap", "v_measure", "chance")
    }
    gains = row["gains"] or {}
    for kind in ("text", "semantic"):
        if kind in gains:
            numbers[f"{kind}_gain"] = Number(gains[kind]["mean"], gains[kind]["low"], gains[kind]["high"])
    numbers["v_gain"] = Number.of(gains.get("v_measure"))
    return Row(row["run"], OURS, numbers)


def _halved(row: dict[str, Any]) -> Row:
    frozen = (row["zero_shot"] or {}).get("text") or {}
    numbers: dict[str, Cell] = {name: Number.of(row["text"][name]) for name in ("base", "new", "H")}
    numbers |= {f"frozen {name}": Number.of(frozen.get(name)) for name in ("base", "new", "H")}
    return Row(row["run"], OURS, numbers)
