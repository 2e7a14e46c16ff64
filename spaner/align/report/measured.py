"""What a report measures of a run: its cache found and proven unchanged, and everything that the page shows.

A run is scored twice on the same rows: in its own space and in the frozen encoder's, where the modalities
share one. Runs that were tested on the same tables share a `Bench`, whose frozen space is measured once.
What a method does not have is None or left out: a head that ignores the query has no semantic score, one
without a space no cosines, no retrieval between modalities and no plane, a run without text no accuracy.

It reads run folders and sealed caches. It draws nothing and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from spaner import cache as caches
from spaner.align.score import calibration, captions, evaluate, geometry, metrics, retrieval
from spaner.align.score.confusion import confusion_matrix, most_confused_pairs
from spaner.align.score.intervals import Number, bootstrap, paired_difference
from spaner.align.score.space import coherence_of, joint_of
from spaner.align.train import run as checkpoint
from spaner.align.train.run import Run
from spaner.cache import address
from spaner.errors import CacheError, DatasetError, Mismatch, RunError, SpanerError

KINDS = {"text": "Text retrieval", "semantic": "Semantic retrieval"}
"""Kinds of retrieval, and how a chart calls them."""

RESAMPLES = 1000
PROBED = 4
"""Modalities up to which a probe is trained on each and tested on each other."""
PLANE_ROWS = 240
"""Rows of each modality in a t-SNE."""
PLANE_CLASSES = 10
"""Classes in a t-SNE: as many as there are colours that can be told apart."""
AGREEMENT = 0.005
"""Accuracy may differ this much from the recorded one: other hardware may round another way."""


@dataclass(frozen=True)
class Plane:
    """Rows in two dimensions, by modality: positions (n, 2), labels (n,), ids (n,)."""

    points: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    ids: dict[str, list[str]]


@dataclass(frozen=True)
class Measured:
    """One run, or the frozen encoder, on one bench.

    `scores` has the shape of `evaluate`'s result: numbers by kind of retrieval, `gap`, `chance`, `ceiling`;
    here with intervals. `matches` holds the rows behind them, for the kinds that the method can be asked,
    `beside` what captions and negated forms say.
    """

    matches: dict[str, metrics.Match]
    scores: dict[str, Any]
    pairs: list[dict[str, Any]]
    directions: list[dict[str, Any]]
    plane: Plane | None
    beside: dict[str, Any] = field(default_factory=dict)
    coherence: dict[str, Any] | None = None
    joint: dict[str, Any] | None = None


@dataclass(frozen=True)
class Bench:
    """What runs are tested on: tables of a cache, and what the frozen encoder makes of them.

    `tables` maps the tested table and the two text tables to their hashes; equal hashes are one bench.
    """

    cache: str
    dataset: str
    class_names: list[str]
    table: str
    tables: dict[str, str]
    rows: int
    failed: int
    frozen: Measured | None


@dataclass(frozen=True)
class Entry:
    """A run in the report; `gains` is aligned minus frozen accuracy on the same rows, by kind."""

    name: str
    anchor: str
    run: Run
    bench: Bench
    aligned: Measured
    gains: dict[str, Number] | None


def measure(
    folders: Sequence[Path], cache: Path | None = None, split: str | None = None, towers: Any = None
) -> list[Entry]:
    """Every run, on its own cache or on the given one; `towers` as in `Run`.

    Raises:
        RunError: a run whose cache is unknown or gone, or whose weights do not give its
            recorded numbers. Mismatch: a table differs from the recorded one. DatasetError: NaN, one class
            only, a class without test rows. Each line begins with the run's name.
    """
    entries: list[Entry] = []
    benches: dict[str, Bench] = {}
    for number, (folder, name) in enumerate(zip(folders, unique_names(folders), strict=True), 1):
        run = checkpoint.load(folder)
        run.towers = towers
        check_finite(run.metrics, f"run {name}")
        try:
            entries.append(_entry(name, f"run-{number}", run, cache, split, benches))
        except SpanerError as error:
            raise type(error)(f"run {name}: {error}") from None
    return entries


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where two are equal, with the folder above, or numbered."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.resolve().parent.name}/{folder.resolve().name}" for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def shown(path: Path) -> str:
    """A path as a reader types it from here, an address too; of folders elsewhere only the name."""
    if isinstance(found := address.place(path), address.Address):
        return str(found)
    here = Path.cwd().resolve()
    return str(path.resolve().relative_to(here)) if path.resolve().is_relative_to(here) else path.name


def check_finite(values: Any, what: str) -> None:
    """Raise RunError, naming the place, where a recorded number is NaN or infinite."""
    for place, value in _leaves(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(
                f"{what}: {place} is {value}; expected a finite number; train it again, with a lower --lr"
            )


def _leaves(values: Any, place: str = "metrics") -> Iterator[tuple[str, Any]]:
    items = values.items() if isinstance(values, dict) else ()
    for name, value in items:
        yield from _leaves(value, f"{place}.{name}")
    if not isinstance(values, dict):
        yield place, values


def _entry(
    name: str, anchor: str, run: Run, cache: Path | None, split: str | None, benches: dict[str, Bench]
) -> Entry:
    with caches.open(_cache_of(run, cache)) as opened:
        tested = (run.metrics or {}).get("tested", {})
        table = evaluate.tested_table(opened, split or tested.get("table"), run.modality)
        _check_tables(run, opened)
        named = evaluate.asks_classes(run, opened, table)
        for needed in (table, *(evaluate.asking(opened).values() if named else ())):
            run.check(opened.table(needed).manifest)
        bench = _bench(run, opened, table, benches)
        aligned = _measured(run, opened, table, _sides(run, opened, table))
    if split is None:
        _check_recorded(run, aligned)
    return Entry(name, anchor, run, bench, aligned, _gains(aligned, bench.frozen))


def _cache_of(run: Run, given: Path | None) -> Path:
    path = given or run.cache
    first, digest = next(iter(_recorded(run).items()))
    if path is None:
        raise RunError(f"its cache is not recorded; expected one with {first} {digest}; add --cache PATH")
    if not path.exists():
        raise RunError(
            f"its cache {shown(path)} is gone: found no {first}, expected hash {digest}; "
            "extract it again, or name where it lies with --cache PATH"
        )
    return path


def _recorded(run: Run) -> dict[str, str]:
    """Table -> hash, of all that was read from the cache named: where it was last trained and scored."""
    last = run.extensions[-1]["tables"] if run.extensions else run.tables
    tested = (run.metrics or {}).get("tested")
    return last | ({tested["table"]: tested["manifest_sha256"]} if tested else {})


def _check_tables(run: Run, cache: caches.Cache) -> None:
    for name, recorded in _recorded(run).items():
        found = cache.table(name).manifest.sha256 if cache.has(name) else "no such table"
        if found != recorded:
            raise Mismatch(
                f"{name} of {shown(Path(cache.path))} has hash {found}, the run recorded {recorded}; "
                "train again on this cache, or name the old one with --cache PATH"
            )


def _check_recorded(run: Run, aligned: Measured) -> None:
    for kind, match in aligned.matches.items():
        recorded = ((run.metrics or {}).get(kind) or {}).get("accuracy")
        found = float(match.credit.mean())
        if recorded is not None and abs(found - recorded) > AGREEMENT:
            raise RunError(
                f"{kind} accuracy is {found:.4f} now and {recorded:.4f} in result.json, "
                "which cannot both come from these weights and rows; "
                "check the cache with `spaner cache verify`, then train again"
            )


def _bench(run: Run, cache: caches.Cache, table: str, known: dict[str, Bench]) -> Bench:
    named = evaluate.asks_classes(run, cache, table)
    names = (table, *(evaluate.asking(cache).values() if named else ()))
    tables = {name: cache.table(name).manifest.sha256 for name in names}
    key = repr(tables)
    if key not in known:
        dims = {cache.table(name).dim for name in names}
        sides = {table.split("/")[0]: [table], "text": [evaluate.asking(cache)["semantic"]]}
        said = captions.table_of(cache, table)
        if not named and said is not None:  # images and captions are what there is to compare
            dims, sides = dims | {cache.table(said).dim}, {}
        compared = (named or said is not None) and len(dims) == 1
        frozen = _measured(evaluate.Frozen(), cache, table, sides) if compared else None
        ok = cache.table(table).ok
        known[key] = Bench(
            cache=shown(Path(cache.path)),
            dataset=cache.dataset,
            class_names=list(cache.class_names),
            table=table,
            tables=tables,
            rows=int(ok.sum()),
            failed=int((~ok).sum()),
            frozen=frozen,
        )
    return known[key]


def _sides(run: Run, cache: caches.Cache, table: str) -> dict[str, list[str]]:
    """Test tables by modality: the tested one, class names, and a newcomer's test rows or untrained folds."""
    sides = {table.split("/")[0]: [table]}
    if evaluate.asks_classes(run, cache, table):
        sides["text"] = [evaluate.asking(cache)["semantic"]]
    further = [name for name in run.widths if name not in sides and cache.has(f"{name}/test")]
    sides |= {name: [f"{name}/test"] for name in further}
    for record in run.extensions:
        modality, trained = record["config"]["modality"], record["config"]["split"]
        rest = [n for n in cache.tables() if n.startswith(f"{modality}/") and n != f"{modality}/{trained}"]
        chosen = [f"{modality}/test"] if cache.has(f"{modality}/test") else rest
        if chosen and modality not in sides:
            sides[modality] = chosen
    return sides


