"""A run's folder on disk, as plain values: what lies in it, how it appears at once, how it is read strictly.

    <run>/model.safetensors   weights; resolved config, encoders and class names' hash in the metadata
          config.json         every setting
          loss.csv            history per epoch
          result.json         facts, metrics and where the cache lies, seen from this folder; schema
          "spaner-run/1"; written last: with it the run is finished

The folder is written beside its place, under a name of its own, and renamed; of two trainings into one place
the last wins whole. The same run has the same bytes, whenever it is saved. Another schema, a damaged file, or
a result that belongs to other weights is an error. Nothing here is pickled, and nothing knows a method.
"""

import csv
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from spaner.cache import files
from spaner.cache.address import Address, place
from spaner.errors import CacheError, RunError

SCHEMA = "spaner-run/1"

#: How often `refuse_foreign` looks before it refuses.
LOOKS = 5

#: What the weights say of themselves, so that a result of other weights is noticed.
TIED = (
    "class_names",
    "config",
    "dataset",
    "widths",
    "logit_scale",
    "encoders",
    "draw",
    "tables",
    "extensions",
    "seconds",
)

#: What a result is made of.
KINDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "dataset": str,
    "widths": dict,
    "logit_scale": (int, float, type(None)),
    "encoders": dict,
    "draw": (dict, type(None)),
    "tables": dict,
    "extensions": list,
    "seconds": (int, float),
    "versions": dict,
    "class_names": list,
    "metrics": (dict, type(None)),
}


def write(folder: Path, state: Mapping[str, torch.Tensor], result: Mapping[str, Any]) -> None:
    """Write the run folder at once, replacing an older run of that name.

    Args:
        result: what result.json will hold; its history, under "history", goes into a file of its own.

    Raises:
        RunError: the folder holds something that is not a run.
    """
    refuse_foreign(folder)
    result = dict(result)
    history = result.pop("history")
    with files.writing(folder, RunError, "--out"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            part.chmod(0o755)  # mkdtemp's is for its owner alone
            _save(part / "model.safetensors", state, json.dumps(_tied(result), sort_keys=True))
            _write_json(part / "config.json", result["config"])
            if history:
                _write_history(part / "loss.csv", history)
            _write_json(part / "result.json", result)
            files.settle_folder(part)  # before the name that says it is finished
            _replace(folder, part)
            _settle(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Wait until the folder's name is on the disk; another training may have put its own there meanwhile."""
    try:
        files.settle([folder])
    except CacheError as refused:
        if not isinstance(refused.__cause__, FileNotFoundError):
            raise


def _save(file: Path, state: Mapping[str, torch.Tensor], facts: str) -> None:
    try:
        save_file(dict(state), file, {"spaner": facts})
    except SafetensorError as error:  # which hides the number of the disk's refusal
        told = {"space": errno.ENOSPC, "too large": errno.EFBIG, "quota": errno.EDQUOT}
        code = next((code for word, code in told.items() if word in str(error)), errno.EIO)
        raise OSError(code, str(error)) from error


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], list[dict[str, float]]]:
    """What result.json says, the tensors, and the history of a finished run.

    Raises:
        RunError: no such folder, not a run, unfinished, another schema, damaged or incomplete weights.
    """
    result = read_result(folder)
    state = _read_weights(folder / "model.safetensors", result)
    _check_sizes(folder / "result.json", result, state)
    return result, state, _read_history(folder / "loss.csv") if result["final"] else []


def _tied(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, **{name: result[name] for name in TIED}}


def way_to(cache: Path | None, folder: Path) -> dict[str, str]:
    """The cache as seen from the run folder: never an absolute path; an address as it is."""
    if cache is None or isinstance(cache, Address):
        return {} if cache is None else {"cache": str(cache)}
    return {"cache": os.path.relpath(cache.resolve(), folder.resolve())}


