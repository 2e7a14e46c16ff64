"""Extraction beside the bare encoder and a plain loop; memory against rows; training with and without cache.

    python benchmarks/extraction.py [--model ViT-B-16] [--precision float32] [--photos 64] [--folder DIR]

- Rate: from JPEG files to chunks on disk, against the encoder alone on the same batches decoded beforehand,
  and against a plain open_clip loop that saves a `.pt`. In turns; the fastest round by the clock, and the
  least processor time, which is steadier where other programs run (with one thread: waiting ones count too).
- Memory: peak of a child process that extracts 1x and 8x the rows with a tiny network.
- Training: an epoch from the cache, and the same epoch with the encoder in the loop.

Weights are random, which changes no time. Photos are made up (500 x 375, smooth) unless --folder is given.
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor

import spaner.cache as caches
from spaner.align.methods.spaner import Spaner
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.task import task
from spaner.device import cores
from spaner.extract import pipeline
from spaner.extract.datasets.dataset import read
from spaner.extract.datasets.images import decode
from spaner.extract.encoders import encoder as encoders
from spaner.extract.extract import extract

VIEWS, BATCH, CLASSES, EPOCHS = 2, 64, 8, 5
TINY = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def photos(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A folder of class folders under train/, made up; JPEG, quality 90."""
    for number in range(count):
        coarse = np.random.default_rng(number).integers(
            0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8
        )
        path = folder / "train" / f"class_{number % CLASSES}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


Cost = tuple[float, float]
"""Wall and processor seconds per row."""


def timed(work: Callable[[], object], rows: int) -> Cost:
    """The cost of one run of `work`."""
    started = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - started[0]) / rows, (time.process_time() - started[1]) / rows


def ours(folder: Path, cache: Path, encoder: encoders.Encoder) -> Callable[[], None]:
    """Extraction of the training split into a table that is begun anew: decode, prepare, encode, write."""
    split = read(f"folder:{folder}").splits["image"]["train"]
    names = tuple(f"view {view}" for view in range(VIEWS))
    manifest = caches.Manifest(
        "benchmark", "image", "train", len(split), names, encoder.spec.dim, "float16", 1024, encoder.spec, 0,
        caches.ids_sha256(split.ids),
    )  # fmt: skip
    card = device if (device := getattr(encoder, "device", None)) and device.type == "cuda" else None
    pace = pipeline.Pace(BATCH, workers=min(16, cores()) if card else 1, card=card)

    def run() -> None:
        feed = pipeline.feed(split, encoder, VIEWS, 0, pace)
        classes = [f"class {label}" for label in range(split.labels.max() + 1)]
        with (
            caches.create(cache, "benchmark", classes) as opened,
            opened.begin(manifest, split.ids, split.labels, None, overwrite=True) as writer,
        ):
            pipeline.fill(writer, feed, lambda _: None)
            writer.seal(None)

    return run


def prepared(paths: list[Path], encoder: encoders.Encoder) -> Iterator[Tensor]:
    """Batches of all views of the files, as extraction makes them."""
    rows = BATCH // VIEWS
    for start in range(0, len(paths), rows):
        pictures = [(str(path), decode(path)) for path in paths[start : start + rows]]
        views = [encoder.prepare(p, view, key, 0) for key, p in pictures for view in range(VIEWS)]
        yield torch.stack(views)


def bare(batches: list[Tensor], encoder: encoders.Encoder) -> Callable[[], None]:
    """The encoder alone."""

    def run() -> None:
        for batch in batches:
            encoder.encode(batch)

    return run


def plain(paths: list[Path], model: str, precision: str, out: Path) -> Callable[[], None]:
    """The loop one would write first: open, preprocess, encode, keep in a list, save; a pass per view."""
    dtype = getattr(torch, precision)
    network, _, preprocess = open_clip.create_model_and_transforms(model)
    network.eval().to(dtype)

    @torch.inference_mode()
    def run() -> None:
        rows = []
        for start in range(0, VIEWS * len(paths), BATCH):
            files = (VIEWS * paths)[start : start + BATCH]
            batch = [preprocess(Image.open(path).convert("RGB")) for path in files]  # type: ignore[operator]
            rows.append(network.encode_image(torch.stack(batch).to(dtype)))  # type: ignore[arg-type, operator]
        torch.save({"features": torch.cat(rows), "paths": [str(path) for path in paths]}, out)

    return run


def epoch_from_cache(cache: Path) -> float:
    """Seconds of an epoch of `spaner.fit`."""
    return fit(cache, TrainConfig(epochs=EPOCHS, batch_size=BATCH, device="cpu")).seconds / EPOCHS


