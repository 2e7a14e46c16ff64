"""What a user points at: files, folders, patterns, CSV lists and strings, as the splits of a data set.

Pictures and sounds are told apart by their endings; a file that was named itself and ends like neither is
taken for a picture and fails with its reason if it is none. In a folder, what is neither is left out and
counted, as in extraction. A file's class is the column `label` of its CSV, else the name of the folder that
it lies in below the folder that was named; a file without one is `UNLABELLED`. Nothing is opened here.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from spaner.errors import DatasetError
from spaner.extract.datasets import lists
from spaner.extract.datasets.audio import Recording
from spaner.extract.datasets.dataset import Dataset, LeftOut, Split, check_lengths, file_split, leave_out
from spaner.extract.datasets.images import decode
from spaner.extract.datasets.tree import PICTURES, SOUNDS, look

UNLABELLED = "unlabelled"
"""The class of what has none."""

LONGEST_TEXT = 10_000
"""Characters of one text: encoders read some hundred, so more is a file in the wrong place."""

LARGEST_LIST = 16 << 20
"""Bytes of a list of texts."""

SHOWN = 200
"""Characters of a text that its id shows."""


@dataclass(frozen=True)
class Gathered:
    """Samples to embed.

    Attributes:
        dataset: splits by modality, all of one name; text rows open as a list of one string.
        root: the folder that ids of pictures and sounds are relative to; None where there are none.
    """

    dataset: Dataset
    root: Path | None


@dataclass(frozen=True)
class _Found:
    modality: str
    path: Path
    label: str


def gather(
    paths: Sequence[str | Path] = (), texts: Sequence[str] = (), split: str = "new", name: str = ""
) -> Gathered:
    """List everything that was pointed at, each file once, in the order of their ids.

    Args:
        paths: files, folders (with all folders below), patterns such as `photos/*.jpg`, CSV lists with a
            column `path` or `text` and perhaps `label`.
        texts: strings, a row each.
        split: what the tables will be called: image/new, audio/new, text/new.
        name: of the data set; default: the folder that holds the files.

    Raises:
        DatasetError: nothing at a path, an empty folder or text, a text that is too long.
    """
    left_out: LeftOut = {}
    found: list[_Found] = []
    strings = [(text, UNLABELLED) for text in texts]
    for path in paths:
        files, more = _at(Path(path).expanduser(), left_out)
        found += files
        strings += more
    if not found and not strings:
        raise DatasetError(
            "found nothing to embed; expected files, folders, a CSV or a text; type for example "
            '`spaner embed --run RUN photos/` or `--text "a red umbrella"`'
        )
    _check_texts([text for text, _ in strings])
    names = sorted({each.label for each in found} | {label for _, label in strings})
    label_of = {label: i for i, label in enumerate(names)}
    splits, root = _file_splits(found, label_of)
    if strings:
        splits["text"] = _text_split(strings, label_of)
    title = name or (root.name if root else "") or "texts"
    dataset = Dataset(title, names, {m: {split: rows} for m, rows in splits.items()}, left_out=left_out)
    check_lengths(dataset)
    return Gathered(dataset, root)


def text_file(path: Path) -> list[str]:
    """The lines of a file as texts, blank ones left out.

    Raises:
        DatasetError: no such file, no text, or more than `LARGEST_LIST` bytes.
    """
    if path.is_file() and path.stat().st_size > LARGEST_LIST:
        raise DatasetError(
            f"{path}: {path.stat().st_size / 1e6:,.0f} MB of text; "
            f"expected one text a line and at most {LARGEST_LIST / 1e6:.0f} MB; "
            "split the file, for example with `split -l 100000`"
        )
    found = [line for _, line in lists.lines(path)]
    if not found:
        raise DatasetError(f"{path}: found no text; expected one a line; add some")
    return found


def modality_of(path: PurePath) -> str | None:
    """ "image" or "audio" by the ending; None for neither."""
    ending = path.suffix.lower()
    return "image" if ending in PICTURES else "audio" if ending in SOUNDS else None


def _at(path: Path, left_out: LeftOut) -> tuple[list[_Found], list[tuple[str, str]]]:
    """The files and the texts at one path."""
    if path.is_dir():
        return list(_below(path, left_out)), []
    if path.suffix.lower() == ".csv" and path.is_file():
        return _listed(path)
    if path.exists() or path.is_symlink():
        return [_Found(modality_of(path) or "image", path, UNLABELLED)], []
    if glob.has_magic(str(path)):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns too)
        if matches:
            parts = [_at(Path(match), left_out) for match in matches]
            return [f for files, _ in parts for f in files], [t for _, texts in parts for t in texts]
        raise DatasetError(f"{path}: nothing matches; expected at least one file; check the pattern")
    raise DatasetError(
        f"{path}: no such file or folder; expected a picture, a sound, a folder, a CSV or a pattern; "
        "check the path (a text is given with `--text`)"
    )


def _below(top: Path, left_out: LeftOut) -> Iterator[_Found]:
    """Pictures and sounds in a folder and in all folders below it; links to folders are not followed."""
    count, waiting = 0, [top]
    while waiting:
        folder = waiting.pop()
        shown = "" if folder == top else folder.relative_to(top).as_posix() + "/"
        inner, files = look(folder, shown, left_out)
        waiting += [folder / name for name in reversed(inner) if not (folder / name).is_symlink()]
        for name in files:
            modality = modality_of(PurePath(name))
            if modality is None:
                leave_out(left_out, "neither pictures nor sounds by their ending", shown + name)
                continue
            count += 1
            label = UNLABELLED if folder == top else folder.name.replace("_", " ")
            yield _Found(modality, folder / name, label)
    if not count:
        what = "; ".join(f"{n:,} {kind} (first {first})" for kind, (n, first) in left_out.items())
        raise DatasetError(
            f"{top}: found no pictures and no sounds{f', only {what}' if what else ''}; "
            "expected files such as .jpg, .png, .wav or .flac; check the path"
        )


def _listed(file: Path) -> tuple[list[_Found], list[tuple[str, str]]]:
    """The rows of a CSV; paths are relative to it and stay below it."""
    rows = [row for _, row in lists.table(file, ())]
    if not rows or not {"path", "text"} & rows[0].keys():
        raise DatasetError(
            f"{file}: found {'no rows' if not rows else 'neither path nor text'}; "
            "expected a line per sample and a column path or text, perhaps label; add them"
        )
    labels = [row.get("label") or UNLABELLED for row in rows]
    texts = [(row["text"], label) for row, label in zip(rows, labels, strict=True) if row.get("text")]
    named = [(row["path"], label) for row, label in zip(rows, labels, strict=True) if row.get("path")]
    lists.places(file, file.parent, [path for path, _ in named], allow_outside=False)
    return [
        _Found(modality_of(PurePath(path)) or "image", file.parent / path, label) for path, label in named
    ], texts


def _file_splits(found: Iterable[_Found], label_of: dict[str, int]) -> tuple[dict[str, Split], Path | None]:
    """Modality -> rows, ids relative to the folder that holds them all."""
    unique = {each.path.absolute(): each for each in found}
    if not unique:
        return {}, None
    root = Path(os.path.commonpath([path.parent for path in unique]))
    keyed = {path.relative_to(root).as_posix(): each for path, each in unique.items()}
    splits = {}
    for modality, payload in (("image", decode), ("audio", Recording)):
        keys = sorted(key for key, each in keyed.items() if each.modality == modality)
        if keys:
            labels = [label_of[keyed[key].label] for key in keys]
            splits[modality] = file_split(keys, labels, lambda key: root / PurePosixPath(key), payload)
    return splits, root


def _text_split(strings: Sequence[tuple[str, str]], label_of: dict[str, int]) -> Split:
    """Strings as rows: an id is a number and the text, or its beginning and its hash."""
    text_of = {text_id(row, text): text for row, (text, _) in enumerate(strings)}
    labels = np.array([label_of[label] for _, label in strings], np.int32)
    return Split(list(text_of), labels, lambda key: [text_of[key]])


def text_id(row: int, text: str) -> str:
    """ "000003:a red umbrella"; a long text is shown by its beginning and told apart by its hash."""
    if len(text) <= SHOWN:
        return f"{row:06d}:{text}"
    from hashlib import sha256

    return f"{row:06d}:{text[:SHOWN]} … {sha256(text.encode()).hexdigest()[:16]}"


def _check_texts(texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        if not text.strip():
            raise DatasetError(f"text {row + 1} is empty; expected words; leave it out")
        if len(text) > LONGEST_TEXT:
            raise DatasetError(
                f"text {row + 1} has {len(text):,} characters ({lists.short(text, 40)!r}); "
                f"expected at most {LONGEST_TEXT:,}; give one text a line with `--text-file`"
            )
