"""`spaner reproduce`: the paper's tables and figures again, its numbers beside ours."""

from pathlib import Path
from typing import Annotated, Any

import typer

from spaner.cli import console
from spaner.cli.options import On, parse
from spaner.cli.towers import DataRoot, Pixels, TextModel, TextWeights, Towers

SOUND = {"table3", "table5", "table6", "fig5"}


def reproduce(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="table1 … table6, or fig4 … fig8.")],
    *,
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set.", show_default="imagenet; imagenet-esc-19 where sound is heard"),
    ] = None,
    cache: Annotated[
        Path | None,
        console.cache_option("Its cache.", show_default="cache/imagenet16, else cache/DATASET"),
    ] = None,
    out: Annotated[
        Path | None, console.out_option("Folder.", show_default="reproduced/ARTIFACT-DATASET")
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="int,…", help="Seeds of training to average over.")] = "1,2,3",
    shift: Annotated[
        list[Path] | None, typer.Option(help="Cache of a shifted test set, for table4; may be repeated.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run that sound joins, instead of one trained on the cache's own images."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Instead of the recipe's: a quick look, marked not comparable.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells of a sweep at once.", show_default="one per core")
    ] = None,
    on: On = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Further rows of table1, 2 and 4, with commas: coop,cocoop,maple,mma …"),
    ] = None,
    text_model: TextModel = None,
    text_weights: TextWeights = None,
    pixels: Pixels = None,
    data_root: DataRoot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON record.")] = False,
) -> None:
    """Make a table or figure of the paper again from caches that exist, and show its numbers beside ours.

    Example: `spaner reproduce table1 --dataset digits`
    """
    from json import loads

    from spaner.align.paper.reproduce import Setup
    from spaner.align.paper.reproduce import reproduce as make
    from spaner.align.report.write import write

    data = dataset or ("imagenet-esc-19" if artifact in SOUND else "imagenet")
    setup = Setup(
        artifact=artifact,
        dataset=data,
        cache=cache or Path("cache") / ("imagenet16" if data == "imagenet" else data),
        out=out or Path("reproduced") / f"{artifact}-{data}",
        seeds=parse(tuple[int, ...], seeds, "--seeds"),
        shift=tuple(shift or ()),
        run=run,
        epochs=epochs,
        workers=workers,
        on=on,
        methods=tuple(name.strip() for name in (methods or "").split(",") if name.strip()),
        towers=Towers(text_model, text_weights, pixels, data_root),
    )
    with console.progress("steps") as progress:
        made = make(setup, progress)
    record = setup.out / f"{artifact}.json"
    if json:
        console.dump(loads(record.read_text(encoding="utf-8")))
    else:
        show(made)
    sweeps = [made.sweep] if made.sweep else []
    beside = {"shifts": setup.shift, "towers": setup.towers}
    page, *_ = write(made.runs, setup.out / "report.html", sweeps=sweeps, **beside)
    figures = [str(file) for file in made.figures if file.suffix == ".png" and "dark" not in file.name]
    console.note(f"written: {', '.join([str(record), *figures, str(page)])}")


def show(made: Any) -> None:
    """Ours and the published row under it, why they may not be compared, and what was left out."""
    numbers, *lists = made.tables
    console.say(numbers.title)
    print_table(numbers)
    for listed in lists:
        console.say("")
        print_table(listed)
    if made.why_not:
        console.say(f"not comparable with the published rows, because: {'; '.join(made.why_not)}")
    for note in made.notes:
        console.say(note)
    for line in made.missing:
        console.say(f"left out: {line}")


def print_table(table: Any) -> None:
    """A report's table on the terminal; published rows are marked, deviations stand beside their means."""
    from spaner.align.report.table import APART, OURS, told

    def name(row: Any) -> str:
        mark = ", not comparable" if row.mark == APART else ""
        return row.name if row.mark == OURS else f"  published: {row.name}{mark}"

    rows = [
        [name(row), *(told(row.numbers.get(column.key), column.unit) for column in table.columns)]
        for row in table.rows
    ]
    console.table([table.first, *(column.title for column in table.columns)], rows)
