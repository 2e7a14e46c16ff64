"""Lists that lie beside samples: text, CSV and JSON that a user wrote or downloaded, and the paths in them.

One way to read each, so that every list knows byte-order marks, every one that is no text says which byte in
which line is not, and none means something else than it says: a column or key that occurs twice, a line with
a field too many, a path that leaves the data root. Reads lists only; what they list stays unopened.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from spaner.errors import DatasetError

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NO_FILE = "no such file; expected a file to read; check the path"


def text(path: Path) -> str:
    """A file's text, in UTF-8 or in what its byte-order mark says, without the mark.

    Raises:
        DatasetError: no file, or bytes that are no text; the line shows the first and how it was meant.
    """
    if not path.is_file():
        raise DatasetError(f"{path}: {NO_FILE}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}; expected a file that you may read") from None
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        found = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(_no_text(path, data, encoding, error.start)) from None
    if "\0" in found:
        raise DatasetError(
            f"{path}: holds NUL characters, as UTF-16 without its byte-order mark does; expected text in "
            "UTF-8; save it as UTF-8"
        )
    return found.replace("\ufeff", "")


def _no_text(path: Path, data: bytes, encoding: str, at: int) -> str:
    line = data.count(b"\n", 0, at) + 1
    start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
    guess = data[max(start, at - 30) : min(end if end >= 0 else len(data), at + 30)].decode(
        "cp1252", "replace"
    )
    meant = f"; as Windows-1252 (cp1252) it reads {guess.strip()!r}" if encoding == "utf-8" else ""
    return (
        f"{path}: byte 0x{data[at]:02x} in line {line} is no {encoding.upper()}{meant}; expected UTF-8; "
        f"save it as UTF-8, for example with `iconv -f CP1252 -t UTF-8`"
    )


def lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of every line that is not blank, stripped."""
    found = text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(found, start=1) if line.strip()]


def table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line number and fields by column, stripped, of every line of a CSV below its header.

    Raises:
        DatasetError: a column missing or there twice, a line with another number of fields, broken quotes.
    """
    reader = csv.reader(io.StringIO(text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, columns)
        return [
            (reader.line_num, _fields(path, header, reader.line_num, fields))
            for fields in reader
            if any(field.strip() for field in fields)
        ]
    except csv.Error as error:
        raise DatasetError(
            f"{path}: line {reader.line_num or 1} is no CSV ({error}); expected fields parted by commas, in "
            "quotes where they hold one; correct the line"
        ) from None


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header)
        raise DatasetError(
            f"{path}: column {missing[0]!r} is missing; found {short(found) if found else 'none'}; expected "
            f"{', '.join(columns)}, parted by commas; correct the first line"
        )
    double = [name for name in header if name and header.count(name) > 1]
    if double:
        raise DatasetError(
            f"{path}: column {double[0]!r} is there {header.count(double[0])} times; expected each once; "
            "rename or remove one"
        )


def _fields(path: Path, header: list[str], line: int, fields: list[str]) -> dict[str, str]:
    """One line; empty fields behind the last column, which spreadsheets write, mean nothing."""
    if len(fields) < len(header) or any(field.strip() for field in fields[len(header) :]):
        raise DatasetError(
            f"{path}: line {line} has {len(fields)} fields, the header {len(header)}; expected as many; put "
            "a field that holds a comma in quotes"
        )
    return {name: field.strip() for name, field in zip(header, fields, strict=False)}


def parsed(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        DatasetError: it is no JSON, is nested beyond reason, or an object has a key twice.
    """
    try:
        return json.loads(text(path), object_pairs_hook=_once)
    except RecursionError:
        raise DatasetError(f"{path}: nested too deeply; expected a list of samples; get it again") from None
    except ValueError as error:
        raise DatasetError(f"{path}: no JSON ({error}); expected a list of samples; get it again") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r} is there {names.count(double)} times")
    return found


def first_double(values: Iterable[str]) -> str | None:
    """The first value that was there before, or None."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def short(text: str, most: int = 60) -> str:
    """A text for a message: the middle of a long one is left out."""
    return text if len(text) <= most else f"{text[: most - 20]} … {text[-16:]}"


def places(source: Path, base: Path, paths: Sequence[str], *, allow_outside: bool) -> Callable[[str], Path]:
    """Path of a list -> file. Without `allow_outside` none of them may lie elsewhere than below `base`.

    Folders are checked here, each once. A file that is itself a link is checked when it is opened, so that
    listing a million samples stays one look at the list: it becomes a failed row.

    Raises:
        DatasetError: an absolute path, one with "..", or a folder that is a link to elsewhere.
    """
    if allow_outside:
        return lambda path: base / path
    home = base.resolve()
    for path in paths:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise DatasetError(_outside(source, path, base))
    for path in {str(PurePosixPath(path).parent): path for path in paths}.values():
        if _leaves(home, base / PurePosixPath(path).parent):
            raise DatasetError(_outside(source, path, base))

    def place(path: str) -> Path:
        file = base / path
        if file.is_symlink() and _leaves(home, file):
            raise ValueError("a link out of the data root, and no --allow-outside")
        return file

    return place


def _leaves(home: Path, path: Path) -> bool:
    try:
        return not path.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # a circle of links, in which no file will be found
        return False


def _outside(source: Path, path: str, base: Path) -> str:
    return (
        f"{source}: path {short(path)!r} leaves the data root {base}; expected paths below it; correct it, "
        "or type `--allow-outside` where that is meant"
    )
