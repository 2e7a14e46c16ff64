"""Where a number came from and what repeats it: split hash, encoder, seed and the command to type."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from spaner.align.report.run import Entry
from spaner.align.train.config import ExtendConfig, TrainConfig, parts_of
from spaner.errors import RecipeError
from spaner.settings import axes


def origin(entry: Entry, *, frozen: bool = False) -> dict[str, Any]:
    """The origin of a run's numbers, or of the frozen encoder's on the run's bench."""
    run, bench = entry.run, entry.bench
    encoder = run.encoders[bench.table.split("/")[0]]
    return {
        "dataset": bench.dataset,
        "tested": bench.table,
        "tested_sha256": bench.tables[bench.table],
        "test_rows": bench.rows,
        "draw_sha256": "" if frozen else run.draw["sha256"],
        "encoder": f"{encoder.name} {encoder.weights}",
        "weights_sha256": encoder.weights_sha256,
        "seed": "" if frozen else run.config.seed,
        "command": f"spaner eval --run {entry.name} --cache {bench.cache}"
        if frozen
        else train_command(entry),
    }


def train_command(entry: Entry) -> str:
    """What to type to train the run again: every setting that its recipe does not set."""
    run, cache = entry.run, entry.bench.cache
    words = [f"spaner train --cache {cache}", *_settings(run.config.to_json())]
    for record in run.extensions:
        join = ExtendConfig(**record["config"])
        words += [f"&& spaner extend --run RUN --cache {cache} --modality {join.modality}"]
        words += _options(record["config"], dataclasses.asdict(ExtendConfig()), {"modality"})
    return " ".join(words)


def sweep_command(cells: Sequence[dict[str, Any]]) -> str:
    """What to type to run a sweep again; CACHE is the one whose tables have the hashes given beside it."""
    kinds = [kind for cell in cells for kind in parts_of(cell["config"].get("method", "spaner"))]
    option = {setting: name.replace("_", "-") for name, setting in axes(*kinds).items()}
    lists: dict[str, dict[str, None]] = {}
    for cell in cells:
        for setting, value in cell["varied"].items():
            lists.setdefault(setting, {})[str(value)] = None
    words = [f"--{option[setting]} {','.join(values)}" for setting, values in lists.items()]
    return " ".join(["spaner sweep --cache CACHE", *words, *_settings(cells[0]["config"], set(lists))])


def _settings(config: dict[str, Any], skip: set[str] | None = None) -> Iterator[str]:
    """A training's recipe, if it is not the default, and the options that differ from it."""
    try:
        base = TrainConfig.from_recipe(config["recipe"])
    except RecipeError:  # a file that is not here: say everything
        base = TrainConfig()
    if base.recipe != TrainConfig().recipe:
        yield f"--recipe {base.recipe}"
    yield from _options(config, base.to_json(), {"recipe", *(skip or ())})


def _options(config: dict[str, Any], base: dict[str, Any], skip: set[str]) -> Iterator[str]:
    for name, value in config.items():
        if name not in skip and value is not None and value != base[name]:
            yield f"--{name.replace('_', '-')} {value}"
