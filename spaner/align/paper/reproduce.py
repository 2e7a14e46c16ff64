"""The paper's tables and figures made again from caches that exist, the published rows beside ours.

    reproduce(Setup("table1", "digits", Path("cache/digits"), Path("reproduced/table1-digits")))

A table is a function of a `Setup` and its opened cache (`image_text`, `audio`). It trains what it needs into
`<out>/runs` or `<out>/sweep`, where a second call finds it, and returns a `Reproduction`: tables as a report
has them, each measured row with the paper's row below it where it prints one, and the reasons why the two may
not be compared. Nothing is extracted here: what a cache lacks is named with the command that makes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.report import published
from spaner.align.report.table import OURS, Cell, Column, ReportTable, Row, averaged, plain
from spaner.align.score.evaluate import evaluate
from spaner.align.train import run as checkpoint
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import train
from spaner.align.train.run import Run
from spaner.cache import files
from spaner.errors import CacheError, RecipeError
from spaner.progress import Progress, no_progress

SCHEMA = "spaner-reproduction/2"

#: What can be made again, and the function that makes it.
ARTIFACTS = {
    "table1": "spaner.align.paper.image_text:accuracy",
    "table2": "spaner.align.paper.image_text:positive_cosine",
    "table3": "spaner.align.paper.audio:audio_to_text",
    "table4": "spaner.align.paper.image_text:domain_shift",
    "table5": "spaner.align.paper.audio:retrieval_into_audio",
    "table6": "spaner.align.paper.audio:examples",
    "fig4": "spaner.align.paper.image_text:cosine_curves",
    "fig5": "spaner.align.paper.audio:cosine_curves",
    "fig6": "spaner.align.paper.image_text:prompt_lengths",
    "fig7": "spaner.align.paper.image_text:templates_and_widths",
    "fig8": "spaner.align.paper.image_text:confusion",
}
SWEPT = ("fig6", "fig7")
"""Those whose runs are the cells of a sweep."""
RECIPES = ("paper", "anchored")

#: Settings besides the recipe's. 539 scans in two views are 1,078 pairs: batches of 64 stand for the paper's
#: 256 of 32,000.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"batch_size": 64},
    "imagenet": {"shots": 16},
    "imagenet-esc-19": {"shots": 16},
    "imagenet-esc-27": {"shots": 16},
}


@dataclass(frozen=True)
class Setup:
    """What to make again, from which data, and where it goes.

    Attributes:
        seeds: of training; image–text numbers are means over them. Audio trains its core with the first.
        shift: caches of shifted test sets (table4).
        run: a trained run that audio joins, instead of one trained on the cache's own images.
        epochs: instead of the recipe's, for a quick look: marked not comparable.
        workers: processes of a sweep. on: the Ray cluster that a sweep runs on, see `train.sweep`.
        methods: further rows of Tables 1, 2 and 4, beside SPANER's recipes.
        towers: for methods that learn inside an encoder's towers, see `train.cells` and `Run`.
    """

    artifact: str
    dataset: str
    cache: Path
    out: Path
    seeds: tuple[int, ...] = (1, 2, 3)
    shift: tuple[Path, ...] = ()
    run: Path | None = None
    epochs: int | None = None
    workers: int | None = None
    on: str | None = None
    methods: tuple[str, ...] = ()
    towers: Any = None

    def settings(self) -> dict[str, Any]:
        """What all runs share besides the recipe."""
        return SETTINGS.get(self.dataset, {}) | ({"epochs": self.epochs} if self.epochs else {})


@dataclass
class Reproduction:
    """A table or figure made again.

    Attributes:
        tables: the numbers, and where there are words to list (Table 6's examples, Figure 8's pairs) those.
        why_not: reasons why ours and the published rows cannot be compared; empty where they can.
        missing: one line for each part left out, with the command that makes it.
        notes: what a reader must know besides.
        facts: everything measured, for the JSON file.
        runs, sweep, figures: what was made on the way.
    """

    tables: list[ReportTable]
    why_not: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    runs: list[Path] = field(default_factory=list)
    sweep: Path | None = None
    figures: list[Path] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What it is, and where it stands in the paper."""
        return self.tables[0].title


