"""Stage 1: run frozen encoders over a data set once, into a sealed cache.

Every table is begun or continued, filled, checked and sealed, one after another. What was finished before is
not computed again. Nothing here knows how a file is read or a row is computed.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spaner import registry
from spaner.cache import cache as caches
from spaner.cache.address import place
from spaner.errors import RecipeError
from spaner.extract import parts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import images
from spaner.extract.datasets.dataset import Dataset
from spaner.extract.extraction import Extraction, load, notes_of
from spaner.extract.plan import TablePlan, destination, listed, plan
from spaner.extract.summary import Summary, TableSummary
from spaner.progress import Progress, no_progress


def extract(
    config: ExtractConfig | None = None,
    *,
    progress: Progress | None = None,
    beforehand: Callable[[list[TableSummary]], None] | None = None,
    **overrides: Any,
) -> Summary:
    """Extract what `config` asks for; `overrides` are fields of `ExtractConfig`.

    Args:
        beforehand: is told rows and bytes of every table of tokens, which are large, before anything is
            loaded.

    Returns:
        What was done, table by table. An interrupted run is continued by the same call.

    Raises:
        DatasetError: missing or contradictory data, or more unreadable files than tolerated.
        EncoderError: a model that cannot be loaded, or whose rows depend on their batch.
        CacheError: what is there was made with other settings, another process writes it, the disk is full.
    """
    config = configured(config, overrides)
    if parts.wanted(config) and not config.dry_run:
        return parts.run(config, progress or no_progress)
    dataset = listed(config)
    tables, path = plan(config, dataset), destination(config, dataset)
    if config.dry_run:
        return Summary(path, _sizes(config, dataset, tables), dry_run=True, left_out=dataset.left_out)
    if beforehand and config.tokens is not None:
        beforehand(_sizes(config, dataset, tables))
    done: list[TableSummary] = []
    with images.quiet():
        # every tower, tokenizer and string before the first image: what is missing shows at once
        modalities = list(dict.fromkeys(table.modality for table in tables))
        towers = {modality: load(config, dataset, modality) for modality in modalities}
        notes = notes_of(dataset, tables, towers)
        for modality in modalities:
            tower = towers.pop(modality)
            run = Extraction(config, dataset, modality, progress or no_progress, tower)
            with caches.create(path, dataset.name, dataset.class_names) as cache:
                done += [run.table(cache, table) for table in tables if table.modality == modality]
                notes += [*cache.notes, *run.notes]
    return Summary(path, done, left_out=dataset.left_out, notes=notes)


def configured(config: ExtractConfig | None, overrides: dict[str, Any]) -> ExtractConfig:
    """`config` with `overrides` in place; paths may be strings.

    Raises:
        RecipeError: an override that is no field.
    """
    fields = [field.name for field in dataclasses.fields(ExtractConfig)]
    for name in overrides:
        if name not in fields:
            near = registry.nearest(name, fields, cutoff=0.6)
            hint = f"; did you mean {near}?" if near else ""
            raise RecipeError(f"extract: no setting {name!r}; expected one of {', '.join(fields)}{hint}")
    config = dataclasses.replace(config or ExtractConfig(), **overrides)
    given = config.draws_from
    several = (given,) if isinstance(given, str | Path) else given
    paths = {name: getattr(config, name) for name in ("data_root", "cache", "tokenizer")}
    return dataclasses.replace(
        config,
        draws_from=None if several is None else tuple(Path(path).expanduser() for path in several),
        **{name: place(value).expanduser() for name, value in paths.items() if value is not None},
    )


def _sizes(config: ExtractConfig, dataset: Dataset, tables: list[TablePlan]) -> list[TableSummary]:
    """Rows and bytes of every table, without loading open_clip's weights."""
    dims = {table.modality: 0 for table in tables}
    for modality in dims:
        name = config.encoder or dataset.encoders.get(modality.partition("-block")[0], "open_clip")
        if name == "open_clip":
            from spaner.extract.encoders.clip_weights import dimension

            feature = config.feature if modality == "image" else ""
            dims[modality] = dimension(config.model, feature, tokens=config.tokens is not None)
        else:
            dims[modality] = load(config, dataset, modality).spec.dim
    item = np.dtype(config.dtype).itemsize
    return [
        TableSummary(t.name, len(t.source), 0, len(t.source) * len(t.views) * dims[t.modality] * item)
        for t in tables
    ]