def _measured(space: Any, cache: caches.Cache, table: str, sides: dict[str, list[str]]) -> Measured:
    matches = evaluate.matches(space, cache, table) if "text" in sides else {}
    if matches:
        metrics.per_class_accuracy(matches["text"], cache.class_names)  # refuses a class without test rows
    rows = {modality: _rows(space, cache, names) for modality, names in sides.items() if space.has_space}
    return Measured(
        matches=matches,
        scores=scores_of(matches, cache.class_names),
        pairs=[_pair(a, b, rows[a][0], rows[b][0]) for a, b in combinations(rows, 2)],
        directions=_directions(rows, cache.class_names),
        plane=_plane(rows, len(cache.class_names)) if rows else None,
        beside=evaluate.beside_classes(space, cache, table),
        **(_together(space, cache, list(sides), table) if space.has_space else {}),
    )


def _together(space: Any, cache: caches.Cache, modalities: list[str], table: str) -> dict[str, Any]:
    """Whether it is one space, and what modalities are worth together; nothing where a class has no row in
    one of them. The probes of many modalities are left out: their number grows with the square."""
    try:
        few = len(modalities) <= PROBED
        return {
            "coherence": coherence_of(space, cache, modalities, table, transfer=few),
            "joint": joint_of(space, cache, modalities, table),
        }
    except DatasetError:
        return {}


