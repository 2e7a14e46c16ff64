"""The paper's Tables 1, 2 and 4 and what stands beside them: columns, numbers, published rows.

    accuracy_numbers, cosine_numbers    from `evaluate`'s result, or a report's with intervals, to a row
    tables                              all tables of the measured runs of a report
    shift_table                         runs of one data set, scored on caches of others

`spaner reproduce` fills the same columns by the same functions. Runs of one group differ in nothing but the
seed of training when a mean is formed. Tables of the space itself are made by `space_tables`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.report import many_tables, published, space_tables
from spaner.align.report.measured import KINDS, RESAMPLES, Entry
from spaner.align.report.origin import FROZEN, benches, heading, origin, why_apart
from spaner.align.report.table import APART, OURS, Cell, Column, ReportTable, Row, averaged
from spaner.align.score import evaluate
from spaner.align.score.intervals import Number, bootstrap, paired_difference
from spaner.errors import SpanerError

ACCURACY = [
    Column("text", "text", "percent"),
    Column("semantic", "semantic", "percent"),
    Column("gap", "gap", "points"),
    Column("text_gain", "text vs frozen", "points"),
    Column("semantic_gain", "semantic vs frozen", "points"),
    Column("tie_aware", "tie-aware", "percent"),
    Column("ceiling", "ceiling", "percent"),
    Column("chance", "chance", "percent"),
]
CONTROLS = {
    "cosine": ("positive_cosine", "cosine"),
    "margin": ("margin", "margin"),
    "negative": ("negative_cosine", "mean negative"),
    "centred": ("centred_cosine", "centred"),
}
"""Key -> the score's name in `evaluate`'s result, and the column's title."""
COSINE = [
    Column(f"{kind}_{key}", f"{kind} {title}", "cosine")
    for kind in KINDS
    for key, (_, title) in CONTROLS.items()
]

CALIBRATION = [
    Column("ece", "ECE", "percent"),
    Column("nll", "NLL", "nats"),
    Column("ece_fitted", "ECE fitted", "percent"),
    Column("nll_fitted", "NLL fitted", "nats"),
    Column("temperature", "temperature", "factor"),
    Column("chance_nll", "chance NLL", "nats"),
]

Scores = Mapping[str, Any]
"""`evaluate`'s result, its numbers plain or with intervals; a kind, or a number, may be None or absent."""


def accuracy_numbers(scores: Scores) -> dict[str, Cell]:
    """Table 1: text and semantic retrieval, the gap between them, and what they should be read against."""
    return {
        **{kind: _score(scores, kind, "accuracy") for kind in KINDS},
        "gap": Number.of(scores.get("gap")),
        "tie_aware": _score(scores, "text", "accuracy_tie_aware"),
        "ceiling": Number.of(scores.get("ceiling")),
        "chance": Number.of(scores.get("chance")),
    }


def cosine_numbers(scores: Scores) -> dict[str, Cell]:
    """Table 2: the average cosine to the own class, and what shows a collapse beside it."""
    return {
        f"{kind}_{key}": _score(scores, kind, name) for kind in KINDS for key, (name, _) in CONTROLS.items()
    }


def shift_numbers(scored: Mapping[str, Scores]) -> dict[str, Cell]:
    """Table 4: text accuracy by data set."""
    return {name: _score(scores, "text", "accuracy") for name, scores in scored.items()}


def _score(scores: Scores, kind: str, name: str) -> Number | None:
    return Number.of((scores.get(kind) or {}).get(name))


def tables(entries: Sequence[Entry]) -> list[ReportTable]:
    """All tables of the measured runs; those without a row are left out."""
    named = [entry for entry in entries if entry.aligned.matches]
    found = [_accuracy(named), _cosines(named), _calibration(named)] if named else []
    found += [space_tables.pairs(entries), space_tables.directions(entries, _published)]
    found += many_tables.matrices(entries)
    more = [
        space_tables.captions(entries),
        many_tables.one_space(entries),
        many_tables.agreement(entries),
        many_tables.together(entries),
    ]
    found += [table for table in more if table is not None]
    found += [_differences(named)] if len(named) > 1 else []
    return [table for table in found if table.rows]