def epoch_in_loop(paths: list[Path], encoder: encoders.Encoder, cache: Path) -> float:
    """Seconds of one epoch in which every step decodes and encodes its pictures; texts stay as they are."""
    with caches.open(cache) as opened:
        data = task(opened, TrainConfig())
    model = Spaner.build(TrainConfig(), data.facts())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    started = time.perf_counter()
    for batch in prepared(paths, encoder):
        image = torch.nn.functional.normalize(encoder.encode(batch).clone(), dim=1)
        labels = torch.randint(CLASSES, (len(image),))
        text = data.text[labels, torch.randint(data.text.shape[1], labels.shape)]
        loss = model.loss({"image": image, "text": text}, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def disk(cache: Path, rows: int) -> float:
    """Bytes of the image table's folder per row, everything included."""
    return sum(file.stat().st_size for file in (cache / "image").rglob("*") if file.is_file()) / rows


def peak_memory(folder: Path, rows: int) -> float:
    """Peak megabytes of a child process that extracts `rows` rows (the same few pictures under many ids)."""
    listing, model, cache = folder / f"{rows}.csv", folder / "tiny.json", folder / f"cache{rows}"
    model.write_text(json.dumps(TINY))
    pictures = sorted((folder / "small").rglob("*.jpg"))
    with listing.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["path", "label", "split", "id"])
        for row in range(rows):
            picture = pictures[row % len(pictures)]
            lines.writerow([picture.relative_to(folder), f"class {row % CLASSES}", "train", f"row {row}"])
    command = [sys.executable, __file__, "--child", str(listing), str(cache), str(model)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def child(listing: str, cache: str, model: str) -> None:
    """Extract and print the peak in megabytes."""
    extract(dataset=f"csv:{listing}", cache=cache, model=model, pretrained="random", chunk_rows=256)
    print(_peak())


def _peak() -> float:
    """Megabytes. Linux's `getrusage` hands a parent's peak to its child; `status` holds the child's own."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rates(paths: list[Path], folder: Path, work: Path, model: str, precision: str, rounds: int) -> None:
    """Print the rates, and what an epoch costs with and without the cache."""
    encoder = encoders.load("open_clip", "image", model=model, weights="random", precision=precision)
    batches, saved = list(prepared(paths, encoder)), work / "rows.pt"
    sides = {
        "bare encoder": bare(batches, encoder),
        "spaner extraction": ours(folder, work / "timed", encoder),
        "plain loop": plain(paths, model, encoder.spec.precision, saved),
    }
    bare(batches[:1], encoder)()
    found = [[timed(side, len(paths)) for side in sides.values()] for _ in range(rounds)]
    costs = np.array(found).min(axis=0)
    pictures, threads = f"{len(paths)} rows of {VIEWS} views", f"{torch.get_num_threads()} threads"
    print(f"{model}, {encoder.spec.precision}, {pictures}, {threads}")
    print("                      rows/s   of bare   processor ms per row   of bare")
    for name, (wall, processor) in zip(sides, costs, strict=True):
        shares = costs[0, 0] / wall, costs[0, 1] / processor
        print(f"{name:18} {1 / wall:9.2f} {shares[0]:9.2f} {processor * 1e3:22.1f} {shares[1]:9.2f}")
    stored = disk(work / "timed", len(paths))
    print(f"bytes per row: {stored:,.0f}; plain loop {saved.stat().st_size / len(paths):,.0f}")
    epochs(paths, folder, work / "cache", model, encoder)


def epochs(paths: list[Path], folder: Path, cache: Path, model: str, encoder: encoders.Encoder) -> None:
    """Extract with the public function, then train from its cache and with the encoder in the loop."""
    started = time.perf_counter()
    extract(
        dataset=f"folder:{folder}", cache=cache, model=model, pretrained="random", splits=("train",),
        templates=("mined",), precision=encoder.spec.precision,
    )  # fmt: skip
    print(f"one `spaner extract` of it all, model loading, texts and checks included: "
          f"{time.perf_counter() - started:.1f} s")  # fmt: skip
    cached, inside = epoch_from_cache(cache), epoch_in_loop(paths, encoder, cache)
    print(f"epoch from the cache {cached * 1e3:.0f} ms, with the encoder in the loop {inside * 1e3:,.0f} ms: "
          f"{inside / cached:.0f} times as long")  # fmt: skip


def main() -> None:
    """Print all three tables, or be the child of the memory test."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--precision", default="auto", help="of the encoder, on every side")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument(
        "--folder", type=Path, help="your own class folders under DIR/train, instead of made-up photos"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000, help="of the memory test, and eight times as many")
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or photos(work / "photos", options.photos, (500, 375))
        rates(
            sorted((folder / "train").rglob("*.jpg")),
            folder,
            work,
            options.model,
            options.precision,
            options.rounds,
        )
        photos(work / "small", CLASSES, (64, 48))
        once, eight = peak_memory(work, options.rows), peak_memory(work, 8 * options.rows)
    grown = 7 * options.rows * VIEWS * TINY["embed_dim"] * 4 / 1e6
    print(f"peak memory: {once:.0f} MB at {options.rows:,} rows, {eight:.0f} MB at {8 * options.rows:,} rows")
    print(f"  the further rows alone would be {grown:.0f} MB of float32")


if __name__ == "__main__":
    main()
