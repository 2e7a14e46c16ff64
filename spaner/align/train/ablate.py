"""What the shared prompt contributes: the same training without it, with more of it, and with a wrong one.

The *reference* is the asked configuration. Beside it stand variants that are trained (no prompt, other
lengths, an untrained prompt, a prompt of its own for each modality, attention removed) and the trained
reference with its prompt replaced before it is scored: drawn anew at the same size, its features permuted
(permuting its tokens would change nothing: attention has no positions), or that of another seed's run. A
variant that scores as the reference does says that what it took away was not needed.

Every variant is trained on the same draws and scored on the same rows, so differences are paired: the
interval is over test rows, the deviation over seeds. A seed is that of the training and of the few-shot draw.
Each run is a file; a stopped ablation goes on where it was.
"""

import copy
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spaner.cache
from spaner.align.methods.task import Task
from spaner.align.score.evaluate import evaluate_modalities, matches, zero_shot
from spaner.align.score.intervals import Number, paired_difference
from spaner.align.score.tables import opened_cache, tested_table
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.joint import check_named, modalities_of, trained_together
from spaner.align.train.kept import KeptResults
from spaner.align.train.run import Run
from spaner.align.train.task import task
from spaner.cache import files
from spaner.errors import RecipeError
from spaner.progress import Progress

LENGTHS = (1, 2, 4, 8, 16, 32)
REFERENCE = "reference"
TRAINED: dict[str, dict[str, Any]] = {
    "no prompt (P = 0)": {"prompt_length": 0},
    "prompt not trained": {"prompt": "frozen"},
    "a prompt for each modality": {"prompt": "own"},
    "no attention: linear heads": {"aligner": "linear"},
}
REPLACED = ("prompt drawn anew", "prompt's features permuted", "prompt of another run")


@dataclass(frozen=True)
class PromptAblation:
    """What was found: `rows` are one a variant, the reference first (see `_row`), and zero-shot's accuracies
    where the frozen encoders share a space."""

    dataset: str
    title: str
    modalities: list[str]
    seeds: list[int]
    zero_shot: dict[str, float] | None
    rows: list[dict[str, Any]]