def _accuracy(entries: Sequence[Entry]) -> ReportTable:
    def numbers(entry: Entry, *, frozen: bool) -> dict[str, Cell]:
        gains = {} if frozen or not entry.gains else entry.gains
        versus = {f"{kind}_gain": Number.of(gains.get(kind)) for kind in KINDS}
        return accuracy_numbers(_scores(entry, frozen=frozen)) | versus

    return ReportTable(
        "accuracy",
        "Class retrieval",
        ACCURACY,
        [*_groups(entries, numbers), _published(entries, "imagenet", ["text", "semantic", "gap"])],
        "Text asks with “a photo of a {}.”, semantic with the bare class name; gap is text − semantic. In "
        "percent and points. Small figures: 95 % bootstrap interval over test rows. “vs frozen” compares row "
        "by row.",
    )


def _cosines(entries: Sequence[Entry]) -> ReportTable:
    def numbers(entry: Entry, *, frozen: bool) -> dict[str, Cell]:
        return cosine_numbers(_scores(entry, frozen=frozen))

    return ReportTable(
        "cosine",
        "Cosine to the own class",
        COSINE,
        [*_groups(entries, numbers), _published(entries, "imagenet", ["text_cosine", "semantic_cosine"])],
        "A collapsed space has cosine 1 to everything. So beside each cosine: "
        "the margin to the hardest wrong class, the mean cosine to all wrong classes, "
        "and the cosine after both means are removed.",
    )


def _calibration(entries: Sequence[Entry]) -> ReportTable:
    def numbers(entry: Entry, *, frozen: bool) -> dict[str, Cell]:
        scores = _scores(entry, frozen=frozen)
        return {
            **{key: _score(scores, "text", key) for key in ("ece", "nll", "ece_fitted", "nll_fitted")},
            "temperature": None if frozen else Number.of(entry.run.temperature),
            "chance_nll": Number(math.log(len(entry.bench.class_names))),
        }

    return ReportTable(
        "calibration",
        "Confidence in text retrieval",
        CALIBRATION,
        _groups(entries, numbers),
        "ECE in percent over 15 bins, NLL in nats, at the logit scale that the run reports; fitted: after "
        "division by one temperature, found on validation rows. A space that knows nothing has ECE 0 and "
        "NLL ln C.",
    )


def _scores(entry: Entry, *, frozen: bool) -> Scores:
    if not frozen:
        return entry.aligned.scores
    assert entry.bench.frozen is not None
    return entry.bench.frozen.scores


def _groups(entries: Sequence[Entry], numbers: Callable[..., dict[str, Cell]]) -> list[tuple[str, list[Row]]]:
    """Per bench: the frozen encoder, every run, and means over runs that differ in their seed alone."""
    groups = []
    for bench, members in benches(entries):
        rows = []
        if bench.frozen is not None:
            about = origin(members[0], frozen=True)
            rows.append(Row(FROZEN, OURS, numbers(members[0], frozen=True), "", about))
        for entry in members:
            mine = numbers(entry, frozen=False)
            rows.append(Row(entry.name, OURS, mine, "", origin(entry), entry.anchor))
        groups.append((heading(bench), rows + _means(members, numbers)))
    return groups


def _means(members: Sequence[Entry], numbers: Callable[..., dict[str, Cell]]) -> list[Row]:
    alike: dict[str, list[Entry]] = {}
    for entry in members:
        same = entry.run.config.replace(seed=0).to_json()
        key = repr((same, entry.run.draw, entry.run.tables, sorted(entry.run.widths)))
        alike.setdefault(key, []).append(entry)
    rows = []
    for group in alike.values():
        if len({entry.run.config.seed for entry in group}) < 2:
            continue
        seeds = ", ".join(str(entry.run.config.seed) for entry in group)
        mean = averaged([numbers(entry, frozen=False) for entry in group])
        rows.append(
            Row(f"mean of seeds {seeds} (± s.d.)", OURS, mean, "", origin(group[0]) | {"seed": seeds})
        )
    return rows


