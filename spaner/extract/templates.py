"""Prompt templates: named sets, or the lines of a user's file. Words only; learned prompts are another thing.

The sets lie in ``templates.json``, verbatim and in the order in which they become a text table's views:

    vanilla, classname   one each: "a photo of a {}." and "{}"
    mined                21, found for ImageNet by Lin et al. (arXiv:2301.06267)
    hand_crafted         CLIP's seven best for ImageNet (arXiv:2103.00020)
    ensemble             180 = 31 generic ones, CLIP's 80 for ImageNet and 108 of other data sets, sorted; the
                         reference keeps them in a set, whose order changes from process to process
"""

import json
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from spaner.errors import DatasetError

NAMES = ("mined", "vanilla", "classname", "ensemble", "hand_crafted")


def templates(name: str) -> list[str]:
    """The templates of a named set or of a file, each holding exactly one ``{}``.

    Raises:
        DatasetError: unknown set, no such file, or a line without exactly one ``{}``.
    """
    if name in NAMES:
        return json.loads((files("spaner.extract") / "templates.json").read_text(encoding="utf-8"))[name]
    path = Path(name)
    if path.is_file():
        return _from_file(path)
    near = get_close_matches(name, NAMES, n=1)
    hint = (
        f"did you mean `--templates {near[0]}`?" if near else "type for example `--templates mined,vanilla`"
    )
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
    lines = {i: line.strip() for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)}
    found = {i: line for i, line in lines.items() if line}
    for i, line in found.items():
        if line.count("{}") != 1:
            raise DatasetError(
                f"{path}: line {i} holds {line.count('{}')} times {{}}: {line!r}; expected exactly one, "
                "where the class name goes; correct the line"
            )
    if not found:
        raise DatasetError(
            f"{path}: found no templates; expected one per line with one {{}}; add `a photo of a {{}}.`"
        )
    double = {line for line in found.values() if list(found.values()).count(line) > 1}
    if double:
        raise DatasetError(f"{path}: template {min(double)!r} occurs twice; expected each once; remove one")
    return list(found.values())
