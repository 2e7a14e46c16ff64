"""What more modalities cost and bring: two to eight from one cache, time, memory and accuracy in a table.

The first modality gives the samples, text the names; the others follow in the order asked. For every number
of modalities two ways to the same space:

    joint      all are trained together, every pair compared
    extended   the first two are trained, each later one joins the frozen core, paired with the first

In the second, most pairs are *emergent*: no loss ever compared them, what they find they find through the
first. Recall@1 is the mean over ordered pairs of a kind, with its chance beside it. Time and memory are
those of training, evaluation apart; an extended space is counted with the trainings that led to it, its
memory being the largest of theirs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaner import cache as caches
from spaner.align.methods.loop import batch_bounds
from spaner.align.score.evaluate import evaluate, evaluate_modalities
from spaner.align.score.intervals import Number
from spaner.align.score.tables import opened_cache
from spaner.align.train.config import TrainConfig
from spaner.align.train.extend import extend
from spaner.align.train.fit import fit
from spaner.align.train.joint import trained_together
from spaner.align.train.kept import KeptResults
from spaner.align.train.run import Run
from spaner.cache import files
from spaner.errors import CacheError, RecipeError
from spaner.progress import Progress

MOST = 8
WAYS = ("joint", "extended")


@dataclass(frozen=True)
class Scaling:
    """What was found: a row for every number of modalities and way (see `scale`)."""

    dataset: str
    title: str
    modalities: list[str]
    seeds: list[int]
    rows: list[dict[str, Any]]


def scale(
    cache: caches.Cache | str | Path,
    modalities: Sequence[str] | None = None,
    base: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (1,),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Scaling:
    """Train two modalities, three, and so on, in both ways, and score every space.

    Args:
        modalities: in order, text among the first two; default image and text, then what else the cache has,
            by name, up to eight.
        base: settings of all trainings, `recipe` among them.
        seeds: of draw and training, which move together.
        out: folder of the cells and of `scale.json`; default `scales/<cache>`.

    Returns:
        Rows with `modalities` (how many), `added` (the last), `way`, and pairs mean and std over seeds:
        `seconds`, `step_ms` (a step of joint training), `megabytes`, `parameters`, `text`, `semantic`,
        `trained`, `emergent`, `chance`; None where there is no such number.

    Raises:
        RecipeError: fewer than two modalities, or text not among the first two. CacheError: no such table.
    """
    with opened_cache(cache) as opened:
        names = chosen(opened, modalities)
        folder = Path(out) if out is not None else Path("scales") / opened.path.stem
        kept = KeptResults(folder / "cells", opened, names)
        settings = dict(base or {})
        config = TrainConfig.from_recipe(settings.pop("recipe", "paper"), **settings)
        found = _cells(opened, config, names, seeds, kept, progress)
        rows = [
            {"modalities": count, "added": names[count - 1], "way": way, **_means(cells)}
            for (count, way), cells in sorted(found.items())
        ]
        result = Scaling(opened.dataset, config.title, names, list(seeds), rows)
        told = {"check": "scale", **asdict(result)}
        files.write_result(folder / "scale.json", json.dumps(told, indent=2) + "\n")
        return result


def _cells(
    cache: caches.Cache,
    config: TrainConfig,
    names: Sequence[str],
    seeds: Sequence[int],
    kept: KeptResults,
    progress: Progress | None,
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """The results of every number of modalities and way, one a seed."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    total, done = len(seeds) * len(WAYS) * (len(names) - 1), 0
    for seed in seeds:
        own = config.replace(seed=seed, draw_seed=seed)
        makers = {"joint": _Joint(cache, own, names), "extended": _Extended(cache, own, names)}
        for count in range(2, len(names) + 1):
            for way, maker in makers.items():
                decided = [own.identity(), names[:count], way]
                cell = kept.result(decided, partial(maker.cell, count))
                found.setdefault((count, way), []).append(cell)
                done += 1
                if progress:
                    progress(done, total, "runs")
    return found


def chosen(cache: caches.Cache, modalities: Sequence[str] | None) -> list[str]:
    """The modalities in order, each with a table to train from.

    Raises:
        RecipeError: fewer than two, one twice, more than eight, or no text among the first two.
        CacheError: a modality without training rows.
    """
    there = list(dict.fromkeys(name.split("/")[0] for name in cache.tables() if name.endswith("/train")))
    if modalities is None:
        modalities = ["image", "text", *sorted(set(there) - {"image"})][:MOST]
    names = list(modalities)
    if not 2 <= len(names) <= MOST or len(set(names)) < len(names) or "text" not in names[:2]:
        raise RecipeError(
            f"scale: modalities are {','.join(names) or 'none'}; "
            f"expected two to {MOST} different ones, text among the first two, "
            "since class names are what is asked for; write for example --modalities image,text,audio"
        )
    for name in names:
        if name != "text" and name not in there:
            raise CacheError(
                f"scale: {cache.path} has no {name}/train; expected one of {', '.join(there)}; extract it, "
                "or leave it out"
            )
    return names