def _published(
    entries: Sequence[Entry], name: str, columns: Sequence[str], where: str = ""
) -> tuple[str, list[Row]]:
    """The paper's rows, marked not comparable where no run is, with every run's reasons."""
    paper = published.benchmark(name)
    by_reason: dict[str, list[str]] = {}
    for entry in entries:
        by_reason.setdefault(why_apart(entry, paper), []).append(entry.name)
    several = len(by_reason) > 1
    said = [f"{', '.join(runs)}: {why}" if several else why for why, runs in by_reason.items() if why]
    return published.group(name, columns, "; ".join(said), where=where, apart="" not in by_reason)


def _differences(entries: Sequence[Entry]) -> ReportTable:
    """Every run against the first on the same rows; runs tested elsewhere are listed with the reason."""
    first, rows = entries[0], []
    for entry in entries[1:]:
        name = f"{entry.name} − {first.name}"
        if entry.bench is not first.bench:
            mine, other = (e.bench.tables[e.bench.table][:12] for e in (entry, first))
            why = f"tested on other rows ({entry.bench.table} {mine}, {first.bench.table} {other})"
            rows.append(Row(name, APART, {}, why, origin(entry), entry.anchor))
        else:
            rows.append(Row(name, OURS, _difference(entry, first), "", origin(entry), entry.anchor))
    columns = [Column(kind, f"{kind} accuracy", "points") for kind in KINDS]
    columns += [Column(f"{kind}_margin", f"{kind} margin", "cosine") for kind in KINDS]
    note = "Paired on the same test rows: an interval that leaves out 0 says that the two runs differ there."
    return ReportTable("differences", "Between runs", columns, [("", rows)], note)


def _difference(entry: Entry, first: Entry) -> dict[str, Cell]:
    numbers: dict[str, Cell] = {}
    for kind in KINDS:
        a, b = (each.aligned.matches.get(kind) for each in (entry, first))
        if a is None or b is None:
            continue
        numbers[kind] = Number.of(paired_difference(a.credit, b.credit, resamples=RESAMPLES))
        if a.has_cosines and b.has_cosines:
            margins = (a.positive - a.hardest, b.positive - b.hardest)
            numbers[f"{kind}_margin"] = Number.of(paired_difference(*margins, resamples=RESAMPLES))
    return numbers


def shift_table(entries: Sequence[Entry], paths: Sequence[Path]) -> ReportTable:
    """Text accuracy of the first run's frozen encoder and of every run on every cache.

    Raises:
        Mismatch: a cache was made by another encoder than a run. CacheError: a table is missing.
    """
    columns: list[Column] = []
    frozen: dict[str, Cell] = {}
    scores: dict[str, dict[str, Cell]] = {entry.name: {} for entry in entries}
    for path in paths:
        with caches.open(path) as opened:
            table = evaluate.tested_table(opened, None)
            columns.append(Column(opened.dataset, opened.dataset, "percent"))
            for entry in entries:
                scores[entry.name][opened.dataset] = _shifted(entry, opened, table)
            if entries[0].bench.frozen is not None:
                frozen[opened.dataset] = _accuracy_on(evaluate.Frozen(), opened, table)
    rows = [Row(FROZEN, OURS, frozen, "", origin(entries[0], frozen=True))] if frozen else []
    rows += [Row(e.name, OURS, scores[e.name], "", origin(e), e.anchor) for e in entries]
    groups = [("", rows)]
    paper = _published(entries, "imagenet", [column.key for column in columns], "Table 4")
    note = "Text retrieval; trained where the runs were trained, tested there only."
    return ReportTable("shift", "Domain shift", columns, groups + ([paper] if paper[1] else []), note)


def _shifted(entry: Entry, cache: caches.Cache, table: str) -> Number | None:
    try:
        for needed in (table, *evaluate.asking(cache).values()):
            entry.run.check(cache.table(needed).manifest)
        return _accuracy_on(entry.run, cache, table)
    except SpanerError as error:
        raise type(error)(f"run {entry.name} on {cache.dataset}: {error}") from None


def _accuracy_on(space: Any, cache: caches.Cache, table: str) -> Number | None:
    credit = evaluate.matches(space, cache, table)["text"].credit
    return Number.of(bootstrap(credit, resamples=RESAMPLES))
