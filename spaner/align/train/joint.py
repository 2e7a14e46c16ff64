"""Joint training: which modalities, and which of their rows belong to a sample.

`--modalities image,text,audio` trains three at once. The first that is not text gives the samples; text gives
every class its names; a further modality gives each sample a row of its class, or with `--pair id` a row of
its own id, if it has one. Reads `<modality>/train` of each and never a test row.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from spaner import cache as caches
from spaner.align.methods.task import Captions, Companion, Samples
from spaner.align.score.tables import unit_rows
from spaner.align.train.rows import drawn_samples, good_rows, samples_of
from spaner.errors import CacheError, RecipeError


def modalities_of(config: Any) -> tuple[str, ...]:
    """The modalities that a configuration trains together beside text, the samples' first; image by default.

    Raises:
        RecipeError: one modality, or one twice.
    """
    text = getattr(config, "modalities", "image,text")
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if len(set(names)) < max(2, len(names)):
        raise RecipeError(
            f"modalities is {text!r}; expected two different ones or more; "
            "write for example --modalities image,text,audio"
        )
    return tuple(name for name in names if name != "text")


def reads_text(config: Any) -> bool:
    """Whether class names are trained on; without them classes are labels alone, and nothing asks by name."""
    named = getattr(config, "modalities", "image,text")
    return "text" in [name.strip() for name in named.split(",")]


def check_named(config: Any, command: str) -> None:
    """RecipeError unless class names are trained on: `command` compares what is found by them."""
    if not reads_text(config):
        raise RecipeError(
            f"{command}: modalities is {config.modalities!r}; "
            "expected text among them, since accuracies are those of class names; "
            "write for example --modalities image,text,audio"
        )


def companions(
    cache: caches.Cache, config: Any, names: tuple[str, ...]
) -> Iterator[tuple[str, Companion, caches.Table]]:
    """Name, rows and table of every modality that is trained beside the samples and the texts.

    Raises:
        CacheError: a table is missing, a class has no row, or no id is in common.
    """
    anchor = cache.table(f"{names[0]}/train")
    for name in names[1:]:
        table = cache.table(f"{name}/train")
        if config.pair == "id":
            yield name, _of_one_sample(table, anchor, config), table
        else:
            samples = drawn_samples(table, config.shots, config.draw_seed)
            _check_classes(
                samples, drawn_samples(anchor, config.shots, config.draw_seed), name, names[0], cache
            )
            yield name, Companion(samples), table


def _of_one_sample(table: caches.Table, anchor: caches.Table, config: Any) -> Companion:
    """The rows of each training sample: that of its id, or several, SAMPLE#0, SAMPLE#1 … as captions are."""
    found, start, count = _rows_of_samples(table, anchor, config)
    return Companion(samples_of(table, found, None, None), start, count)


def _rows_of_samples(
    table: caches.Table, anchor: caches.Table, config: Any
) -> tuple[Int[np.ndarray, " M"], Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Good rows of the training samples, sample by sample, and where those of each begin and how many there
    are."""
    wanted = anchor.ids[good_rows(anchor, config.shots, config.draw_seed)].tolist()
    own: dict[str, list[int]] = {name: [] for name in wanted}
    for row, name in enumerate(table.ids.tolist()):
        sample = name if name in own else name.rpartition("#")[0]
        if table.ok[row] and sample in own:
            own[sample].append(row)
    found = np.array([row for rows in own.values() for row in rows], np.int64)
    if not len(found):
        raise CacheError(
            f"no id of {table.name} is the id of a training row of {anchor.name}: "
            f"found {str(table.ids[0])!r} beside {str(wanted[0])!r}; "
            "expected rows of one sample under one id; use --pair class"
        )
    count = torch.tensor([len(own[name]) for name in wanted])
    return found, count.cumsum(0) - count, count


def captions_of(
    cache: caches.Cache, config: Any, samples: caches.Table
) -> tuple[Captions | None, list[caches.Table]]:
    """Captions of the training samples and the tables that were read; none where `texts` does not ask.

    Raises:
        CacheError: there is no table of captions, or no caption of a training sample.
    """
    if getattr(config, "texts", "class") != "caption":
        return None, []
    if not cache.has("caption/train"):
        raise CacheError(
            f"texts is caption, and {cache.path} has no table caption/train; expected captions of its "
            "images; type `spaner extract --caption-column NAME`, or use --texts class"
        )
    said = cache.table("caption/train")
    found, start, count = _rows_of_samples(said, samples, config)
    x = unit_rows(said, found)[0][:, 0]
    negated, forms, tables = torch.zeros_like(x), torch.full((len(x),), -1), [said]
    if cache.has("negated/train"):
        table = cache.table("negated/train")
        place = {name: row for row, name in enumerate(table.ids.tolist()) if table.ok[row]}
        forms = torch.tensor([place.get(name, -1) for name in said.ids[found].tolist()])
        if (denied := forms >= 0).any():
            negated[denied] = unit_rows(table, forms[denied].numpy())[0][:, 0]
            tables.append(table)
    return Captions(x, start, count, negated, torch.from_numpy(found), forms), tables


def _check_classes(samples: Samples, anchors: Samples, name: str, anchor: str, cache: caches.Cache) -> None:
    alone = sorted(set(anchors.labels.tolist()) - set(samples.labels.tolist()))
    if alone:
        raise CacheError(
            f"class {cache.class_names[alone[0]]!r} has {anchor} and no {name} to train with ({len(alone)} "
            "such classes); expected one row each at least; "
            f"extract {name}/train for these classes, or pair rows of one sample with --pair id"
        )


def trained_together(run: Any) -> list[tuple[str, str]]:
    """Pairs of modalities that a loss compared: all of the core, and a later one with its anchor."""
    joined = {each["config"]["modality"]: each["config"]["anchor"] for each in run.extensions}
    core = [name for name in run.widths if name not in joined]
    return [*combinations(core, 2), *joined.items()]