def way_back(told: str | None, folder: Path) -> Path | None:
    """The cache that `way_to` told of."""
    if not told:
        return None
    found = place(told)
    return found if isinstance(found, Address) else (folder / told).resolve()


def read_result(folder: Path) -> dict[str, Any]:
    """What result.json of a finished run says; RunError as for `read`."""
    if not folder.is_dir():
        raise RunError(f"no run folder at {folder}; make one with `spaner train`")
    if not (folder / "result.json").exists():
        known = (folder / "model.safetensors").exists()
        state = "is an unfinished run" if known else "is not a run folder"
        raise RunError(f"{folder} {state}: it has no result.json; run `spaner train` again")
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        schema = result.get("schema")
    except (ValueError, AttributeError, RecursionError):
        raise RunError(f"{folder}/result.json is not a result in JSON; run `spaner train` again") from None
    if schema != SCHEMA:
        raise RunError(
            f"{folder} has schema {schema!r}; expected {SCHEMA!r}; use the version of spaner that wrote it"
        )
    _check_kinds(folder / "result.json", result)
    return result


def _check_kinds(file: Path, result: Mapping[str, Any]) -> None:
    """RunError unless every value that a run is made of is there and of its kind."""
    for name, kind in KINDS.items():
        if not isinstance(result.get(name), kind):
            found = type(result[name]).__name__ if name in result else "nothing"
            expected = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise RunError(f"{file}: {name} is {found}; expected {expected}; run `spaner train` again")
    widths = result["widths"].values()
    if not all(isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in widths):
        raise RunError(
            f"{file}: widths are {result['widths']}; expected whole numbers; run `spaner train` again"
        )


def _check_sizes(file: Path, result: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """RunError where a width or setting is larger than all tensors together: nothing is to be made of it."""
    most = max(1 << 20, sum(tensor.numel() for tensor in tensors.values()))
    told = {f"width of {name}": width for name, width in result["widths"].items()}
    told |= {name: value for name, value in result["config"].items() if "seed" not in name}
    for name, value in told.items():
        if isinstance(value, int) and value > most:
            raise RunError(
                f"{file}: {name} is {value:,}; expected what fits the {most:,} numbers beside it; "
                "run `spaner train` again"
            )


def _read_weights(file: Path, result: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a run, if they are those that the result speaks of."""
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
            facts = (stored.metadata() or {}).get("spaner")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read: {error}; run `spaner train` again") from None
    # runs of the first version spread their facts over several entries and had no such tie
    if facts is not None and json.loads(facts) != json.loads(json.dumps(_tied(result))):
        raise RunError(
            f"{file} and result.json beside it belong to different trainings; expected one; "
            "run `spaner train` again"
        )
    return tensors


def refuse_foreign(folder: Path) -> None:
    """Raise RunError where the folder holds something that is not a run.

    Looked at more than once: another training that puts its run there takes the old one away file by file.
    """
    if folder.exists() and not any(_is_run(folder) for _ in range(LOOKS)):
        raise RunError(f"{folder} exists and is not a run folder; choose another place with --out")


def _is_run(folder: Path) -> bool:
    """Whether a run may take its place: nothing is there, an empty folder, or a run."""
    try:
        names = [each.name for each in folder.iterdir()]
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    return not names or "result.json" in names


def _replace(folder: Path, part: Path) -> None:
    """Put `part` in the folder's place. Where another process does the same, each moves aside what it
    finds."""
    while True:
        aside = part.with_suffix(".old")
        with suppress(FileNotFoundError):
            folder.replace(aside)
        try:
            part.replace(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue  # another training put its run there in between
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_history(file: Path, history: list[dict[str, float]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def _read_history(file: Path) -> list[dict[str, float]]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    except (OSError, AttributeError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}; run `spaner train` again") from None


def _number(text: str) -> float:
    """As it was written: an epoch is a whole number, also when the run is saved again."""
    return int(text) if text.isdecimal() else float(text)
