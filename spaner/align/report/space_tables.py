"""Tables of the space itself: do the modalities share it, does each find the others (Table 3)?

A method without a space, a head on the scores alone, has no row here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from spaner.align.report.measured import Bench, Entry, Measured
from spaner.align.report.origin import FROZEN, benches, heading, origin
from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row
from spaner.align.score.intervals import Number
from spaner.align.score.negation import share_of

PAIRS = [
    Column("modality_gap", "modality gap", "cosine"),
    Column("separability", "separability", "percent"),
    Column("uniformity_a", "uniformity, first", "cosine"),
    Column("uniformity_b", "uniformity, second", "cosine"),
]
DIRECTIONS = [
    *(Column(f"recall@{k}", f"recall@{k}", "percent") for k in (1, 5, 10)),
    Column("mAP", "mAP", "percent"),
    Column("chance", "chance", "percent"),
    Column("hubness", "hubness", "cosine"),
    Column("queries", "queries", "count"),
    Column("targets", "targets", "count"),
]

WAYS = {"image_to_caption": "image → caption", "caption_to_image": "caption → image"}
CAPTIONS = [
    *(
        Column(f"{way} {number}@{k}", f"{title}, {number}@{k}", "percent")
        for way, title in WAYS.items()
        for k in (1, 5, 10)
        for number in ("recall", "chance")
        if number == "recall" or k == 1
    ),
    Column("negation", "told from its negation", "percent"),
]

Published = Callable[[Sequence[Entry], str, Sequence[str]], tuple[str, list[Row]]]
"""(runs, benchmark, columns) -> the paper's rows, marked; `tables` passes its own."""


def pairs(entries: Sequence[Entry]) -> ReportTable:
    """Modality gap, separability and uniformity of every pair of modalities."""
    return ReportTable(
        "modality_gap",
        "Modality gap, before and after",
        PAIRS,
        _by_space(entries, lambda s: {f"{p['a']} – {p['b']}": p for p in s.pairs}, PAIRS),
        "Distance of the two centroids on the unit sphere (Liang et al. 2022); "
        "how well a plane tells the modalities apart, cross-validated (50 % = it cannot); "
        "uniformity of each (Wang & Isola 2020; 0 = collapsed).",
    )


def captions(entries: Sequence[Entry]) -> ReportTable | None:
    """Recall between images and captions, by image and not by class, and negation; None without either."""
    groups = []
    for bench, members in benches(entries):
        spaces = _spaces(bench, members)
        rows = [
            Row(name, OURS, _said(space.beside), "", about, anchor)
            for name, space, about, anchor in spaces
            if space.beside
        ]
        groups += [(heading(bench), rows)] if rows else []
    if not groups:
        return None
    return ReportTable(
        "captions",
        "Images and their captions",
        CAPTIONS,
        groups,
        "An image is right where any of its captions is among the best; chance is a blind draw's. Told from "
        "its negation: test rows nearer to their caption (without captions, that of their class) than to its "
        "negated form, by chance 50 %.",
        "space",
    )


def _said(beside: Mapping[str, Any]) -> dict[str, Cell]:
    numbers: dict[str, Cell] = {"negation": Number.of(share_of(beside))}
    for way in WAYS if "captions" in beside else ():
        found = beside["captions"][way]
        numbers |= {f"{way} {name}": Number.of(value) for name, value in found.items()}
    return numbers


def directions(entries: Sequence[Entry], published: Published) -> ReportTable:
    """Every modality looks for every other; the paper's audio rows where a run heard sound."""

    def ways(space: Measured) -> dict[str, Any]:
        return {f"{way['query']} → {way['target']}": way for way in space.directions}

    heard = [entry for entry in entries if "audio" in entry.run.widths]
    return ReportTable(
        "retrieval",
        "Retrieval between modalities",
        DIRECTIONS,
        _by_space(entries, ways, DIRECTIONS) + (_published_audio(heard, published) if heard else []),
        "Text is one row per class, its bare name. Relevant means of the same class; in a list without "
        "classes, of the same id.",
    )


def _by_space(
    entries: Sequence[Entry], named: Callable[[Measured], dict[str, Any]], columns: Sequence[Column]
) -> list[tuple[str, list[Row]]]:
    """A group per space, in it a row for each of its named measurements."""
    groups = []
    for bench, members in benches(entries):
        for name, space, about, anchor in _spaces(bench, members):
            rows = [
                Row(title, OURS, {c.key: Number.of(found.get(c.key)) for c in columns}, "", about, anchor)
                for title, found in named(space).items()
            ]
            if rows:
                groups.append((f"{name} · {heading(bench)}", rows))
    return groups


def _spaces(bench: Bench, members: Sequence[Entry]) -> Iterator[tuple[str, Measured, dict[str, Any], str]]:
    """(name, space, origin, anchor) of the frozen encoder, if it has a common space, and of every run."""
    if bench.frozen is not None:
        yield FROZEN, bench.frozen, origin(members[0], frozen=True), ""
    for entry in members:
        yield entry.name, entry.aligned, origin(entry), entry.anchor


def _published_audio(entries: Sequence[Entry], published: Published) -> list[tuple[str, list[Row]]]:
    """Table 3 as directions: what the paper calls semantic is audio looking for class names."""
    ways = {"semantic": "audio → text", "semantic_to_audio": "text → audio"}
    ways |= {"image_to_audio": "image → audio"}
    groups = []
    for name in ("imagenet-esc-19", "imagenet-esc-27"):
        title, rows = published(entries, name, list(ways))
        turned = [
            dataclasses.replace(row, name=f"{row.name}: {way}", numbers={"recall@1": row.numbers[key]})
            for row in rows
            for key, way in ways.items()
            if key in row.numbers
        ]
        groups.append((title, turned))
    return groups
