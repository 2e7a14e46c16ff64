"""Domain shift (the paper's Table 4): runs of one data set, scored on caches of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spaner import cache as caches
from spaner.align.paper import published
from spaner.align.report.origin import origin
from spaner.align.report.run import RESAMPLES, Entry
from spaner.align.report.table import APART, OURS, PUBLISHED, Column, Number, Row, Table
from spaner.align.report.tables import why_apart
from spaner.align.score import evaluate
from spaner.align.score.intervals import bootstrap
from spaner.errors import SpanerError


def shift_table(entries: Sequence[Entry], paths: Sequence[Path]) -> Table:
    """Text accuracy of the first run's frozen encoder and of every run on every cache.

    Raises:
        Mismatch: a cache was made by another encoder than a run. CacheError: a table is missing.
    """
    columns: list[Column] = []
    frozen: dict[str, Number | None] = {}
    scores: dict[str, dict[str, Number | None]] = {entry.name: {} for entry in entries}
    for path in paths:
        with caches.open(path) as opened:
            table = evaluate.tested_table(opened, None)
            columns.append(Column(opened.dataset, opened.dataset, "percent"))
            for entry in entries:
                scores[entry.name][opened.dataset] = _score(entry, opened, table)
            if entries[0].bench.frozen is not None:
                frozen[opened.dataset] = _accuracy(evaluate.Frozen(), opened, table)
    rows = [Row("frozen encoder", OURS, frozen, "", origin(entries[0], frozen=True))] if frozen else []
    rows += [Row(e.name, OURS, scores[e.name], "", origin(e), e.anchor) for e in entries]
    note = "Text retrieval; trained where the runs were trained, tested there only."
    groups = [("", rows), *_published(entries, [column.key for column in columns])]
    return Table("shift", "Domain shift", columns, groups, note)


def _score(entry: Entry, cache: caches.Cache, table: str) -> Number | None:
    try:
        for needed in (table, *evaluate.asking(cache).values()):
            entry.run.check(cache.table(needed).manifest)
        return _accuracy(entry.run, cache, table)
    except SpanerError as error:
        raise type(error)(f"run {entry.name} on {cache.dataset}: {error}") from None


def _accuracy(space: evaluate.Embedder, cache: caches.Cache, table: str) -> Number | None:
    credit = evaluate.matches(space, cache, table)["text"].credit
    return Number.of(bootstrap(credit, resamples=RESAMPLES))


def _published(entries: Sequence[Entry], names: Sequence[str]) -> list[tuple[str, list[Row]]]:
    paper = published.benchmark("imagenet")
    why = "; ".join(dict.fromkeys(filter(None, (why_apart(entry, paper) for entry in entries))))
    source = {"command": f"{published.paper()['source']}, Table 4"}
    rows = [
        Row(
            row["name"],
            APART if why else PUBLISHED,
            {name: Number(row[name]) for name in names if name in row},
            why,
            source,
        )
        for row in paper["rows"]
        if any(name in row for name in names)
    ]
    return [(f"{paper['title']} · Table 4 of the paper", rows)] if rows else []
