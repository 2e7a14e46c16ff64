"""Everything that a GPU should make fast, in one table and under ten minutes on one card.

    python benchmarks/gpu.py                          on the first CUDA card
    python benchmarks/gpu.py --device cpu --tiny      on any machine, in seconds: that it runs

- A step of training at ImageNet-16 scale (batch 256, D = 512, synthetic vectors): operation by operation,
  recorded as a CUDA graph, compiled, each in float32 and bfloat16.
- A sweep over prompt lengths 1, 2, 4, 8 on the synthetic cache, evaluation of 50,000 rows x 1,000 classes
  included, cell by cell; and four seeds cell by cell and as one program.
- Evaluation of 50,000 rows x 1,000 classes, of a space and of a head, on the card and on the CPU.
- Extraction: ViT-B/16 with random weights from made-up JPEGs to a sealed table, beside the bare encoder.
- A step of learning a prompt through ViT-B/16's text tower for 1,000 names, forward and backward.

Times are of the clock behind `torch.cuda.synchronize`; memory is the most that torch held on the card.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from extraction import TINY, bare, ours, photos, prepared
from prompt import FULL, SMALL, names_of, tower_of
from synthetic import make

from spaner.align.methods import step as steps
from spaner.align.methods.spaner import Spaner
from spaner.align.score.evaluate import evaluate
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.sweep import sweep
from spaner.device import device_of, keep_freed_memory, precision_of
from spaner.extract.encoders import encoder as encoders

LENGTHS = (1, 2, 4, 8)


class Meter:
    """Seconds and peak memory of work on one device, a line of the table each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        print("| what | | time | peak memory |\n|---|---|---|---|")

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def line(self, what: str, how: str, work: Callable[[], str]) -> None:
        """`work` says what it measured; what cannot run here is said too."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            told = work()
        except Exception as error:  # a table with a gap tells more than none
            told = f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        peak = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else None
        print(f"| {what} | {how} | {told} | {'–' if peak is None else f'{peak:,.0f} MB'} |", flush=True)

    def seconds(self, run: Callable[[], object], repeats: int = 1) -> float:
        """Of one call, on average over `repeats`."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        self.wait()
        return (time.perf_counter() - began) / repeats


def a_step(meter: Meter, length: int, how: str, precision: str, *, tiny: bool) -> str:
    """Milliseconds of one update, after enough of them to be recorded or compiled."""
    dim, size, repeats = (64, 16, 3) if tiny else (512, 256, 300)
    device = meter.device
    model = Spaner(dict.fromkeys(("image", "text"), dim), logit_scale=100.0, prompt_length=length).to(device)
    optimizer = steps.adamw(model.parameters(), 1e-3, 0.01, device)
    take = steps.step_of(model.loss, optimizer, precision_of(precision, device), how, device)  # pyright: ignore[reportArgumentType]
    batch = {name: torch.randn(size, dim, device=device) for name in ("image", "text")}
    labels = torch.arange(size, device=device)
    first = meter.seconds(lambda: take(batch, labels))
    meter.seconds(lambda: take(batch, labels), 2 * steps.WARM)
    each = meter.seconds(lambda: take(batch, labels), repeats)
    refused = getattr(take, "refused", "")
    return f"{1e3 * each:.2f} ms, the first {first:.1f} s" + (f"; not recorded: {refused}" if refused else "")


def swept(meter: Meter, cache: Path, grid: dict, stack: int, *, tiny: bool) -> str:
    """Seconds of a sweep whose cells train and are scored on the device."""
    base = {"device": str(meter.device), "epochs": 1 if tiny else 10, "heads": 4 if tiny else 8}
    with TemporaryDirectory() as out:
        took = meter.seconds(lambda: sweep(cache, grid, base, Path(out), workers=1, stack=stack))
        cells = [json.loads(file.read_text()) for file in Path(out).glob("cells/*.json")]
    failed = [cell["reason"] for cell in cells if cell["status"] != "ok"]
    return f"failed: {failed[0]}" if failed else f"{took:.1f} s, {took / len(cells):.2f} s a cell"