def reproduce(setup: Setup, progress: Progress | None = None) -> Reproduction:
    """Make the artifact again and write `<out>/<artifact>.json`.

    Raises:
        RecipeError: no such artifact, or no seed. CacheError: a cache or table is missing; the line says what
            to type.
    """
    if setup.artifact not in ARTIFACTS:
        raise RecipeError(
            f"reproduce {setup.artifact}: there is none; expected one of {', '.join(ARTIFACTS)}; "
            "type for example `spaner reproduce table1 --dataset digits`"
        )
    if setup.on and setup.artifact not in SWEPT:
        raise RecipeError(
            f"reproduce {setup.artifact} --on {setup.on}: its runs are trained here in turn; expected "
            f"one of {', '.join(SWEPT)}, whose cells run on a cluster; leave --on out"
        )
    if not setup.seeds:
        raise RecipeError("reproduce: the list of seeds is empty; expected at least one; type --seeds 1,2,3")
    for who in setup.methods:
        config_of(setup, who, setup.seeds[0])  # an unknown name is said before anything is trained
    module, _, name = ARTIFACTS[setup.artifact].partition(":")
    with opened(setup) as cache:
        made: Reproduction = getattr(import_module(module), name)(setup, cache, progress or no_progress)
        record = to_json(setup, cache, made)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    files.write_result(setup.out / f"{setup.artifact}.json", text)
    return made


def opened(setup: Setup) -> caches.Cache:
    """The cache, with the tables that every artifact needs.

    Raises:
        CacheError: no cache there, or a table is missing; Unsealed: one is not finished.
    """
    needed = ["image/train", "text/mined", "text/vanilla", "text/classname"]
    cache = found(setup.cache, setup.dataset, f"{setup.artifact} needs {', '.join(needed)}")
    lacking = [name for name in needed if not cache.has(name)]
    if not lacking and not cache.has("image/val"):
        lacking = ["image/test"] * (not cache.has("image/test"))
    for name in lacking:
        if name in cache.unsealed():
            cache.table(name)  # raises, saying how far it is
        raise CacheError(
            f"{setup.artifact} needs {name}, and {setup.cache} holds {', '.join(cache.tables())}; "
            f"type `{extract_command(cache.dataset, setup.cache, name.split('/')[0])}`"
        )
    return cache


def found(path: Path, dataset: str, why: str) -> caches.Cache:
    """The cache at `path`; CacheError with the command that makes it where there is none."""
    if not path.exists():
        raise CacheError(f"no cache at {path}: {why}; type `{extract_command(dataset, path)}`")
    return caches.open(path)


def extract_command(dataset: str, cache: Path, modality: str = "") -> str:
    """What to type to fill a cache with a modality of a data set; all of them where none is named."""
    words = ["spaner extract"]
    if dataset == "imagenet" or dataset.startswith(("imagenet-v2", "imagenet-s", "imagenet-a", "imagenet-r")):
        modality = modality or "image"
    if dataset != "imagenet":
        words.append(f"--dataset {dataset}")
    if modality:
        words.append(f"--modality {modality}")
    if dataset.startswith("imagenet-esc"):
        words.append("--shots 16")
    usual = "cache/imagenet16" if dataset == "imagenet" else f"cache/{dataset}"
    if str(cache) != usual or "esc" in dataset:
        words.append(f"--cache {cache}")
    return " ".join(words)


def core(setup: Setup, cache: caches.Cache, who: str, seed: int, progress: Progress) -> tuple[Path, Run]:
    """A run of a recipe or method on the cache, trained and scored, or found again where the same one was
    saved."""
    config = config_of(setup, who, seed)
    folder = setup.out / "runs" / f"{who}-seed-{seed}"
    run = _saved(folder, config, cache)
    if run is None:
        what = f"train {who}, seed {seed}"
        tools = setup.towers(cache.path, config.method, config.device) if setup.towers else {}
        run, _ = train(cache, config, folder, lambda done, total, _: progress(done, total, what), **tools)
        run.towers = setup.towers
        return folder, run
    run.towers = setup.towers
    run.metrics = evaluate(run, cache, device=config.device)  # its test tables may be new
    return run.save(folder), run