def ablate_prompt(
    cache: spaner.cache.Cache | str | Path,
    base: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (1, 2, 3),
    lengths: Sequence[int] = LENGTHS,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> PromptAblation:
    """Train every variant at every seed, score all on the tested table, and compare with the reference.

    Args:
        base: settings of the reference, `recipe` among them.
        lengths: prompt lengths beside the reference's own.
        out: folder of the cells and of `ablation.json`; default `ablations/<cache>`.

    Raises:
        RecipeError: a method without a prompt, no seed, or a setting without meaning.
    """
    with opened_cache(cache) as opened:
        folder = Path(out) if out is not None else Path("ablations") / opened.path.stem
        settings = dict(base or {})
        reference = TrainConfig.from_recipe(settings.pop("recipe", "paper"), **settings)
        _check(reference, seeds)
        found: dict[str, list[dict[str, Any]]] = {}
        variants = trained_variants(reference, lengths)
        kept = KeptResults(folder / "cells", opened, modalities_of(reference))
        work = _Work(opened, kept, len(seeds) * (len(variants) + len(REPLACED)), progress)
        for name, config in variants.items():
            found[name] = [work.trained(name, _seeded(config, seed)) for seed in seeds]
        for place, seed in enumerate(seeds):
            other = seeds[(place + 1) % len(seeds)] if len(seeds) > 1 else seed + 1
            for name, cell in work.replaced(_seeded(reference, seed), _seeded(reference, other)).items():
                found.setdefault(name, []).append(cell)
        frozen = zero_shot(opened)
        result = PromptAblation(
            opened.dataset,
            reference.title,
            found[REFERENCE][0]["modalities"],
            list(seeds),
            frozen and {kind: frozen[kind]["accuracy"] for kind in ("text", "semantic")},
            [_row(name, cells, found[REFERENCE]) for name, cells in found.items()],
        )
        told = {"check": "prompt", **asdict(result)}
        files.write_result(folder / "ablation.json", json.dumps(told, indent=2) + "\n")
        return result


def _check(reference: TrainConfig, seeds: Sequence[int]) -> None:
    if reference.method != "spaner":
        raise RecipeError(
            f"ablate prompt: method {reference.method} has no shared prompt; expected spaner; "
            "leave --method out"
        )
    check_named(reference, "ablate prompt")
    if not seeds:
        raise RecipeError("ablate prompt: the list for seeds is empty; give at least one value")
    if not (reference.prompt_length and reference.prompt == "shared" and reference.aligner == "attention"):
        raise RecipeError(
            "ablate prompt: the reference has no shared, trained prompt to take away; "
            "expected prompt_length of 1 or more, prompt=shared and aligner=attention; "
            "leave these options out"
        )


def trained_variants(reference: TrainConfig, lengths: Sequence[int]) -> dict[str, TrainConfig]:
    """Name -> configuration, the reference first."""
    found = {REFERENCE: reference}
    found |= {name: reference.replace(**changes) for name, changes in TRAINED.items()}
    more = [length for length in dict.fromkeys(lengths) if length != reference.prompt_length]
    return found | {f"P = {length}": reference.replace(prompt_length=length) for length in more}


def _seeded(config: TrainConfig, seed: int) -> TrainConfig:
    return config.replace(seed=seed, draw_seed=seed)


class _Work:
    """Trains and scores what no file holds yet; a trained reference is kept until its prompt is replaced."""

    def __init__(
        self, cache: spaner.cache.Cache, kept: KeptResults, total: int, progress: Progress | None
    ) -> None:
        self.cache, self.kept, self.total, self.progress, self.done = cache, kept, total, progress, 0
        self.table = tested_table(cache, None)
        self.runs: dict[TrainConfig, Run] = {}
        self.tasks: dict[str, Task] = {}

    def trained(self, name: str, config: TrainConfig) -> dict[str, Any]:
        """The cell of a variant that is trained."""

        def make() -> dict[str, Any]:
            run = self._run(config)
            if name == REFERENCE:
                self.runs[config] = run
            return self._scored(run)

        return self._told(self.kept.result(config.identity(), make))

    def replaced(self, config: TrainConfig, other: TrainConfig) -> dict[str, dict[str, Any]]:
        """The cells of a trained run whose prompt is another."""

        def make(name: str) -> dict[str, Any]:
            for each in (config, other):
                if each not in self.runs:
                    self.runs[each] = self._run(each)
            return self._scored(dict(replaced_prompts(self.runs[config], self.runs[other]))[name])

        decided = [config.identity(), other.identity()]
        return {
            name: self._told(self.kept.result([*decided, name], partial(make, name))) for name in REPLACED
        }

    def _run(self, config: TrainConfig) -> Run:
        key = json.dumps([config.shots, config.draw_seed])
        if key not in self.tasks:
            self.tasks = {key: task(self.cache, config)}
        return fit(self.tasks[key], config)

    def _scored(self, run: Run) -> dict[str, Any]:
        found = matches(run, self.cache, self.table)
        pairs = None
        if len(run.widths) > 2:
            across = evaluate_modalities(run, self.cache, trained_together(run))
            pairs = float(np.mean([pair["recall@1"] for pair in across["pairs"]]))
        return {
            "credit": {kind: np.round(match.credit, 6).tolist() for kind, match in found.items()},
            "pairs": pairs,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "seconds": run.seconds,
            "modalities": list(run.widths),
        }

    def _told(self, cell: dict[str, Any]) -> dict[str, Any]:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, "runs")
        return cell


def replaced_prompts(run: Run, donor: Run) -> Iterator[tuple[str, Run]]:
    """The run with each of the wrong prompts, drawn by its own seed; nothing else moves."""
    draw = torch.Generator().manual_seed(run.config.seed)
    own = run.model.prompt.detach()
    anew = torch.randn(own.shape, generator=draw) * own.square().mean().sqrt()
    permuted = own[:, torch.randperm(own.shape[1], generator=draw)]
    for name, prompt in zip(REPLACED, (anew, permuted, donor.model.prompt.detach()), strict=True):
        changed = copy.copy(run)
        changed.model = copy.deepcopy(run.model)
        changed.model.prompt.data.copy_(prompt)
        yield name, changed


def _row(
    name: str, cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Mean accuracy and its deviation over seeds, by kind; and the reference minus the variant, in accuracy:
    `mean`, its 95 % interval over test rows (`low`, `high`, each row the mean over seeds) and `std`, the
    deviation of the difference over seeds."""
    row: dict[str, Any] = {"variant": name, "runs": len(cells)}
    for kind in ("text", "semantic"):
        own, theirs = (np.array([cell["credit"][kind] for cell in of]) for of in (cells, reference))
        row[kind] = _mean([float(credit.mean()) for credit in own])
        between = paired_difference(theirs.mean(0), own.mean(0))
        by_seed = (theirs.mean(1) - own.mean(1)).tolist()
        row[f"{kind}_lost"] = {"mean": between.value, "low": between.low, "high": between.high}
        row[f"{kind}_lost"]["std"] = _mean(by_seed)["std"]
    pairs = [cell["pairs"] for cell in cells if cell["pairs"] is not None]
    row["pairs"] = _mean(pairs) if pairs else None
    row["parameters"] = cells[0]["parameters"]
    row["seconds"] = statistics.fmean(cell["seconds"] for cell in cells)
    return row


def _mean(values: Sequence[float]) -> dict[str, float]:
    number = Number.over(values)
    assert number is not None
    return {"mean": number.value, "std": number.std or 0.0}
