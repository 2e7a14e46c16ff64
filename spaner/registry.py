"""What can be asked for by name, and the one way in which a name becomes an object.

A registry is a mapping that one can read, name -> "module:attribute", the syntax of a Python entry point.
Installed packages add to the registry of a kind through the entry-point group `spaner.KINDs`
(`spaner.datasets`, `spaner.encoders`, `spaner.methods` …); names of our own win. Nothing is imported
before it is asked for. Needs the standard library only; it knows no kind and no room.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from spaner.errors import SpanerError


def load(entries: Mapping[str, str], kind: str, name: str, error: type[SpanerError]) -> Any:
    """The object that `name` stands for.

    Args:
        entries: the built-in names of this kind -> "module:attribute".
        kind: the option's word, "encoder" for `--encoder`; also names the entry-point group.
        error: raised for an unknown name, and for an entry whose module or attribute cannot be had.
    """
    if name in entries:  # what packages offer is looked up only where it is asked for
        module, _, attribute = entries[name].partition(":")
        return getattr(import_module(module), attribute)
    check(entries, kind, name, error)
    target = _known(entries, kind)[name]
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as broken:
        raise error(
            f"--{kind} {name}: an installed package offers it as {target!r}, "
            f"which cannot be imported ({broken}); expected module:attribute; mend or remove that package"
        ) from broken


def check(entries: Mapping[str, str], kind: str, name: str, error: type[SpanerError]) -> None:
    """Raise `error` unless `name` is known; the line says which are and which is nearest. Imports nothing."""
    if name in entries:
        return
    known = names(entries, kind)
    if name in known:
        return
    near = nearest(name, known, cutoff=0.6)
    hint = f"; did you mean `--{kind} {near}`?" if near else f"; type for example `--{kind} {known[0]}`"
    raise error(f"--{kind} {name}: unknown; expected one of {', '.join(known)}{hint}")


def names(entries: Mapping[str, str], kind: str) -> list[str]:
    """Every known name of a kind, built in or from an installed package, sorted."""
    return sorted(_known(entries, kind))


def nearest(word: str, words: Iterable[str], cutoff: float = 0.0) -> str:
    """The word that is spelled most alike; "" where none is as alike as `cutoff` (0 to 1) asks."""
    return next(iter(get_close_matches(str(word), list(words), n=1, cutoff=cutoff)), "")


def _known(entries: Mapping[str, str], kind: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=f"spaner.{kind}s")} | dict(entries)