def scored(meter: Meter, cache: Path, method: str, device: str, *, tiny: bool) -> str:
    """Seconds from the sealed test table to all numbers, the frozen encoder's not among them."""
    short = {"epochs": 1, "heads": 4 if tiny else 8} if method == "spaner" else {}
    run = fit(cache, TrainConfig(method=method, device=str(meter.device), **short))
    frozen = {"text": None}  # known already, as in a sweep
    evaluate(run, cache, frozen=frozen, device=device)
    return f"{meter.seconds(lambda: evaluate(run, cache, frozen=frozen, device=device), 3):.2f} s"


def extracted(meter: Meter, place: Path, *, tiny: bool) -> str:
    """Pictures a second from files to a sealed table, and of the bare encoder on pictures decoded before."""
    model = place / "tiny.json"
    model.write_text(json.dumps(TINY))
    folder = photos(place / "photos", 16 if tiny else 512, (64, 48) if tiny else (500, 375))
    name = str(model) if tiny else "ViT-B-16"
    encoder = encoders.load("open_clip", "image", model=name, weights="random", device=str(meter.device))
    files = sorted((folder / "train").rglob("*.jpg"))
    batches = list(prepared(files, encoder))
    bare(batches[:1], encoder)()
    whole = meter.seconds(ours(folder, place / "extracted", encoder))
    alone = meter.seconds(bare(batches, encoder))
    return f"{len(files) / whole:,.0f} rows/s, the encoder alone {len(files) / alone:,.0f}"


def prompted(meter: Meter, *, tiny: bool) -> str:
    """Milliseconds of forward and backward to four context vectors."""
    tower = tower_of(SMALL if tiny else FULL, str(meter.device))
    part = tower.prompted(names_of(20 if tiny else 1000), 4)
    context = torch.nn.Parameter(tower.context_of("a photo of a"))

    def learn() -> None:
        part(context[None]).square().sum().backward()

    meter.seconds(learn)
    return f"{1e3 * meter.seconds(learn, 1 if tiny else 10):.0f} ms"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few numbers of everything: that it runs")
    parser.add_argument("--compile", action="store_true", help="measure compile=on too (a minute each)")
    options = parser.parse_args()
    device, tiny = device_of(options.device), options.tiny
    keep_freed_memory(device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, no card"
    print(f"{card}; torch {torch.__version__}{'; tiny: the times mean nothing' if tiny else ''}\n")
    meter = Meter(device)
    for length in LENGTHS[1:2] if tiny else (2, 32):
        for precision in ("float32", "bfloat16"):
            for how in ("off", "auto", *(["on"] if options.compile else [])):
                name = f"P = {length}, {precision}, compile={how}"
                meter.line("a step", name, lambda: a_step(meter, length, how, precision, tiny=tiny))  # noqa: B023
    sizes = {"classes": 11, "shots": 3, "dim": 64, "test_rows": 101} if tiny else {}
    with TemporaryDirectory() as place:
        cache = Path(place, "cache")
        make(cache, **sizes)
        lengths, seeds = {"prompt_length": list(LENGTHS)}, {"seed": [1, 2, 3, 4]}
        meter.line("sweep", "P = 1, 2, 4, 8, one by one", lambda: swept(meter, cache, lengths, 1, tiny=tiny))
        meter.line("sweep", "four seeds, one by one", lambda: swept(meter, cache, seeds, 1, tiny=tiny))
        meter.line("stacked sweep", "four seeds as one", lambda: swept(meter, cache, seeds, 4, tiny=tiny))
        for method, name in (("spaner", "a space"), ("tip_adapter", "a head")):
            for place_of in dict.fromkeys((str(device), "cpu")):
                how = f"{name}, on {place_of}"
                meter.line("evaluation", how, lambda: scored(meter, cache, method, place_of, tiny=tiny))  # noqa: B023
        meter.line("extraction", "two views a row", lambda: extracted(meter, Path(place), tiny=tiny))
    meter.line("prompt tower", "a step", lambda: prompted(meter, tiny=tiny))


if __name__ == "__main__":
    main()
