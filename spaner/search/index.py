"""An index: the unit vectors of one or more tables in a run's space, in one folder, ready to be searched.

    <index>/vectors.npy            (N, E) float16, rows of a modality together, failed samples left out
            frozen-<modality>.npy  (n, D) float16, the same rows as the frozen encoder gave them, unit length
            ids.npy  labels.npy    what each row is
            graph.usearch          with an approximate index alone
            embedded/              the cache of files that were encoded for this index
            index.json             schema "spaner-index/1": run, classes, tables; written last

It names the run by its hash and by the way to it, and the folder that ids are relative to by the way to it,
never by an absolute path. Reading maps the arrays; nothing is loaded whole.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaner import cache as caches
from spaner.align.train.run import Run
from spaner.cache import files as disk
from spaner.cache.layout import pack
from spaner.errors import CacheError, Mismatch
from spaner.progress import Progress, no_progress
from spaner.search import approximate
from spaner.search.embed import mapped_rows
from spaner.search.encoding import check_modality, mapped_spec, run_sha256, space_width

SCHEMA = "spaner-index/1"
BLOCK = 4096
PARTS = ("vectors.npy", "ids.npy", "labels.npy", "graph.usearch")


@dataclass(frozen=True)
class Indexed:
    """A table to index, and where its samples can be seen.

    Attributes:
        root: the folder that its ids are relative to; None: unknown.
        dataset: name of an embedded data set that opens its ids instead, such as "digits".
    """

    cache: caches.Cache
    name: str
    root: Path | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Part:
    """One table in an index: rows `start` to `stop`. `root` is seen from the index folder."""

    table: str
    start: int
    stop: int
    failed: int
    root: str | None = None
    dataset: str | None = None

    @property
    def modality(self) -> str:
        """Of its rows."""
        return self.table.split("/")[0]

    @property
    def split(self) -> str:
        """Of its rows."""
        return self.table.split("/")[1]


def build(
    run: Run,
    way: str,
    tables: list[Indexed],
    out: Path,
    *,
    with_graph: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write an index of the tables, replacing one that is there.

    Args:
        way: the run as the user named it: a folder, or hf:ORG/NAME.
        with_graph: also build an approximate index and measure its recall.

    Returns:
        What index.json holds.

    Raises:
        Mismatch: a table of another encoder or another run. RunError: a modality that the run does not know.
        CacheError: no rows, the folder holds something else, an extra is missing.
    """
    if with_graph:
        approximate.check_installed()
    refuse_foreign(out)
    for each in tables:
        _check(run, each.cache.table(each.name).manifest)
    ordered = sorted(tables, key=lambda each: each.name.split("/")[0])
    parts = _parts(ordered, out)
    if not parts or not parts[-1].stop:
        raise CacheError(
            f"{out}: no row to index: every sample of {', '.join(each.name for each in tables)} failed; "
            "expected at least one; see `spaner cache info`"
        )
    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "index.json").unlink(missing_ok=True)  # unfinished from here on
        for old in [*out.glob("frozen-*.npy"), *(out / name for name in PARTS)]:
            old.unlink(missing_ok=True)
        names = _fill(run, ordered, parts, out, progress or no_progress)
        facts = _facts(run, way, parts, names, out)
        if with_graph:
            vectors = np.load(out / "vectors.npy", mmap_mode="r")
            facts["recall@10"] = approximate.build(vectors, out / "graph.usearch")
        told = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        disk.write(out / "index.json", told.encode("utf-8"))
    return facts


def refuse_foreign(out: Path) -> None:
    """Raise CacheError where the folder holds something that is no index."""
    known = {"embedded", "index.json", *PARTS}
    strange = (
        [f for f in out.iterdir() if f.name not in known and f.name[:7] != "frozen-"] if out.is_dir() else []
    )
    strange = [file for file in strange if not file.name.startswith(".")]
    if strange or (out.exists() and not out.is_dir()):
        held = strange[0].name if strange else "a file"
        raise CacheError(
            f"{out} holds {held} and is no index; expected a new or empty folder; choose another --out"
        )


