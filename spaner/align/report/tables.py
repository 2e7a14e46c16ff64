"""Which tables a report has, and which published rows stand in them (see `published`).

Runs of one group differ in nothing but the seed of training when a mean is formed; runs on other splits or
encoders stand side by side, and `apart` says why.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spaner.align.paper import published
from spaner.align.report.origin import origin
from spaner.align.report.run import RESAMPLES, Bench, Entry, Measured
from spaner.align.report.table import APART, OURS, PUBLISHED, Column, Number, Row, Table
from spaner.align.score.intervals import paired_difference

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
COSINE = [
    Column(f"{kind}_{key}", f"{kind} {title}", "cosine")
    for kind in ("text", "semantic")
    for key, title in [
        ("cosine", "cosine"),
        ("margin", "margin"),
        ("negative", "mean negative"),
        ("centred", "centred"),
    ]
]
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


def tables(entries: Sequence[Entry]) -> list[Table]:
    """All tables of the measured runs."""
    found = [_accuracy(entries), _cosines(entries), _pairs(entries), _directions(entries)]
    return found + ([_differences(entries)] if len(entries) > 1 else [])


def apart(entries: Sequence[Entry]) -> list[str]:
    """Why runs are shown side by side and never averaged; empty where they differ in nothing that matters."""
    facts: dict[str, Callable[[Entry], str]] = {
        "data set": lambda e: e.bench.dataset,
        "tested table": lambda e: f"{e.bench.table} {e.bench.tables[e.bench.table][:12]}",
        "training draw": lambda e: e.run.draw["sha256"][:12],
        "encoder": lambda e: _encoder(e),
    }
    lines = []
    for what, fact in facts.items():
        by_fact: dict[str, list[str]] = {}
        for entry in entries:
            by_fact.setdefault(fact(entry), []).append(entry.name)
        if len(by_fact) > 1:
            listed = "; ".join(f"{', '.join(names)}: {value}" for value, names in by_fact.items())
            lines.append(f"different {what} ({listed})")
    return lines


def _encoder(entry: Entry) -> str:
    spec = entry.run.encoders[entry.bench.table.split("/")[0]]
    return f"{spec.name} {spec.weights} {spec.weights_sha256[:12]}".strip()


def benches(entries: Sequence[Entry]) -> list[tuple[Bench, list[Entry]]]:
    """Runs grouped by what they were tested on, in order of appearance."""
    grouped: dict[int, tuple[Bench, list[Entry]]] = {}
    for entry in entries:
        grouped.setdefault(id(entry.bench), (entry.bench, []))[1].append(entry)
    return list(grouped.values())


def heading(bench: Bench) -> str:
    """What a bench is, in a line."""
    return f"{bench.dataset} · {bench.table} · {bench.rows:,} rows · {len(bench.class_names):,} classes"


def _accuracy(entries: Sequence[Entry]) -> Table:
    def numbers(entry: Entry, *, frozen: bool) -> dict[str, Number | None]:
        space = entry.bench.frozen if frozen else entry.aligned
        assert space is not None
        gains = {} if frozen or not entry.gains else entry.gains
        classes = len(entry.bench.class_names)
        return {
            "text": Number.of(space.numbers["text"]["accuracy"]),
            "semantic": Number.of(space.numbers["semantic"]["accuracy"]),
            "gap": Number.of(space.gap),
            **{f"{kind}_gain": Number.of(gain) for kind, gain in gains.items()},
            "tie_aware": Number.of(space.numbers["text"]["accuracy_tie_aware"]),
            "ceiling": Number.of((entry.run.metrics or {}).get("ceiling")),
            "chance": Number(1 / classes),
        }

    return Table(
        "accuracy",
        "Class retrieval",
        ACCURACY,
        _groups(entries, numbers) + _published(entries, "imagenet", ["text", "semantic", "gap"]),
        "Text asks with “a photo of a {}.”, semantic with the bare class name; gap is text − semantic. In "
        "percent "
        "and points. Small figures: 95 % bootstrap interval over test rows. “vs frozen” compares row by row.",
    )


def _cosines(entries: Sequence[Entry]) -> Table:
    names = {"cosine": "positive_cosine", "margin": "margin"}
    names |= {"negative": "negative_cosine", "centred": "centred_cosine"}

    def numbers(entry: Entry, *, frozen: bool) -> dict[str, Number | None]:
        space = entry.bench.frozen if frozen else entry.aligned
        assert space is not None
        return {
            f"{kind}_{key}": Number.of(space.numbers[kind][name])
            for kind in ("text", "semantic")
            for key, name in names.items()
        }

    return Table(
        "cosine",
        "Cosine to the own class",
        COSINE,
        _groups(entries, numbers) + _published(entries, "imagenet", ["text_cosine", "semantic_cosine"]),
        "A collapsed space has cosine 1 to everything. So beside each cosine: the margin to the hardest "
        "wrong "
        "class, the mean cosine to all wrong classes, and the cosine after both means are removed.",
    )


def _groups(
    entries: Sequence[Entry], numbers: Callable[..., dict[str, Number | None]]
) -> list[tuple[str, list[Row]]]:
    """Per bench: the frozen encoder, every run, and means over runs that differ in their seed alone."""
    groups = []
    for bench, members in benches(entries):
        rows = []
        if bench.frozen is not None:
            about = origin(members[0], frozen=True)
            rows.append(Row("frozen encoder", OURS, numbers(members[0], frozen=True), "", about))
        for entry in members:
            mine = numbers(entry, frozen=False)
            rows.append(Row(entry.name, OURS, mine, "", origin(entry), entry.anchor))
        groups.append((heading(bench), rows + _means(members, numbers)))
    return groups


def _means(members: Sequence[Entry], numbers: Callable[..., dict[str, Number | None]]) -> list[Row]:
    alike: dict[str, list[Entry]] = {}
    for entry in members:
        same = entry.run.config.replace(seed=0).to_json()
        key = repr((same, entry.run.draw, entry.run.tables, sorted(entry.run.widths)))
        alike.setdefault(key, []).append(entry)
    rows = []
    for group in alike.values():
        if len({entry.run.config.seed for entry in group}) < 2:
            continue
        found = [numbers(entry, frozen=False) for entry in group]
        mean = {key: _mean([n[key] for n in found]) for key in found[0]}
        seeds = ", ".join(str(entry.run.config.seed) for entry in group)
        about = origin(group[0]) | {"seed": seeds}
        rows.append(Row(f"mean of seeds {seeds} (± s.d.)", OURS, mean, "", about))
    return rows


def _mean(numbers: Sequence[Number | None]) -> Number | None:
    """Mean, with one standard deviation over seeds on either side."""
    values = [n.value for n in numbers if n is not None]
    if len(values) < len(numbers):
        return None
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    return Number(mean, mean - spread, mean + spread)


def _published(entries: Sequence[Entry], name: str, columns: Sequence[str]) -> list[tuple[str, list[Row]]]:
    """The paper's rows, marked not comparable where no run is, with every run's reasons."""
    paper = published.benchmark(name)
    because = {entry.name: why_apart(entry, paper) for entry in entries}
    mark = APART if all(because.values()) else PUBLISHED
    by_reason: dict[str, list[str]] = {}
    for run, why in because.items():
        by_reason.setdefault(why, []).append(run)
    several = len(by_reason) > 1
    said = [f"{', '.join(runs)}: {why}" if several else why for why, runs in by_reason.items() if why]
    source = {"command": f"{published.paper()['source']}, {paper['where']}"}
    rows = [
        Row(row["name"], mark, {c: Number(row[c]) for c in columns if c in row}, "; ".join(said), source)
        for row in paper["rows"]
        if any(c in row for c in columns)
    ]
    return [(f"{paper['title']} · {paper['where']} of the paper", rows)]


def why_apart(entry: Entry, paper: dict[str, Any]) -> str:
    """Why this run cannot be compared with a published benchmark; "" where it can."""
    modality, trained = paper["modality"], entry.run.draw
    encoders = entry.run.encoders
    shots = entry.run.draw["shots"]
    for record in entry.run.extensions:
        if record["config"]["modality"] == modality:
            trained, shots = record["draw"], record["config"]["shots"]
    return ", ".join(
        published.reasons(
            paper,
            dataset=entry.bench.dataset,
            encoder=encoders.get(modality, next(iter(encoders.values()))),
            shots=shots,
            draw=trained["rows"],
            rows=_tested_rows(entry, modality),
        )
    )


def _tested_rows(entry: Entry, modality: str) -> int:
    if entry.bench.table.startswith(f"{modality}/"):
        return entry.bench.rows
    return next((d["targets"] for d in entry.aligned.directions if d["target"] == modality), 0)


def _spaces(bench: Bench, members: Sequence[Entry]) -> Iterator[tuple[str, Measured, dict[str, Any], str]]:
    """(name, space, origin, anchor) of the frozen encoder, if it has a common space, and of every run."""
    if bench.frozen is not None:
        yield "frozen encoder", bench.frozen, origin(members[0], frozen=True), ""
    for entry in members:
        yield entry.name, entry.aligned, origin(entry), entry.anchor


def _pairs(entries: Sequence[Entry]) -> Table:
    return Table(
        "modality_gap",
        "Modality gap, before and after",
        PAIRS,
        _by_space(entries, lambda s: {f"{p['a']} – {p['b']}": p for p in s.pairs}, PAIRS),
        "Distance of the two centroids on the unit sphere (Liang et al. 2022); how well a plane tells the "
        "modalities apart, cross-validated (50 % = it cannot); uniformity of each (Wang & Isola 2020; "
        "0 = collapsed).",
    )


def _directions(entries: Sequence[Entry]) -> Table:
    def ways(space: Measured) -> dict[str, Any]:
        return {f"{way['query']} → {way['target']}": way for way in space.directions}

    heard = [entry for entry in entries if "audio" in entry.run.widths]
    return Table(
        "retrieval",
        "Retrieval between modalities",
        DIRECTIONS,
        _by_space(entries, ways, DIRECTIONS) + (_published_audio(heard) if heard else []),
        "Text is one row per class, its bare name. Relevant means of the same class.",
    )


def _by_space(
    entries: Sequence[Entry], named: Callable[[Measured], dict[str, Any]], columns: Sequence[Column]
) -> list[tuple[str, list[Row]]]:
    """A group per space, in it a row for each of its named measurements."""
    groups = []
    for bench, members in benches(entries):
        for name, space, about, anchor in _spaces(bench, members):
            rows = [
                Row(title, OURS, {c.key: Number.of(found[c.key]) for c in columns}, "", about, anchor)
                for title, found in named(space).items()
            ]
            groups.append((f"{name} · {heading(bench)}", rows))
    return groups


def _published_audio(entries: Sequence[Entry]) -> list[tuple[str, list[Row]]]:
    """Table 3 as directions: what the paper calls semantic is audio looking for class names."""
    ways = {"semantic": "audio → text", "semantic_to_audio": "text → audio"}
    ways |= {"image_to_audio": "image → audio"}
    groups = []
    for name in ("imagenet-esc-19", "imagenet-esc-27"):
        ((title, rows),) = _published(entries, name, list(ways))
        turned = [
            dataclasses.replace(row, name=f"{row.name}: {way}", numbers={"recall@1": row.numbers[key]})
            for row in rows
            for key, way in ways.items()
            if key in row.numbers
        ]
        groups.append((title, turned))
    return groups


def _differences(entries: Sequence[Entry]) -> Table:
    """Every run against the first on the same rows; runs tested elsewhere are listed with the reason."""
    first, rows = entries[0], []
    for entry in entries[1:]:
        name = f"{entry.name} − {first.name}"
        if entry.bench is not first.bench:
            mine, other = (e.bench.tables[e.bench.table][:12] for e in (entry, first))
            why = f"tested on other rows ({entry.bench.table} {mine}, {first.bench.table} {other})"
            rows.append(Row(name, APART, {}, why, origin(entry), entry.anchor))
            continue
        numbers: dict[str, Number | None] = {}
        for kind, match in entry.aligned.matches.items():
            other = first.aligned.matches[kind]
            pair = (match.credit, other.credit)
            numbers[kind] = Number.of(paired_difference(*pair, resamples=RESAMPLES))
            margins = (match.positive - match.hardest, other.positive - other.hardest)
            numbers[f"{kind}_margin"] = Number.of(paired_difference(*margins, resamples=RESAMPLES))
        rows.append(Row(name, OURS, numbers, "", origin(entry), entry.anchor))
    columns = [Column(kind, f"{kind} accuracy", "points") for kind in ("text", "semantic")]
    columns += [Column(f"{kind}_margin", f"{kind} margin", "cosine") for kind in ("text", "semantic")]
    note = "Paired on the same test rows: an interval that leaves out 0 says that the two runs differ there."
    return Table("differences", "Between runs", columns, [("", rows)], note)
