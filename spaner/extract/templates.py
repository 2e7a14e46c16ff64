"""Prompt templates: named sets, or the lines of a user's file. Words only; learned prompts are another thing.

The sets lie in `templates.json`, verbatim and in the order in which they become a text table's views:

    vanilla, classname   one each: "a photo of a {}." and "{}"
    mined                21, found for ImageNet by Lin et al. (arXiv:2301.06267)
    hand_crafted         CLIP's seven best for ImageNet (arXiv:2103.00020)
    ensemble             180 = 31 generic ones, CLIP's 80 for ImageNet and 108 of other data sets, sorted; the
                         reference keeps them in a set, whose order changes from process to process

A set or file fills the text table of its name, so two of one name are refused. The table `query` belongs to
the data set: its own query where that is not `vanilla` (CoOp's "{} texture.").
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from spaner import registry
from spaner.errors import DatasetError
from spaner.extract.datasets.dataset import LONGEST
from spaner.extract.datasets.lists import first_double, lines, short

QUERY = "query"
NAMES = ("mined", "vanilla", "classname", "ensemble", "hand_crafted")


def tables(names: Sequence[str]) -> dict[str, list[str]]:
    """Text table -> templates, of every set and file that was asked for.

    Raises:
        DatasetError: what `templates` raises, or two of them would fill one table.
    """
    source = {table_name(name): name for name in names}
    first = {name: name for name in (*NAMES, QUERY)}
    for name in names:
        table = table_name(name)
        before = first.setdefault(table.casefold(), name)  # one folder on a disk that ignores case
        if before != name:
            which = "the set of that name" if before in (*NAMES, QUERY) else before
            raise DatasetError(
                f"--templates {name}: fills the table text/{table}, as {which} does; expected a name of its "
                "own; rename the file"
            )
    return {table: templates(name) for table, name in source.items()}


def templates(name: str) -> list[str]:
    """The templates of a named set or of a file, each holding exactly one `{}`.

    Raises:
        DatasetError: unknown set, no such file, or a line without exactly one `{}`.
    """
    if name in NAMES:
        return json.loads((files("spaner.extract") / "templates.json").read_text(encoding="utf-8"))[name]
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path)
    near = registry.nearest(name, NAMES, cutoff=0.6)
    hint = f"did you mean `--templates {near}`?" if near else "type for example `--templates mined,vanilla`"
    raise DatasetError(
        f"--templates {name}: neither a set nor a file; expected {', '.join(NAMES)} or a file; {hint}"
    )


def table_name(name: str) -> str:
    """The text table that a set or file fills: its name without folder and ending."""
    return name if name in NAMES else Path(name).stem


def fill(template: str, class_name: str) -> str:
    """The template with the class name in its place; other braces stay as they are."""
    return template.replace("{}", class_name)


def _from_file(path: Path) -> list[str]:
    found = dict(lines(path))
    for i, line in found.items():
        if line.count("{}") != 1:
            raise DatasetError(
                f"{path}: line {i} holds {line.count('{}')} times {{}}: {short(line)!r}; expected exactly "
                "one, where the class name goes; correct the line"
            )
        if len(line.encode()) > LONGEST:
            raise DatasetError(
                f"{path}: line {i} has {len(line.encode()):,} bytes; expected at most {LONGEST:,}; shorten it"
            )
    if not found:
        raise DatasetError(
            f"{path}: found no templates; expected one per line with one {{}}; add `a photo of a {{}}.`"
        )
    double = first_double(found.values())
    if double is not None:
        raise DatasetError(f"{path}: template {double!r} occurs twice; expected each once; remove one")
    return list(found.values())