def scores_of(matches: dict[str, metrics.Match], names: Sequence[str]) -> dict[str, Any]:
    """Numbers with intervals over the test rows, in the shape of `evaluate`'s result."""
    credit = [matches[kind].credit for kind in KINDS if kind in matches]
    return {
        **{kind: _numbers(matches[kind]) if kind in matches else None for kind in KINDS},
        "gap": paired_difference(credit[0], credit[1], resamples=RESAMPLES) if len(credit) == 2 else None,
        "chance": metrics.chance(len(names)),
        "ceiling": metrics.ceiling(matches["text"].labels, names) if matches else None,
    }


def _numbers(match: metrics.Match) -> dict[str, Number | float]:
    """The collapse controls stand beside the cosine: a point has cosine 1, margin 0 and accuracy 1/C."""
    per_row: dict[str, np.ndarray] = {"accuracy": match.credit, "accuracy_tie_aware": match.credit_by_name}
    if match.has_cosines:
        per_row |= {"positive_cosine": match.positive, "margin": match.positive - match.hardest}
        per_row |= {"negative_cosine": match.negative}
    sure: dict[str, Number | float] = {
        name: bootstrap(values, resamples=RESAMPLES) for name, values in per_row.items()
    }
    centred = {"centred_cosine": metrics.centred_cosine(match)} if len(match.row_sum) else {}
    known = {name: value for name, value in calibration.of_match(match).items() if value is not None}
    return sure | centred | known


