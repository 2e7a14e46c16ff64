"""Rubbish in place of pictures, sounds and lists: every file ends as rows, as failed rows or as one line, in
time and within the memory that a sample may take."""

import io
import json
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from spaner.cache import read_draw
from spaner.errors import SpanerError
from spaner.extract.datasets.audio import waveform
from spaner.extract.datasets.dataset import read
from spaner.extract.templates import tables
from trials import Outcome, in_child

MEMORY = 1 << 30  # bytes that reading one file may take
TOGETHER = 25  # files per child


def run(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Every kind of file, `count` of each."""
    for kind, (made, attempt) in kinds().items():
        yield fuzzed(f"fuzzed {kind}", made, attempt, folder, random.Random(f"{kind} {seed}"), count)


def kinds() -> dict[str, tuple[dict[str, bytes], Callable[[Path], str]]]:
    """Healthy files by suffix, and how one is read: what came of it."""
    return {
        "pictures": (picture_files(), lambda file: opened(file, "image")),
        "sounds": (sound_files(), lambda file: opened(file, "audio")),
        "lists": (list_files(), listed),
    }


def picture_files() -> dict[str, bytes]:
    """One small picture in every common format."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8))
    made = {}
    for suffix in (".jpeg", ".png", ".gif", ".bmp", ".webp", ".tiff"):
        stream = io.BytesIO()
        picture.save(stream, suffix[1:])
        made[suffix] = stream.getvalue()
    return made


def sound_files() -> dict[str, bytes]:
    """A short tone in every common format."""
    tone, made = np.sin(np.arange(4_410) / 9).astype(np.float32), {}
    for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff"):
        stream = io.BytesIO()
        soundfile.write(stream, tone, 44_100, format=suffix[1:].upper())
        made[suffix] = stream.getvalue()
    return made


def list_files() -> dict[str, bytes]:
    """A CSV list, a template set and an index file."""
    rows = "".join(f"a/{i}.jpg,{name},train\n" for i, name in enumerate(("ant", "bee", "Häher")))
    index = {"train": {"data": [{"impath": f"a/{i}.jpg", "label": 0, "classname": "ant"} for i in range(3)]}}
    templates = "a photo of a {}.\na drawing of a {}.\n"
    texts = {".csv": "path,label,split\n" + rows, ".txt": templates, ".json": json.dumps(index)}
    return {suffix: text.encode() for suffix, text in texts.items()}


def opened(file: Path, modality: str) -> str:
    """Read a folder with this one file, and open it as a row."""
    root = file.parent.parent.parent
    dataset = read(f"folder:{root}")
    (split,) = [rows for name, rows in dataset.splits[modality].items() if name == "train"]
    try:
        payload = split.open(split.ids[0])
        if modality == "audio":
            waveform(payload, 5.0)  # to its end, as an encoder prepares it
    except Exception as error:  # what a pipeline makes a failed row
        return f"failed row: {type(error).__name__}"
    return "row"


def listed(file: Path) -> str:
    """Read a list as what its suffix says."""
    if file.suffix == ".csv":
        return f"{len(read(f'csv:{file}').class_names)} classes"
    if file.suffix == ".txt":
        return f"{len(tables((str(file),)))} sets"
    return f"{len(read_draw(file, [f'a/{i}.jpg' for i in range(3)]))} rows"


def fuzzed(
    what: str,
    made: dict[str, bytes],
    attempt: Callable[[Path], str],
    folder: Path,
    draw: random.Random,
    count: int,
) -> Outcome:
    """Change files at random and read them, some in each child; each alone where a child did not end well."""
    outcome = Outcome(what)
    place = folder / what.replace(" ", "-") / "train" / "ant"
    place.mkdir(parents=True)
    while outcome.tried < count:
        suffixes = [draw.choice(sorted(made)) for _ in range(min(TOGETHER, count - outcome.tried))]
        batch = [(suffix, changed(made[suffix], draw)) for suffix in suffixes]
        for (suffix, data), (ending, said) in zip(batch, endings(batch, place, attempt), strict=True):
            failure = said if ending == "failed" else None
            outcome.add(found=ending != "whole", failure=failure, when=f"{suffix} of {len(data)} bytes")
    return outcome


Batch = list[tuple[str, bytes]]


def endings(batch: Batch, place: Path, attempt: Callable[[Path], str]) -> list[tuple[str, str]]:
    """How each file ended: "whole", "refused" or "failed", and what was said."""
    status, said = in_child(lambda: json.dumps([ending(place, attempt, *each) for each in batch]))
    if status == 0:
        return [(how, what) for how, what in json.loads(said)]
    if len(batch) == 1:
        return [("failed", said or f"ended by signal {-status}")]
    return [one for each in batch for one in endings([each], place, attempt)]


def ending(place: Path, attempt: Callable[[Path], str], suffix: str, data: bytes) -> tuple[str, str]:
    """Read one file, in a folder of its own."""
    for old in place.iterdir():
        old.unlink()
    (place / f"x{suffix}").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = attempt(place / f"x{suffix}")
    except SpanerError as error:
        return ("refused" if "\n" not in str(error) else "failed"), str(error)[:80]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:80]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY >> 10:
        return "failed", f"took {grown >> 10:,} MiB"
    return ("refused" if found.startswith("failed") else "whole"), found[:80]


def changed(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, a piece cut out, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        at = draw.randrange(len(changed) or 1)
        kind = draw.random()
        if kind < 0.7 and changed:
            changed[at] = draw.randrange(256)
        elif kind < 0.8:
            del changed[at : at + draw.randrange(1, 40)]
        elif kind < 0.9:
            changed[at:at] = changed[at : at + draw.randrange(1, 400)]
        else:
            del changed[at:]
    return bytes(changed)
