"""What lies in a folder of samples: class folders, files that are rows, and what is neither, counted.

Nothing is passed over in silence: whatever is no row lands in `left_out` (see `Dataset`) with a count and
an example. Links are followed. A link to nothing, a pipe or a socket is a row all the same, which fails with
its reason when it is opened: a sample that was lost should be seen. Reads directories, never a file.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import LeftOut, leave_out

SOUNDS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
PICTURES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm"}
    | {".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx"}
)
DOCUMENTS = frozenset(
    {".txt", ".md", ".rst", ".rtf", ".doc", ".docx", ".pdf", ".htm", ".html", ".url", ".lnk", ".log"}
    | {".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".mat", ".db", ".py"}
    | {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".md5", ".sha1", ".sha256", ".part"}
)
"""Endings of what lies beside samples; a file of any other ending counts as a sample."""
OTHER_PROGRAMS = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"}
    | {"system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
)
"""Lower-case names that file managers, archives and storage boxes leave behind."""


def look(
    folder: Path, shown: str, left_out: LeftOut, used: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Names of the folders and of the samples directly in `folder`, both sorted.

    Args:
        shown: what stands before a name in `left_out`: the folder's path below the data root, with "/".
        used: names that serve another purpose.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name not in used)
    except OSError as error:
        raise DatasetError(
            f"{folder}: cannot be listed ({error.strerror}); expected a folder that you may read"
        ) from None
    folders, files = [], []
    for name, is_folder in found:
        kind = _kind(name, is_folder=is_folder)
        if kind:
            leave_out(left_out, kind, shown + name)
        else:
            (folders if is_folder else files).append(name)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _kind(name: str, *, is_folder: bool) -> str | None:
    """Why this is no sample and no class, or None."""
    if name.casefold() in OTHER_PROGRAMS:
        return "left by other programs"
    if name.startswith("."):
        return "hidden"
    if not is_folder and PurePath(name).suffix.lower() in DOCUMENTS:
        return "no samples by their ending"
    return None


def samples(folder: Path, shown: str, left_out: LeftOut) -> list[str]:
    """Names of the samples directly in a class folder, sorted; what lies in folders below is left out.

    Raises:
        DatasetError: there are none.
    """
    inner, files = look(folder, shown, left_out)
    for name in inner:
        for path, _, below in os.walk(folder / name):
            if below:
                first = (Path(path) / min(below)).relative_to(folder).as_posix()
                leave_out(left_out, "in folders inside a class folder", shown + first, len(below))
    if not files:
        deeper = f", only folders such as {inner[0]}/" if inner else ""
        raise DatasetError(
            f"{folder}: found no samples{deeper}; expected at least one file; add some or remove the folder"
        )
    return files


def are_sounds(source: Path, names: Iterable[str]) -> bool:
    """Whether these files are sounds rather than pictures, by their endings.

    Raises:
        DatasetError: some are the one and some the other.
    """
    first: dict[bool, str] = {}
    for name in names:
        suffix = PurePath(name).suffix.lower()
        if suffix in SOUNDS or suffix in PICTURES:
            first.setdefault(suffix in SOUNDS, name)
    if len(first) == 2:
        raise DatasetError(
            f"{source}: holds sounds and pictures ({first[True]}, {first[False]}); expected one kind; make "
            "two data sets of it"
        )
    return True in first
