"""Which tables an extraction fills, with which rows and few-shot draws. It opens no file and no encoder."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spaner.cache.address import place
from spaner.cache.layout import drawn_sha256, ids_sha256
from spaner.cache.manifest import EncoderSpec, Manifest, default_chunk_rows
from spaner.errors import DatasetError
from spaner.extract import texts
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets import captions
from spaner.extract.datasets.dataset import VANILLA, Dataset, Split, read
from spaner.extract.draws import draw_shots, draws_of
from spaner.extract.encoders import tokens
from spaner.extract.templates import QUERY, tables

TOKEN_VIEWS = 32
"""Views of a chunk of tokens at least: an encoder call never crosses a chunk, and 4 MiB are a dozen views."""


@dataclass(frozen=True, eq=False)
class TablePlan:
    """One table to fill.

    Attributes:
        modality, split: its name; tokens of images have a modality of their own.
        source: its rows, and where their payloads come from; a text's payload is a class's V strings.
        views: names of the V views; for text, the templates.
        draws: name -> row numbers within this table.
        complete: False if rows that no draw needs were left out.
        imported: draw -> name of the published file that it came from.
    """

    modality: str
    split: str
    source: Split
    views: tuple[str, ...]
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    complete: bool = True
    imported: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """modality/split."""
        return f"{self.modality}/{self.split}"

    @property
    def is_text(self) -> bool:
        """Whether its rows are classes, made of words and not of the data set's files."""
        return self.modality == "text"

    def manifest(self, dataset: Dataset, spec: EncoderSpec, config: ExtractConfig) -> Manifest:
        """The table's identity."""
        options: dict[str, Any] = {} if self.is_text else dict(dataset.ledger)
        options |= {"imported draws": self.imported} if self.imported else {}
        if self.modality in captions.MODALITIES:
            options |= {"words": texts.words_sha256(self.source)}
        chunk = config.chunk_rows or default_chunk_rows(len(self.views), spec.dim, config.dtype)
        if config.tokens is not None and config.chunk_rows is None:
            chunk = max(chunk, TOKEN_VIEWS // len(self.views))
        if self.is_text:
            chunk = texts.chunk_rows(chunk, len(self.views), spec.dim)
        together = spec.preprocessing.get("batch", {}).get(
            "size", 1
        )  # such batches must not be cut by a chunk
        return Manifest(
            dataset=dataset.name,
            modality=self.modality,
            split=self.split,
            rows=len(self.source),
            views=self.views,
            dim=spec.dim,
            dtype=config.dtype,
            chunk_rows=max(together, chunk // together * together),
            encoder=spec,
            # text has no random views, so its rows depend on the seed only where the weights are random
            seed=0 if self.is_text and not spec.synthetic else config.seed,
            rows_sha256=ids_sha256(self.source.ids),
            complete=self.complete,
            options=options,
            draws={name: drawn_sha256(self.source.ids, rows) for name, rows in self.draws.items()},
        )


def listed(config: ExtractConfig) -> Dataset:
    """The data set that `config` names.

    Raises:
        DatasetError: an unknown name, or what its reader found missing or contradictory.
    """
    return read(
        config.dataset,
        config.data_root,
        holdout=config.holdout,
        seed=config.seed,
        allow_outside=config.allow_outside,
        modality_column=config.modality_column,
        caption_column=config.caption_column,
        negated_column=config.negated_column,
    )


def plan(config: ExtractConfig, dataset: Dataset) -> list[TablePlan]:
    """Every table of the run, text last.

    Raises:
        DatasetError: a modality, split, template set or draw that is not there.
    """
    _check(config)
    known = [*dataset.splits, "text"]
    if config.modality not in (None, *known):
        raise DatasetError(
            f"--modality {config.modality}: {dataset.name} has none; expected one of {', '.join(known)}; "
            f"leave it out for all"
        )
    if config.tokens is not None:
        return _tokens(config, dataset, config.tokens)
    wanted = (
        list(dataset.splits)
        if config.modality is None
        else [m for m in dataset.splits if m == config.modality]
    )
    tables = [table for modality in wanted for table in _of_modality(config, dataset, modality)]
    return tables + (_texts(config, dataset) if config.modality in (None, "image", "text") else [])


def _check(config: ExtractConfig) -> None:
    at_least = {"views": 1, "batch_size": 1, "chunk_rows": 1, "workers": 1}
    for name, least in at_least.items():
        found = getattr(config, name)
        if found is not None and found < least:
            flag = "--" + name.replace("_", "-")
            raise DatasetError(f"{flag} {found}: expected at least {least}; type `{flag} {least}`")
    if not 0 <= config.max_failed <= 1:
        raise DatasetError(
            f"--max-failed {config.max_failed}: expected a share from 0 to 1; type `--max-failed 0.01`"
        )


def _tokens(config: ExtractConfig, dataset: Dataset, block: int) -> list[TablePlan]:
    """The image tables again, as tokens after a block."""
    if config.modality not in (None, "image") or "image" not in dataset.splits:
        raise DatasetError(
            f"--tokens {block}: tokens are those of images, found --modality {config.modality} and "
            f"{dataset.name} with {', '.join(dataset.splits)}; expected images; leave --tokens out"
        )
    modality = tokens.modality(block)
    return [replace(table, modality=modality) for table in _of_modality(config, dataset, "image")]


def _of_modality(config: ExtractConfig, dataset: Dataset, modality: str) -> list[TablePlan]:
    splits = dataset.splits[modality]
    strange = [name for name in config.splits or () if name not in splits]
    if strange:
        raise DatasetError(
            f"--splits {strange[0]}: {dataset.name} has no such {modality} split; expected "
            f"{', '.join(splits)}; leave it out for all"
        )
    views = view_names(config.views) if modality == "image" else ("whole",)
    draws, imported = draws_of(config, dataset, splits)
    shots = draw_shots(config, dataset)
    if modality in captions.MODALITIES:  # those of every image: few-shot rows are drawn among images
        draws, imported, shots = {}, {}, None
    tables = []
    for name in config.splits or splits:
        split, drawn, complete = splits[name], draws.get(name, {}), True
        if name == "train" and drawn and shots is not None:
            rows = np.unique(np.concatenate(list(drawn.values())))
            complete = len(rows) == len(split)
            split, drawn = split.take(rows), {key: np.searchsorted(rows, kept) for key, kept in drawn.items()}
        told = {key: imported[key] for key in drawn if key in imported}
        tables.append(TablePlan(modality, name, split, views, drawn, complete, told))
    return tables


def view_names(count: int) -> tuple[str, ...]:
    """View 0 is the centre crop, the others are random ones."""
    return ("center", *(("random",) if count == 2 else tuple(f"random-{i}" for i in range(1, count))))


def _texts(config: ExtractConfig, dataset: Dataset) -> list[TablePlan]:
    own = {QUERY: [dataset.template]} if dataset.template != VANILLA else {}
    sets = tables(config.templates) | own
    names = dataset.class_names
    return [TablePlan("text", name, texts.split(names, found), tuple(found)) for name, found in sets.items()]


def destination(config: ExtractConfig, dataset: Dataset) -> Path:
    """`--cache`, else `cache/NAME`, with the largest number of shots behind NAME where rows are drawn."""
    if config.cache is not None:
        return place(config.cache)
    shots = draw_shots(config, dataset)
    return Path("cache") / f"{dataset.name}{max(shots) if shots else ''}"
