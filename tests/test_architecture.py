"""The house rules that a machine can hold: rooms look down, files and functions stay small."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "spaner"
MAY_IMPORT = {
    "cache": set(),
    "extract": {"cache"},
    "align": {"cache"},
    "search": {"cache", "extract", "align"},
    "cli": {"cache", "extract", "align", "search"},
}

#: Inside a room, left is imported by right; "" is what lies in the room itself.
FLOORS = {
    "align": ("methods", "score", "train", "report", "paper"),
    "extract": ("datasets", "encoders", ""),
    "search": ("share", "", "browse"),
}

#: Files under the rooms: they import no room.
GROUND = {"errors", "registry", "progress", "settings", "device", "cluster", "head"}

#: Front doors: files beside the rooms that hand what is in them to users.
FRONT = {"__init__", "__main__", "sklearn"}
FILES = sorted(ROOT.rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    """Parsed once for all rules; nobody changes a file meanwhile."""
    return ast.parse(file.read_text())


def rooms_imported_by(file: Path) -> set[str]:
    """Rooms of `spaner` named by absolute or relative imports, anywhere in the file."""
    package = ["spaner", *file.relative_to(ROOT).parts[:-1]]
    rooms = set()
    for node in ast.walk(tree(file)):
        for name in imported_names(node, package):
            parts = name.split(".")
            if parts[0] == "spaner" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                rooms.add(parts[1])
    return rooms


def imported_names(node: ast.AST, package: list[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{stem}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_only_look_down(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        trespass = rooms_imported_by(file) - MAY_IMPORT[room] - {room}
        assert not trespass, f"{file.relative_to(ROOT)} imports {sorted(trespass)}"


def floors_imported_by(file: Path, room: str) -> set[str]:
    """Floors of a room that a file imports; "" for a file of the room itself."""
    package = ["spaner", *file.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(tree(file)):
        for name in imported_names(node, package):
            parts = name.split(".")
            if parts[:2] == ["spaner", room] and len(parts) > 2:
                found.add(parts[2] if parts[2] in FLOORS[room] else "")
    return found


@pytest.mark.parametrize("room", FLOORS)
def test_floors_only_look_left(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        parts = file.relative_to(ROOT / room).parts
        floor = parts[0] if len(parts) > 1 else ""
        if file.name == "__init__.py" or floor not in FLOORS[room]:
            continue
        place = FLOORS[room].index(floor)
        trespass = floors_imported_by(file, room) - set(FLOORS[room][: place + 1])
        assert not trespass, f"{file.relative_to(ROOT)} imports {sorted(trespass)}"


def test_every_folder_has_its_place() -> None:
    for room, floors in FLOORS.items():
        folders = {f.name for f in (ROOT / room).iterdir() if f.is_dir() and f.name != "__pycache__"}
        assert folders == set(floors) - {""}, room
        loose = [f.name for f in (ROOT / room).glob("*.py") if f.name != "__init__.py"]
        assert "" in floors or not loose, f"{room} is all floors; {loose} lie beside them"
    depth = {len(file.relative_to(ROOT).parts) for file in FILES}
    assert max(depth) <= 3, "depth three, never four"


def test_the_ground_floor_imports_no_room() -> None:
    assert {file.stem for file in ROOT.glob("*.py")} - FRONT == GROUND
    for name in GROUND:
        file = ROOT / f"{name}.py"
        assert not rooms_imported_by(file), name
        if name != "device":
            names = {n.split(".")[0] for node in ast.walk(tree(file)) for n in imported_names(node, [])}
            assert "torch" not in names, "device alone may know torch"


def test_no_two_classes_of_one_name() -> None:
    """Every method has a `Settings` of its own; any other name stands for one thing. A front door may give a
    user's word to what stands behind it."""
    seen: dict[str, Path] = {}
    for file in (file for file in FILES if file.parent != ROOT or file.stem not in FRONT):
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name != "Settings":
                assert node.name not in seen, f"{node.name} in {file} and {seen[node.name]}"
                seen[node.name] = file


@pytest.mark.parametrize(
    "line", ["import spaner.extract.run", "from ..extract import run", "from spaner import extract"]
)
def test_a_trespass_is_seen(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "align" / "bad.py"
    file.parent.mkdir()
    file.write_text(line)
    assert rooms_imported_by(file) == {"extract"}


def test_nobody_imports_the_command_line() -> None:
    for file in FILES:
        if file.relative_to(ROOT).parts[0] not in ("cli", "__main__.py"):
            assert "cli" not in rooms_imported_by(file), file


def test_the_cache_needs_no_torch() -> None:
    for file in (ROOT / "cache").rglob("*.py"):
        names = {n.split(".")[0] for node in ast.walk(tree(file)) for n in imported_names(node, [])}
        assert not names & {"torch", "torchvision", "open_clip", "PIL", "safetensors"}, file


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_stay_small(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 400, "a file becomes two past 400 lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = (node.end_lineno or 0) - node.body[0].lineno + 1
            assert body <= 40, f"{node.name} has a body of {body} lines; the cap is 40"


def test_every_module_says_what_it_is() -> None:
    for file in FILES:
        assert ast.get_docstring(tree(file)), f"{file.relative_to(ROOT)} has no docstring"
