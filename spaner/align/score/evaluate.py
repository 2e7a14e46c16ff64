"""Score a trained run, or the frozen encoder itself, on a table of any cache made with the same encoder.

Text retrieval asks with "a photo of a {}." (table `text/vanilla`, or the data set's own words in
`text/query`), semantic retrieval with the raw class name (`text/classname`); the gap is their difference in
accuracy. A head that ignores what it is asked has an accuracy, no semantic one and no gap: None. A method
without a space has no cosines: None. Class names are those of the cache that is scored, so a run can be
tested on another data set. Rows whose extraction failed are left out and counted.

A run that was trained without text can be asked for no class by name, and images of captions may have no
classes: then there is no accuracy; what its modalities find in each other is told by `evaluate_modalities`.

Reads sealed caches, streams the table to the run's device, and holds a few numbers per row. It never trains
and never chooses anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int

from spaner import cache as caches
from spaner.align.methods.state import placed
from spaner.align.score import calibration, captions, matching, metrics, negation, pairs, retrieval
from spaner.align.score.adapted import scored_table
from spaner.align.score.captions import caption_retrieval
from spaner.align.score.tables import opened_cache, queries, query_sets, tested_table
from spaner.device import CPU, scoring_device
from spaner.errors import CacheError, DatasetError

BLOCK = 4096
"""Rows embedded at once."""


Array = TypeVar("Array", np.ndarray, torch.Tensor)


class Embedder(Protocol):
    """Where embeddings are compared: a trained run, or the frozen encoder's own space. An array gives an
    array, a tensor a tensor on `device`."""

    device: torch.device

    def embed(self, modality: str, features: Float[Array, "N D"]) -> Float[Array, "N E"]: ...


class Frozen:
    """The encoder's own space: every embedding as it is."""

    has_space = True

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    def on(self, device: torch.device) -> Frozen:
        """The same on another device."""
        return Frozen(device)

    def embed(self, modality: str, features: Float[Array, "N D"]) -> Float[Array, "N D"]:
        if isinstance(features, np.ndarray):
            return metrics.unit(features, f"{modality} features")
        return matching.unit(features.to(self.device), f"{modality} features")