def _rows(space: Any, cache: caches.Cache, names: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings (n, E), labels and ids of the good rows of some tables of one modality."""
    parts = [evaluate.embedded(space, cache, name) for name in names]
    ids: list[str] = []
    for name in names:
        table = cache.table(name)
        is_text = table.manifest.modality == "text"
        ids += list(cache.class_names) if is_text else table.ids[table.ok].tolist()
    return np.concatenate([x for x, _ in parts]), np.concatenate([labels for _, labels in parts]), ids


def _directions(rows: Mapping[str, tuple], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every modality looks for every other's rows of the same class; in a list without classes, for those of
    the same sample."""
    if rows and len(set(names)) < 2:
        sides = {modality: (x, labels) for modality, (x, labels, _) in rows.items()}
        ids = {modality: ids for modality, (_, _, ids) in rows.items()}
        rows = {modality: (*side, []) for modality, side in evaluate.by_sample(sides, ids).items()}
    if not all(len(labels) for _, labels, _ in rows.values()):
        return []
    return [_direction(a, b, rows[a], rows[b]) for a, b in permutations(rows, 2)]


def _pair(a: str, b: str, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "modality_gap": geometry.modality_gap(x, y),
        "separability": geometry.separability(x, y) if min(len(x), len(y)) >= 5 else None,
        "uniformity_a": geometry.uniformity(x) if len(x) > 1 else None,
        "uniformity_b": geometry.uniformity(y) if len(y) > 1 else None,
    }


def _direction(a: str, b: str, queries: tuple, targets: tuple) -> dict[str, Any]:
    """Retrieval of one modality by another, over the queries that have a target."""
    (x, x_labels, _), (y, y_labels, _) = queries, targets
    seen = np.isin(x_labels, y_labels)
    if not seen.any():
        raise CacheError(
            f"{a} and {b} share no class; expected one or more; extract the same classes of both"
        )
    hubness = retrieval.hubness(x, y) if len(y) > 10 else None
    found = retrieval.retrieval(x[seen], y, x_labels[seen], y_labels)
    return {"query": a, "target": b, **found, "hubness": hubness}


def _plane(rows: dict[str, tuple], classes: int, seed: int = 0) -> Plane:
    """t-SNE of a seeded sample of rows of evenly chosen classes."""
    chosen = np.unique(np.linspace(0, classes - 1, min(PLANE_CLASSES, classes)).round().astype(int))
    rng = np.random.default_rng(seed)
    picks = {}
    for modality, (_, labels, _) in rows.items():
        member = np.flatnonzero(np.isin(labels, chosen))
        few = len(member) <= PLANE_ROWS
        picks[modality] = member if few else np.sort(rng.choice(member, PLANE_ROWS, replace=False))
    together = np.concatenate([rows[m][0][pick] for m, pick in picks.items()])
    flat = geometry.plane(together, seed=seed)
    ends = np.cumsum([len(pick) for pick in picks.values()])[:-1]
    return Plane(
        points=dict(zip(picks, np.split(flat, ends), strict=True)),
        labels={m: rows[m][1][pick] for m, pick in picks.items()},
        ids={m: [rows[m][2][i] for i in pick] for m, pick in picks.items()},
    )


def confused_pairs(measured: Measured, names: Sequence[str], top: int = 10) -> dict[str, list[dict]]:
    """The most confused pairs by name, for each kind of retrieval."""
    return {
        kind: most_confused_pairs(confusion_matrix(match, names), names, top)
        for kind, match in measured.matches.items()
    }


def _gains(aligned: Measured, frozen: Measured | None) -> dict[str, Number] | None:
    if frozen is None:
        return None
    return {
        kind: paired_difference(match.credit, frozen.matches[kind].credit, resamples=RESAMPLES)
        for kind, match in aligned.matches.items()
        if kind in frozen.matches
    }
