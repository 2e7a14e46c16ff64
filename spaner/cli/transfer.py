"""`spaner transfer`: runs on data sets that they were not trained on."""

import json as jsons
from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers

HALVES = ["run", "classes", "base", "new", "H", "frozen base", "new", "H"]


def transfer(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders written by `spaner train`.", metavar="RUN...")
    ],
    *,
    to: Annotated[
        list[Path],
        console.cache_option("Cache of another data set; may be repeated."),
    ],
    base_to_new: Annotated[
        bool,
        typer.Option(
            help="Also train each run's settings on the first half of its classes and ask about the second."
        ),
    ] = True,
    out: Annotated[Path, console.out_option("Folder for transfer.json.")] = Path("transfer"),
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score trained runs on other data sets without training, beside the frozen encoder.

    Example: `spaner transfer runs/photos --to cache/other-photos`
    """
    from spaner.align.score.transfer import transfer as ask
    from spaner.align.train import run as checkpoint
    from spaner.cache.files import write_result

    loaded = {str(folder): checkpoint.load(folder) for folder in runs}
    towers = Towers(text_model, text_weights, pixels, data_root)
    for run in loaded.values():
        run.towers = towers
    rows = ask(loaded, to)
    halves = [_halves(name, run) for name, run in loaded.items()] if base_to_new else []
    told = {"check": "transfer", "rows": rows, "base_to_new": halves}
    write_result(out / "transfer.json", jsons.dumps(told, indent=2) + "\n")
    if json:
        console.dump(told)
        return
    print_transfer(rows)
    print_halves(halves)
    console.say(f"rows: {out / 'transfer.json'}")
    console.next_step(f"spaner report --check {out}")


def _halves(name: str, run: Any) -> dict[str, Any]:
    """Base-to-new of a run's settings on its own cache, or why there is no number."""
    from spaner.align.train.base_to_new import base_to_new
    from spaner.errors import SpanerError

    if run.cache is None or not run.cache.exists():
        return {"run": name, "reason": "the run's own cache is not where it was"}
    try:
        return {"run": name, **base_to_new(run.cache, run.config, run.towers)}
    except SpanerError as error:
        return {"run": name, "reason": str(error)}


def print_transfer(rows: list[dict[str, Any]]) -> None:
    """Accuracies on every data set, and what the run gains on the frozen encoder there, in points."""
    columns = [
        "run",
        "on",
        "chance",
        "text",
        "gain",
        "95 %",
        "semantic",
        "gain",
        "95 %",
        "gap",
        "V",
        "frozen V",
    ]
    console.table(columns, [_line(row) for row in rows if row["reason"] is None])
    for row in rows:
        if row["reason"] is not None:
            console.say(f"no number for {row['run']} on {row['dataset']}: {row['reason']}")


def _line(row: dict[str, Any]) -> list[str]:
    gains = row["gains"] or {}
    cells = [row["run"], row["dataset"], console.percent(row["chance"])]
    for kind in ("text", "semantic"):
        cells.append(console.percent(row[kind]))
        gain = gains.get(kind)
        cells += ["–", "–"] if gain is None else [_points(gain["mean"]), _between(gain)]
    frozen = (row["frozen"] or {}).get("v_measure")
    return [*cells, console.percent(row["gap"]), console.percent(row["v_measure"]), console.percent(frozen)]


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _between(gain: dict[str, float]) -> str:
    return f"{_points(gain['low'])} … {_points(gain['high'])}"


def print_halves(halves: list[dict[str, Any]]) -> None:
    """Base, new and their harmonic mean, the frozen encoder's beside them."""
    whole = [row for row in halves if "text" in row]
    if whole:
        lines = [
            [
                row["run"],
                " + ".join(map(str, row["classes"])),
                *(console.percent(row["text"][name]) for name in ("base", "new", "H")),
                *(
                    console.percent(((row["zero_shot"] or {}).get("text") or {}).get(n))
                    for n in ("base", "new", "H")
                ),
            ]
            for row in whole
        ]
        console.table(HALVES, lines, "trained on the first half of the classes, text retrieval")
    for row in halves:
        if row.get("reason"):
            console.say(f"base-to-new of {row['run']}: {row['reason']}")
