"""Where a number came from, what repeats it, and which runs may stand side by side or beside the paper.

The origin of a number is a split hash, an encoder, a seed and the command to type. Runs tested on other rows,
drawn otherwise or made by another encoder are never averaged; `apart` and `why_apart` say why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from spaner.align.report import published
from spaner.align.report.measured import Bench, Entry, Measured
from spaner.align.train.config import ExtendConfig, TrainConfig, parts_of
from spaner.errors import RecipeError
from spaner.settings import axes

FROZEN = "frozen encoder"


def benches(entries: Sequence[Entry]) -> list[tuple[Bench, list[Entry]]]:
    """Runs grouped by what they were tested on, in order of appearance."""
    grouped: dict[int, tuple[Bench, list[Entry]]] = {}
    for entry in entries:
        grouped.setdefault(id(entry.bench), (entry.bench, []))[1].append(entry)
    return list(grouped.values())


def heading(bench: Bench) -> str:
    """What a bench is, in a line."""
    classes = len(bench.class_names)
    counted = f"{classes:,} {'class' if classes == 1 else 'classes'}"
    return f"{bench.dataset} · {bench.table} · {bench.rows:,} rows · {counted}"


def spaces(bench: Bench, members: Sequence[Entry]) -> dict[str, Measured]:
    """The frozen encoder, if it has a common space, and every run, by name."""
    frozen = {FROZEN: bench.frozen} if bench.frozen else {}
    return frozen | {entry.name: entry.aligned for entry in members}


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
    method = config.get("method", "spaner")
    try:
        base = TrainConfig.from_recipe(config["recipe"], method=method)
    except RecipeError:  # a file that is not here: say everything
        base = TrainConfig.from_recipe(TrainConfig().recipe, method=method)
    if base.recipe != TrainConfig().recipe:
        yield f"--recipe {base.recipe}"
    if method != TrainConfig().method:
        yield f"--method {method}"
    yield from _options(config, base.to_json(), {"recipe", "method", *(skip or ())})


def _options(config: dict[str, Any], base: dict[str, Any], skip: set[str]) -> Iterator[str]:
    for name, value in config.items():
        if name not in skip and value is not None and value != base.get(name):
            yield f"--{name.replace('_', '-')} {value}"
