"""Tables of several modalities: who finds whom, do they form one space, what are they worth together?

With two modalities these are a row or two; with eight, 56 ordered pairs are read as a matrix, not as a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from spaner.align.report.measured import Entry, Measured
from spaner.align.report.origin import FROZEN, benches, heading, origin
from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row
from spaner.align.score.intervals import Number
from spaner.align.train.joint import trained_together

CLUSTERS = [
    Column("v_measure", "V-measure", "percent"),
    Column("chance_v_measure", "by chance", "percent"),
    Column("ari", "ARI", "percent"),
    Column("modality", "V of the modality", "percent"),
]
AGREEMENT = [
    Column("centroid", "centroids apart", "cosine"),
    Column("centred", "left after centring", "cosine"),
    Column("mutual_knn", "mutual k-NN", "percent"),
    Column("mutual_knn_chance", "by chance", "percent"),
    Column("cka", "CKA", "cosine"),
    Column("cknna", "CKNNA", "cosine"),
    Column("cknna_chance", "by chance", "cosine"),
    Column("rsa", "RSA", "cosine"),
    Column("a_to_b", "probe, first to second", "percent"),
    Column("b_to_a", "probe, second to first", "percent"),
    Column("by", "partners", "words"),
]
MISSING = [
    Column("joint", "together", "percent"),
    Column("best", "best alone", "percent"),
    Column("gain", "gain", "points"),
    Column("weighted", "weighed by the query", "percent"),
    Column("chance", "chance", "percent"),
    Column("empty", "samples left empty", "percent"),
]


def matrices(entries: Sequence[Entry]) -> list[ReportTable]:
    """Recall@1 of every ordered pair, a matrix for each run of three modalities or more."""
    return [_matrix(entry) for entry in entries if len(entry.run.widths) > 2 and entry.aligned.directions]


def _matrix(entry: Entry) -> ReportTable:
    ways = {(way["query"], way["target"]): way for way in entry.aligned.directions}
    names = list(dict.fromkeys(query for query, _ in ways))
    found = {pair: Number.of(way["recall@1"]) for pair, way in ways.items()}
    about = origin(entry)
    rows = [
        Row(query, OURS, {target: found.get((query, target)) for target in names}, "", about)
        for query in names
    ]
    chances = sorted({f"{100 * way['chance']:.1f}" for way in ways.values()}, key=float)
    return ReportTable(
        f"pairs-{entry.anchor}",
        f"{entry.name}: recall@1, from each modality (rows) to each other (columns), in percent",
        [Column(name, name, "percent") for name in names],
        [("", rows)],
        f"Chance {' to '.join(dict.fromkeys([chances[0], chances[-1]]))} %. {_emergent(entry, names)}",
        "from, to",
    )


def _emergent(entry: Entry, names: Sequence[str]) -> str:
    """Which pairs no loss ever compared, in words."""
    together = {frozenset(pair) for pair in trained_together(entry.run)}
    apart = [f"{a} with {b}" for a, b in combinations(names, 2) if frozenset((a, b)) not in together]
    return f"Emergent, never compared by a loss: {', '.join(apart)}." if apart else "Every pair was trained."


def one_space(entries: Sequence[Entry]) -> ReportTable | None:
    """k-means over the pooled rows of all modalities, against the classes and against the modalities."""
    groups = []
    for bench, members in benches(entries):
        spaces = [(FROZEN, bench.frozen, origin(members[0], frozen=True), "")] if bench.frozen else []
        spaces += [(entry.name, entry.aligned, origin(entry), entry.anchor) for entry in members]
        rows = [
            Row(
                name,
                OURS,
                {c.key: Number.of(space.coherence["clusters"][c.key]) for c in CLUSTERS},
                "",
                about,
                anchor,
            )
            for name, space, about, anchor in spaces
            if space.coherence is not None
        ]
        if rows:
            groups.append((heading(bench), rows))
    if not groups:
        return None
    return ReportTable(
        "coherence",
        "Do the rows of all modalities group by class?",
        CLUSTERS,
        groups,
        "k-means over the pooled rows (of text every template), one cluster a class. "
        "V-measure against the classes is best at 100 and near its chance in a collapsed space; "
        "against the modality 0 is best.",
        "space",
    )


def agreement(entries: Sequence[Entry]) -> ReportTable | None:
    """Distances and agreement of every pair of modalities, run by run."""
    groups = [
        (
            f"{entry.name} · {heading(entry.bench)}",
            [_agreeing(pair, entry) for pair in entry.aligned.coherence["pairs"]],
        )
        for entry in entries
        if entry.aligned.coherence is not None
    ]
    if not groups:
        return None
    return ReportTable(
        "agreement",
        "How far apart are modalities, and do they agree on who is near whom?",
        AGREEMENT,
        groups,
        "Left after centring: distance of partners once each side's mean is removed, over that of strangers; "
        "1 is no better than strangers. CKA and RSA are 0 by chance. Probes are balanced accuracies; a dash: "
        "many modalities. Partners are rows of one id, else class means.",
        "pair",
    )


def _agreeing(pair: dict[str, Any], entry: Entry) -> Row:
    def value(name: str, key: str = "value") -> Cell:
        return Number.of(pair[name][key]) if name in pair else None

    numbers = {
        "centroid": value("gaps", "centroid"),
        "centred": value("gaps"),
        "mutual_knn": value("mutual_knn"),
        "mutual_knn_chance": value("mutual_knn", "chance"),
        "cka": value("cka"),
        "cknna": value("cknna"),
        "cknna_chance": value("cknna", "chance"),
        "rsa": value("rsa"),
        "a_to_b": value("transfer", "a_to_b"),
        "b_to_a": value("transfer", "b_to_a"),
        "by": f"{pair['samples']:,} by {pair['by']}",
    }
    return Row(f"{pair['a']} – {pair['b']}", OURS, numbers, "", origin(entry), entry.anchor)


def together(entries: Sequence[Entry]) -> ReportTable | None:
    """The modalities of one sample asked together, while rows go missing."""
    groups = [
        (_participants(entry.name, entry.aligned), _curve(entry.aligned.joint, entry))
        for entry in entries
        if entry.aligned.joint is not None
    ]
    if not groups:
        return None
    return ReportTable(
        "together",
        "What are the modalities of one sample worth together?",
        MISSING,
        groups,
        "Accuracy of class names by the centre of a sample's modalities; gain: "
        "minus the best single one on the same rows, found in hindsight. Missing rows are left out by lot; "
        "a sample with nothing left is right by chance.",
        "rows missing",
    )


def _participants(name: str, space: Measured) -> str:
    joint = space.joint or {}
    alone = (
        f"; without {', '.join(joint['alone'])}, whose rows have ids of their own" if joint["alone"] else ""
    )
    return f"{name}: {', '.join(joint['modalities'])}, {joint['samples']:,} samples{alone}"


def _curve(joint: dict[str, Any], entry: Entry) -> list[Row]:
    rows, about = [], origin(entry)
    for plain, weighted in zip(joint["curve"], joint["weighted"], strict=True):
        numbers: dict[str, Cell] = {
            key: Number.of(plain[key]) for key in ("joint", "gain", "chance", "empty")
        }
        numbers |= {
            "best": Number.of(plain["single"][plain["best"]]),
            "weighted": Number.of(weighted["joint"]),
        }
        name = f"{100 * plain['missing']:.0f} %, best {plain['best']}"
        rows.append(Row(name, OURS, numbers, "", about, entry.anchor))
    return rows