def _check(run: Run, manifest: caches.Manifest) -> None:
    """Refuse rows that are not the run's encoder's, or that another run has mapped."""
    check_modality(run, manifest.modality)
    own = manifest.encoder.preprocessing.get("run")
    if own is None:
        run.check(manifest)
    elif own != run_sha256(run):
        raise Mismatch(
            f"{manifest.table} was embedded by another run ({own[:12]}) than this ({run_sha256(run)[:12]}); "
            "expected one run; embed it again with this run"
        )


def _is_mapped(manifest: caches.Manifest) -> bool:
    return "run" in manifest.encoder.preprocessing


def _parts(tables: list[Indexed], out: Path) -> list[Part]:
    parts, start = [], 0
    for each in tables:
        table = each.cache.table(each.name)
        good = int(table.ok.sum())
        root = None if each.root is None else os.path.relpath(each.root.resolve(), out.resolve())
        parts.append(Part(each.name, start, start + good, table.rows - good, root, each.dataset))
        start += good
    return parts


def _fill(run: Run, tables: list[Indexed], parts: list[Part], out: Path, progress: Progress) -> list[str]:
    """Write the arrays; returns the class names that the labels count."""
    total = parts[-1].stop
    width = space_width(run, parts[0].modality)
    vectors = disk.open_array(out / "vectors.npy", np.float16, (total, width))
    frozen = _frozen_arrays(tables, parts, out)
    ids: list[str] = []
    labels = np.empty(total, np.int32)
    label_of: dict[str, int] = {}
    for each, part in zip(tables, parts, strict=True):
        table, at = each.cache.table(each.name), part.start
        names = each.cache.class_names
        first = next(p.start for p in parts if p.modality == part.modality)
        for start in range(0, table.rows, BLOCK):
            span = slice(start, min(start + BLOCK, table.rows))
            ok = table.ok[span]
            place = slice(at, at := at + int(ok.sum()))
            raw = None if _is_mapped(table.manifest) else table.read(span)[ok]
            vectors[place] = table.read(span)[ok, 0] if raw is None else mapped_rows(run, table, span)[ok]
            if part.modality in frozen and raw is not None:
                frozen[part.modality][place.start - first : place.stop - first] = _unit(
                    raw if part.modality == "text" else raw[:, :1]
                )
            ids += table.ids[span][ok].tolist()
            labels[place] = [label_of.setdefault(names[i], len(label_of)) for i in table.labels[span][ok]]
            progress(at, total, "index")
    for array in (vectors, *frozen.values()):
        array.flush()
    np.save(out / "ids.npy", pack(ids))
    np.save(out / "labels.npy", labels)
    return list(label_of)


def _unit(rows: np.ndarray) -> np.ndarray:
    """One unit vector a row: the mean over its views at unit length (the templates of a text)."""
    x = rows.astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=2, keepdims=True), np.finfo(np.float32).tiny)
    x = x.mean(axis=1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _frozen_arrays(tables: list[Indexed], parts: list[Part], out: Path) -> dict[str, np.memmap]:
    """An array per modality whose rows are all here as the frozen encoder gave them."""
    found = {}
    for modality in dict.fromkeys(part.modality for part in parts):
        mine = [each.cache.table(each.name) for each in tables if each.name.split("/")[0] == modality]
        rows = sum(part.stop - part.start for part in parts if part.modality == modality)
        if rows and not any(_is_mapped(table.manifest) for table in mine):
            shape = (rows, mine[0].dim)
            file = out / f"frozen-{modality}.npy"
            found[modality] = disk.open_array(file, np.float16, shape)
    return found


def _facts(run: Run, way: str, parts: list[Part], names: list[str], out: Path) -> dict[str, Any]:
    hub = way.startswith("hf:")
    return {
        "schema": SCHEMA,
        "run": way if hub else os.path.relpath(Path(way).resolve(), out.resolve()),
        "run_sha256": run_sha256(run),
        "rows": parts[-1].stop,
        "width": space_width(run, parts[0].modality),
        "class_names": names,
        "encoders": {m: mapped_spec(run, spec).weights_sha256 for m, spec in run.encoders.items()},
        "tables": [asdict(part) for part in parts],
    }