class _Joint:
    """All modalities together."""

    def __init__(self, cache: caches.Cache, config: TrainConfig, names: Sequence[str]) -> None:
        self.cache, self.config, self.names = cache, config, names

    def cell(self, count: int) -> dict[str, Any]:
        config = self.config.replace(modalities=",".join(self.names[:count]))
        if count == 2:  # what is loaded on first use is no cost of the two
            fit(self.cache, config.replace(epochs=1))
        run = fit(self.cache, config)
        views = self.cache.table(f"{run.modality}/train").manifest.views
        rows = run.draw["rows"] * len(views)
        steps = config.epochs * len(batch_bounds(rows, config.batch_size))
        cost = {
            "seconds": run.seconds,
            "step_ms": 1e3 * run.seconds / steps,
            "bytes": held_bytes(run, list(run.widths), config),
        }
        return _scored(run, self.cache) | cost


class _Extended:
    """Two modalities, and later ones that join one by one; what was trained is kept for the next."""

    def __init__(self, cache: caches.Cache, config: TrainConfig, names: Sequence[str]) -> None:
        self.cache, self.config, self.names = cache, config, names
        self.runs: dict[int, tuple[Run, float, int]] = {}

    def cell(self, count: int) -> dict[str, Any]:
        run, seconds, memory = self._run(count)
        return _scored(run, self.cache) | {"seconds": seconds, "step_ms": None, "bytes": memory}

    def _run(self, count: int) -> tuple[Run, float, int]:
        if count not in self.runs and count == 2:
            run = fit(self.cache, self.config.replace(modalities=",".join(self.names[:2])))
            self.runs[count] = run, run.seconds, held_bytes(run, self.names[:2], self.config)
        elif count not in self.runs:
            core, seconds, memory = self._run(count - 1)
            run, anchor = self._joined(core, self.names[count - 1]), self.names[0]
            trained = held_bytes(run, [self.names[count - 1], anchor], self.config)
            self.runs[count] = run, seconds + run.extensions[-1]["seconds"], max(memory, trained)
        return self.runs[count]

    def _joined(self, run: Run, modality: str) -> Run:
        own = self.config
        anchor = next(name for name in run.widths if name != "text")
        shared = {name: getattr(own, name) for name in ("shots", "draw_seed", "seed", "epochs", "device")}
        return extend(run, self.cache, modality=modality, anchor=anchor, batch_size=own.batch_size, **shared)


def held_bytes(run: Run, modalities: Sequence[str], config: TrainConfig) -> int:
    """Bytes that a training step holds: parameters, and of those that are trained the slopes and AdamW's two
    moments; and what the forward pass of a full batch keeps for the backward one. Counted on made-up vectors,
    so it is the same on every machine; what products need for a moment is not in it."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model, draw = run.model.train(), torch.Generator().manual_seed(0)
    rows = min(config.batch_size, run.draw["rows"])
    batch = {name: torch.randn(rows, run.widths[name], generator=draw) for name in modalities}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(batch, torch.zeros(rows, dtype=torch.long))
    model.eval()
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return sum(p.nbytes for p in model.parameters()) + 3 * trained + sum(kept.values())


def _scored(run: Run, cache: caches.Cache) -> dict[str, Any]:
    scores = evaluate(run, cache, device=run.config.device)
    across = evaluate_modalities(run, cache, trained_together(run))
    kinds = {kind: across[kind] and across[kind]["recall@1"] for kind in ("trained", "emergent")}
    return {
        "text": scores["text"]["accuracy"],
        "semantic": scores["semantic"]["accuracy"],
        **kinds,
        "chance": float(np.mean([pair["chance"] for pair in across["pairs"]])),
        "parameters": sum(p.numel() for p in run.model.parameters()),
    }


def _means(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds of every number that all cells have."""
    columns = {name: [cell[name] for cell in cells] for name in cells[0]}
    columns["megabytes"] = [value / 1e6 for value in columns.pop("bytes")]
    return {name: None if None in values else _spread(values) for name, values in columns.items()}


def _spread(values: Sequence[float]) -> list[float]:
    number = Number.over(values)
    assert number is not None
    return [number.value, number.std or 0.0]