def config_of(setup: Setup, who: str, seed: int) -> TrainConfig:
    """Settings of a recipe, or a method's own defaults on the same rows, in as many epochs if it has any.

    Raises:
        RecipeError: neither a recipe nor a method.
    """
    if who in RECIPES:
        return TrainConfig.from_recipe(who, **setup.settings() | {"seed": seed})
    known = TrainConfig(method=who).to_json().keys() & {"shots", "epochs"}
    own = {name: value for name, value in setup.settings().items() if name in known}
    return TrainConfig.from_recipe(method=who, **own, seed=seed)


def _saved(folder: Path, config: TrainConfig, cache: caches.Cache) -> Run | None:
    """The run in the folder, if it was trained with these settings on these tables."""
    if not (folder / "result.json").exists():
        return None
    run = checkpoint.load(folder)
    there = {name: cache.table(name).manifest.sha256 for name in run.tables if cache.has(name)}
    return run if run.config == config and run.tables == there else None


def cores(
    setup: Setup, cache: caches.Cache, progress: Progress, seeds: Sequence[int] | None = None
) -> dict[str, list[tuple[Path, Run]]]:
    """Recipe or method -> its runs over the seeds."""
    return {
        who: [core(setup, cache, who, seed, progress) for seed in seeds or setup.seeds]
        for who in (*RECIPES, *setup.methods)
    }


def table_of(
    setup: Setup, title: str, columns: Sequence[Column], rows: Sequence[Row], key: str = ""
) -> ReportTable:
    """The artifact's table: one group, its rows named by system."""
    return ReportTable(key or setup.artifact, title, list(columns), [("", list(rows))], first="")


def rows_beside(
    setup: Setup,
    name: str,
    repeated: Sequence[Mapping[str, Cell]],
    paper: str,
    known: Mapping[str, float],
    why_not: Sequence[str],
) -> list[Row]:
    """Our row, the mean over repetitions, and below it the paper's for the same columns.

    Args:
        paper: name of the published row. known: its numbers; those of other columns are left out.
    """
    about = {"dataset": setup.dataset, "seed": " ".join(map(str, setup.seeds))}
    rows = [Row(name, OURS, averaged(repeated), "", about)]
    numbers = {key: known[key] for key in repeated[0] if key in known}
    where = setup.artifact.replace("table", "Table ").replace("fig", "Figure ")
    return rows + ([published.row(paper, numbers, where, "; ".join(why_not))] if numbers else [])


def to_json(setup: Setup, cache: caches.Cache, made: Reproduction) -> dict[str, Any]:
    """Everything about it as JSON types, without absolute paths."""
    numbers, *lists = made.tables
    return {
        "schema": SCHEMA,
        "artifact": setup.artifact,
        "title": made.title,
        "command": command(setup),
        "dataset": cache.dataset,
        "tables": {name: cache.table(name).manifest.sha256 for name in cache.tables()},
        "encoders": {
            m: asdict(cache.table(name).manifest.encoder)
            for name in cache.tables()
            for m in [name.split("/")[0]]
        },
        "settings": setup.settings(),
        "seeds": list(setup.seeds),
        "comparable": not made.why_not,
        "not_comparable_because": made.why_not,
        "missing": made.missing,
        "notes": made.notes,
        "numbers": list(numbers.flat()),
        "listing": [
            {each.first: row.name} | {key: plain(cell) for key, cell in row.numbers.items()}
            for each in lists
            for row in each.rows
        ],
        "versions": {name: version(name) for name in ("spaner", "torch")},
        **made.facts,
    }


def command(setup: Setup) -> str:
    """What repeats it."""
    words = [f"spaner reproduce {setup.artifact} --dataset {setup.dataset} --cache {setup.cache}"]
    words.append(f"--seeds {','.join(map(str, setup.seeds))}")
    words += [f"--shift {path}" for path in setup.shift]
    words += [f"--run {setup.run}"] if setup.run else []
    words += [f"--epochs {setup.epochs}"] if setup.epochs else []
    words += [f"--methods {','.join(setup.methods)}"] if setup.methods else []
    return " ".join(words)
