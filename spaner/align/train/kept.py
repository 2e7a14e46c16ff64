"""Results that are kept: a JSON file for each, named after everything that decides it.

So a stopped command goes on where it was, and a finished part is not computed again.

What decides a result is the caller's to say; the tables that a result was made from always do.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.cache import files
from spaner.errors import RunError


class KeptResults:
    """Results in a folder, made from the tables of some modalities of a cache."""

    def __init__(self, folder: Path, cache: caches.Cache, modalities: Sequence[str]) -> None:
        with files.writing(folder, RunError, "--out"):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        names = [name for name in cache.tables() if name.split("/")[0] in (*modalities, "text")]
        self.tables = {name: cache.table(name).manifest.sha256 for name in names}

    def result(self, decided: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The kept result, or the one that is made now."""
        file = self.file(decided)
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            pass  # not there, or half-written
        found = make()
        files.write_result(file, json.dumps(found))
        return found

    def file(self, decided: Any) -> Path:
        """Where the result lies."""
        text = json.dumps([decided, self.tables], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
