"""`spaner demo`: extract to search on digits seen, named and heard, offline."""

import time
from pathlib import Path
from typing import Annotated, Any

from spaner.cli import console

#: 160 images in two views are 320 pairs an epoch, so batches of 32 stand for the paper's 256 of 32,000.
SETTINGS = {"shots": 16, "batch_size": 32}

#: The methods of the last table: those that take a second or two each.
COMPARED = ["zero_shot", "tip_adapter", "gda", "proker", "lp_plus_plus", "linear_probe"]
COMPARED += ["anchored", "anchored-prior"]


def demo(
    *,
    out: Annotated[Path, console.out_option("Folder for the cache, the runs and the sweep.")] = Path("demo"),
) -> None:
    """Extract, train, sweep, extend, compare, search: handwritten digits, offline, measured numbers.

    Example: `spaner demo`
    """
    began = time.monotonic()
    cache = out / "cache" / "digits"
    console.say("1. extract: small frozen encoders over scikit-learn's digits, their names and tones, once")
    _extract(cache)
    console.say("\n2. train: shared prompt, aligners and projections from the cache alone, 16 images a class")
    _train(cache, out / "runs")
    console.say("\n3. sweep: prompt length, three seeds each")
    figure = _sweep(cache, out / "sweep")
    console.say("\n4. extend: sounds join the trained space; nothing in it moves")
    _extend(cache, out / "runs")
    console.say("\n5. compare: other methods on the same 16 images a class")
    _compare(cache, out / "compare")
    console.say("\n6. search: a tone and a word ask for scans, through the run's own encoders")
    index = _search(cache, out)
    console.say(f"\nDone in {time.monotonic() - began:.0f} s. Everything is in {out}/:")
    console.say(f"  {cache}  the embeddings (try: spaner cache info {cache})")
    console.say(f"  {out / 'runs'}  one folder a run: weights, config, metrics, loss curve")
    console.say(f"  {figure}  accuracy against prompt length")
    console.say(f"  {index}  a searchable index (open its page: spaner browse {index})")
    runs = " ".join(str(out / "runs" / name) for name in ("digits-paper", "digits-anchored"))
    console.next_step(f"spaner report {runs} --sweep {out / 'sweep'} -o report.html")
    console.next_step("spaner extract --dataset folder:PATH   (your own photos, in class folders)")


def _extract(cache: Path) -> None:
    from spaner.cli.extract import print_summary
    from spaner.extract.extract import extract

    with console.progress() as progress:
        print_summary(extract(dataset="digits", cache=cache, progress=progress))


def _train(cache: Path, runs: Path) -> None:
    from spaner.align.train.config import TrainConfig
    from spaner.cli.train import print_scores, train_and_save

    results = {}
    for recipe in ("paper", "anchored"):
        config = TrainConfig.from_recipe(recipe, **SETTINGS)
        run, _ = train_and_save(cache, config, runs / f"digits-{recipe}")
        results[f"SPANER, {recipe}"] = run.metrics
    print_scores(next(iter(results.values())), "", results)


def _extend(cache: Path, runs: Path) -> None:
    from spaner.align.train.config import ExtendConfig
    from spaner.align.train.run import load
    from spaner.cli.extend import extend_with_bar, print_extension

    config = ExtendConfig(modality="audio")
    print_extension(
        extend_with_bar(load(runs / "digits-paper"), cache, config, runs / "digits-paper+audio"), config
    )


def _sweep(cache: Path, folder: Path) -> Path | None:
    from spaner.align.train.sweep import summary, sweep
    from spaner.cli.sweep import draw, print_summary

    grid = {"prompt_length": [1, 2, 4, 8], "seed": [1, 2, 3]}
    with console.progress("cells") as progress:
        results = sweep(cache, grid, SETTINGS, folder, progress=progress)
    print_summary(summary(results), list(grid))
    return draw(results, folder)


def _compare(cache: Path, folder: Path) -> None:
    from spaner.align.train.compare import compare
    from spaner.cli.compare import print_comparison

    batch = {"batch_size": SETTINGS["batch_size"]}
    with console.progress("cells") as progress:
        found = compare([cache], COMPARED, [16], [1], folder, recipe_base=batch, progress=progress)
    print_comparison(found)


def _search(cache: Path, out: Path) -> Path:
    from spaner.align.train.run import load
    from spaner.cli.search import print_hits
    from spaner.search.index import build
    from spaner.search.indexed import Filter, open_index
    from spaner.search.query import Asker, search

    folder, place = out / "index", out / "runs" / "digits-paper+audio"
    run = load(place)
    build(run, str(place), _searched(cache), folder)
    index, asker, tone = open_index(folder), Asker(run), _write_tone(out / "seven.wav")
    for query, asked in ((str(tone), asker.file(tone)), ('"seven"', asker.words("seven"))):
        console.say(f"spaner search {query} --index {folder} --modality image -k 3")
        print_hits(search(index, asked, 3, Filter(["image"])))
    return folder


def _searched(cache: Path) -> list[Any]:
    from spaner import cache as caches
    from spaner.search.index import Indexed

    opened = caches.open(cache)
    return [Indexed(opened, name, None, "digits") for name in ("audio/test", "image/test")]


def _write_tone(file: Path) -> Path:
    """A key press that no training heard, as a file."""
    import soundfile

    from spaner.extract.datasets import dtmf

    soundfile.write(file, dtmf.clip("7", "the demo's own")[0], dtmf.RATE)
    return file