def evaluate(
    run: Any,
    cache: caches.Cache | str | Path,
    split: str | None = None,
    frozen: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Text and semantic retrieval accuracy of a run, the frozen encoder's own beside them.

    Args:
        run: a trained run.
        cache: a cache, or its path.
        split: "image/test" or "test"; default the `test` of the run's first modality, where it has one, else
            its `val`.
        frozen: the result of `zero_shot` on the same table, where the caller has it already.
        device: where embeddings are made and compared, see `device.scoring_device`.

    Returns:
        `text` and `semantic` (the numbers of `metrics.summary`, and `ece` and `nll` at the method's own logit
        scale, None where an encoder has none, and `ece_fitted` and `nll_fitted` at the run's temperature,
        None where no validation rows gave one; both None for a run without text), `gap`, `chance`, `ceiling`,
        `rows`, `failed`, `tested` (which table of which cache, by hash), `synthetic`, and `zero_shot` (the
        same without itself; None where the encoders share no space of their own). Where a prior joins the
        scores, `without_prior` holds the accuracies of the space alone. Where images have captions,
        `captions` is what `captions.caption_retrieval` gives; where classes have negated forms, `negation` is
        what `negation_of` gives. Where no class is asked, `frozen` has the frozen encoder's `captions`.

    Raises:
        Mismatch: the cache was made with another encoder than the run; the message names what differs.
        CacheError: a table is missing.
        DatasetError: no rows, one class only, NaN. RecipeError: a device that is not there.
    """
    run = run.on(scoring_device(device))
    with opened_cache(cache) as opened:
        name = tested_table(opened, split, run.modality)
        named = asks_classes(run, opened, name)
        for needed in (name, *(asking(opened).values() if named else ())):
            run.check(opened.table(needed).manifest)
        if not named:
            return {**_result({}, opened, name), "zero_shot": None, **_without_classes(run, opened, name)}
        found = matches(run, opened, name)
        result = {**_result(found, opened, name), "zero_shot": frozen or zero_shot(opened, name, device)}
        return result | beside_classes(run, opened, name) | _without_prior(run, opened, name)


def _without_prior(run: Any, cache: caches.Cache, name: str) -> dict[str, Any]:
    """The accuracies of the space alone, where a prior joins it."""
    if not getattr(run, "has_prior", False):
        return {}
    alone = matches(run, cache, name, prior=False)
    return {"without_prior": {kind: metrics.summary(match)["accuracy"] for kind, match in alone.items()}}


def asks_by_name(run: Any) -> bool:
    """Whether a class can be named to the run: text was part of its training."""
    return "text" in run.widths


def asks_classes(run: Any, cache: caches.Cache, name: str) -> bool:
    """Whether a run can be asked for the classes of a table: not where images have captions and no
    classes."""
    classless = len(cache.class_names) < 2 and captions.table_of(cache, name) is not None
    return asks_by_name(run) and not classless


def zero_shot(
    cache: caches.Cache | str | Path, split: str | None = None, device: str = "auto"
) -> dict[str, Any] | None:
    """The frozen encoder's own result; None where the widths differ and there is no space to share."""
    space = Frozen(scoring_device(device))
    with opened_cache(cache) as opened:
        name = tested_table(opened, split)
        if len({opened.table(needed).dim for needed in (name, *asking(opened).values())}) > 1:
            return None
        found = _result(matches(space, opened, name), opened, name)
        return found | beside_classes(space, opened, name)


def beside_classes(space: Any, cache: caches.Cache, name: str) -> dict[str, Any]:
    """What `captions` and `negation` tell of a table, where there are captions or negated forms."""
    named = "text" in getattr(space, "widths", ("text",))
    said = caption_retrieval(space, cache, name) if named or captions.MODALITY in space.widths else None
    found = {"captions": said, "negation": negation_of(space, cache, name) if named else None}
    return {key: value for key, value in found.items() if value is not None}


def _without_classes(run: Any, cache: caches.Cache, name: str) -> dict[str, Any]:
    """`beside_classes`, and as `frozen` the `captions` of the frozen encoder, which no `zero_shot` tells."""
    said, found = captions.table_of(cache, name), beside_classes(run, cache, name)
    if said is None or cache.table(said).dim != cache.table(name).dim:
        return found
    return found | {"frozen": {"captions": caption_retrieval(Frozen(), cache, name)}}


def negation_of(run: Any, cache: caches.Cache, name: str) -> float | None:
    """Share of rows nearer to their class's caption than to its negated form, see `negation`; None without
    negated forms."""
    forms = negation.learned_forms(run)
    if forms is None and (not run.has_space or not cache.has(negation.NEGATED)):
        return None
    if forms is None:
        forms = tuple(class_vectors(run, cache, table) for table in (asking(cache)["text"], negation.NEGATED))
    elif tuple(run.class_names) != tuple(cache.class_names):
        return None
    modality, embed = name.partition("/")[0], (run if run.has_space else Frozen(run.device)).embed
    parts = [negation.told_apart(embed(modality, x), y, *forms) for x, y in _blocks(cache.table(name))]
    return float(np.concatenate(parts).mean())


def matches(run: Any, cache: caches.Cache, name: str, *, prior: bool = True) -> dict[str, metrics.Match]:
    """What every row found, by kind of retrieval: the material of intervals, curves and confusion.

    `run` is a trained run, or `Frozen`. A head that ignores the query has no entry "semantic". With `prior`
    false the space decides alone.
    """
    if (towers := getattr(run, "towers", None)) is not None:
        towers.put_beside(run, cache, name)
    table = scored_table(run, cache, name)
    joined = prior and getattr(run, "has_prior", False)
    space = run.has_space
    found = _space_matches(run, cache, table, joined) if space else _head_matches(run, cache, name, table)
    parts = list(found)
    if not parts:
        raise DatasetError(
            f"no row of {name} can be scored: {table.rows:,} rows, all failed; expected at least 1; "
            f"see `spaner cache info {cache.path}`"
        )
    return {kind: metrics.Match.join([part[kind] for part in parts]) for kind in parts[0]}


def _space_matches(
    run: Any,
    cache: caches.Cache,
    table: Any,
    joined: bool,  # noqa: FBT001
) -> Iterator[dict[str, metrics.Match]]:
    """Cosines in the space decide, and what a prior adds to them."""
    vectors = {kind: class_vectors(run, cache, query) for kind, query in asking(cache).items()}
    classes = {kind: torch.from_numpy(x).to(run.device) for kind, x in vectors.items()}
    scales = _scales(run, table)
    asked = placed(queries(cache), run.device) if joined else {}
    for features, labels in _device_blocks(table, run.device):
        rows = run.embed(table.manifest.modality, features)
        yield {
            kind: matching.match(
                rows,
                targets,
                labels,
                cache.class_names,
                added=run.prior(table.manifest.modality, features, asked[kind]) if asked else None,
                **scales,
            )
            for kind, targets in classes.items()
        }


def _head_matches(run: Any, cache: caches.Cache, name: str, table: Any) -> Iterator[dict[str, metrics.Match]]:
    """The method's scores decide; they are cosines only where the method says so."""
    asked, modality = placed(queries(cache), run.device), name.partition("/")[0]
    cosines = getattr(run.model, "scores_cosines", False)
    kinds = tuple(asked) if run.model.reads_query else ("text",)
    for features, labels in _device_blocks(table, run.device):
        yield {
            kind: matching.match_scores(
                run.scores(modality, features, asked[kind]),
                labels,
                cache.class_names,
                **_scales(run, table),
                cosines=cosines,
            )
            for kind in kinds
        }


def _scales(run: Any, table: Any) -> dict[str, float | None]:
    """How many units of a logit one unit of a score is, None where an encoder does not say; and the
    temperature that a run found on its validation rows."""
    if isinstance(run, Frozen):
        return {"scale": table.manifest.encoder.logit_scale}
    return {"scale": float(run.model.logit_scale), "temperature": run.temperature}


def asking(cache: caches.Cache) -> dict[str, str]:
    """The full name of the table that asks, by kind of retrieval."""
    return {kind: f"text/{templates}" for kind, templates in query_sets(cache).items()}


def evaluate_pair(run: Any, cache: caches.Cache | str | Path, query: str, target: str) -> dict[str, Any]:
    """Retrieval in one direction between two tables, e.g. `image/test` looking for `audio/fold1`.

    Rows are relevant to each other when their classes are equal. A text table counts as one row per class.

    Returns:
        `retrieval.retrieval`'s numbers, and the names of the two tables.
    """
    with opened_cache(cache) as opened:
        sides = []
        for name in (query, target):
            run.check(opened.table(name).manifest)
            sides.append(embedded(run, opened, name))
        (rows, labels), (targets, target_labels) = sides
        scores = retrieval.retrieval(rows, targets, labels, target_labels)
        return {"query": query, "target": target, **scores}


def evaluate_modalities(
    run: Any, cache: caches.Cache | str | Path, trained: Collection[tuple[str, str]]
) -> dict[str, Any]:
    """Retrieval from every modality of a run to every other, emergent pairs apart: `pairs.ordered_pairs`.

    Text is the table of class names, every other modality its `test` table where the cache has one. Rows of a
    class are meant; without classes, rows of one id.

    Args:
        trained: pairs of modalities that a loss compared.
    """
    with opened_cache(cache) as opened:
        asked = {name: f"{name}/test" for name in run.widths} | {"text": asking(opened)["semantic"]}
        tables = {name: table for name, table in asked.items() if name in run.widths and opened.has(table)}
        for table in tables.values():
            run.check(opened.table(table).manifest)
        sides = {name: embedded(run, opened, table) for name, table in tables.items()}
        if len(set(opened.class_names)) < 2:
            found = {name: opened.table(table) for name, table in tables.items() if name != "text"}
            sides = by_sample(sides, {name: table.ids[table.ok].tolist() for name, table in found.items()})
        return pairs.ordered_pairs(sides, trained)


def by_sample(sides: dict[str, tuple], ids: dict[str, list[str]]) -> dict[str, tuple]:
    """Rows with their sample for a class, of samples that all modalities have: among one class alone every
    row would be right. Captions of one image are one sample."""
    named = {
        name: [key.rpartition("#")[0] if name == captions.MODALITY else key for key in keys]
        for name, keys in ids.items()
    }
    number = {key: i for i, key in enumerate(sorted(set.intersection(*map(set, named.values()))))}
    there = {name: np.array([key in number for key in keys]) for name, keys in named.items()}
    return {
        name: (sides[name][0][there[name]], np.array([number[key] for key in keys if key in number], int))
        for name, keys in named.items()
    }


def embedded(
    space: Embedder, cache: caches.Cache, name: str
) -> tuple[Float[np.ndarray, "N E"], Int[np.ndarray, " N"]]:
    """All good rows of a table, unit-length, with their labels; a text table gives one row per class."""
    table = cache.table(name)
    if table.manifest.modality == "text":
        return class_vectors(space, cache, name), np.arange(len(cache.class_names))
    parts = [(space.embed(table.manifest.modality, x), labels) for x, labels in _blocks(table)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([labels for _, labels in parts])


def class_vectors(space: Embedder, cache: caches.Cache, name: str) -> Float[np.ndarray, "C E"]:
    """One unit-length vector per class: the mean over templates of the embedded texts.

    Raises:
        CacheError: a class has no text.
    """
    table = cache.table(name)
    labels, features = table.labels[table.ok], table.read()[table.ok]
    missing = sorted(set(range(len(cache.class_names))) - set(labels.tolist()))
    if missing:
        raise CacheError(
            f"{name} has no text for class {cache.class_names[missing[0]]!r} ({len(missing):,} such); "
            f"expected one row per class; run `spaner extract --modality text` into {cache.path}"
        )
    views = [space.embed("text", features[:, view].astype(np.float32)) for view in range(features.shape[1])]
    mean = np.mean(views, axis=0)
    classes = np.empty((len(cache.class_names), mean.shape[1]), np.float32)
    classes[labels] = mean
    return metrics.unit(classes, name)


def _blocks(table: Any) -> Iterator[tuple[Float[np.ndarray, "n D"], Int[np.ndarray, " n"]]]:
    """Centre views and labels of the good rows, block by block."""
    ok = table.ok
    for rows, features in table.stream(BLOCK):
        keep = ok[rows]
        if keep.any():
            yield features[keep, 0].astype(np.float32), table.labels[rows][keep]


def _device_blocks(
    table: Any, device: torch.device
) -> Iterator[tuple[Float[torch.Tensor, "n D"], Int[np.ndarray, " n"]]]:
    """`_blocks`, the rows on the device."""
    return ((torch.from_numpy(features).to(device), labels) for features, labels in _blocks(table))


def _result(found: dict[str, metrics.Match], cache: caches.Cache, name: str) -> dict[str, Any]:
    table = cache.table(name)
    scores: dict[str, Any] = dict.fromkeys(("text", "semantic"))
    scores |= {kind: metrics.summary(match) | calibration.of_match(match) for kind, match in found.items()}
    text, semantic = scores["text"], scores["semantic"]
    # changed towers have failures of their own
    labels = found["text"].labels if found else table.labels[table.ok]
    return {
        **scores,
        "gap": None if semantic is None else text["accuracy"] - semantic["accuracy"],
        "chance": metrics.chance(len(cache.class_names)),
        "ceiling": metrics.ceiling(labels, cache.class_names) if found else None,
        "rows": len(labels),
        "failed": table.rows - len(labels),
        "tested": {
            "dataset": cache.dataset,
            "table": name,
            "manifest_sha256": table.manifest.sha256,
            "encoder": f"{table.manifest.encoder.name} {table.manifest.encoder.weights}",
        },
        "synthetic": table.manifest.encoder.synthetic,
    }
