"""Base-to-new: trained on the first half of the classes, asked about the second, which no step has seen.

Source: the protocol of CoCoOp (Zhou et al., CVPR 2022): few-shot rows of the base classes train, test rows of
the base classes are told apart among base classes and those of the new ones among new classes, and H is the
harmonic mean of the two accuracies. A method that gives up what the frozen encoder knows of other classes
shows it here; a head of fixed classes cannot be asked at all and has no number.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spaner import cache as caches
from spaner.align.score.classes import halves
from spaner.align.score.evaluate import Frozen, asking, matches
from spaner.align.score.tables import opened_cache, tested_table
from spaner.align.train.config import TrainConfig
from spaner.align.train.fit import fit
from spaner.align.train.joint import check_named
from spaner.errors import Mismatch

KINDS = ("text", "semantic")


Towers = Callable[[Path, str, str], Mapping[str, Any]]
"""Cache, method and device -> what `fit` takes beside the cache; it can be sent to a process."""


def base_to_new(
    cache: caches.Cache | str | Path, config: TrainConfig, towers: Towers | None = None
) -> dict[str, Any]:
    """Fit on the base classes, score both halves.

    Args:
        towers: builds what a method needs beside the cache.

    Returns:
        `text` and `semantic`, each with `base`, `new` and `H` (None where the method has no such number),
        `zero_shot` with the same of the frozen encoder (None where it has no common space), `classes` (how
        many are base and new), and `reason` where the new classes cannot be asked.

    Raises:
        DatasetError: fewer than four classes. RecipeError: no text is trained. What `fit` raises.
    """
    check_named(config, "base-to-new")
    with opened_cache(cache) as opened:
        base, new = halves(opened)
        table = tested_table(opened, None)
        run = fit(base, config, **(towers(opened.path, config.method, config.device) if towers else {}))
        known, reason = _accuracies(run, base, table), None
        try:
            unknown = _accuracies(run, new, table)
        except Mismatch as refused:
            unknown, reason = {}, str(refused)
        told = {"classes": [len(base.class_names), len(new.class_names)], "reason": reason}
        return told | _joined(known, unknown) | {"zero_shot": _frozen(opened, base, new, table)}


def harmonic_mean(base: float | None, new: float | None) -> float | None:
    """H = 2 b n / (b + n); 0 where one of them is, None where one is missing."""
    if base is None or new is None:
        return None
    return 0.0 if base + new == 0 else 2 * base * new / (base + new)


def _accuracies(space: Any, cache: Any, table: str) -> dict[str, float]:
    return {kind: float(found.credit.mean()) for kind, found in matches(space, cache, table).items()}


def _joined(base: dict[str, float], new: dict[str, float]) -> dict[str, Any]:
    pairs = {kind: (base.get(kind), new.get(kind)) for kind in KINDS}
    return {kind: {"base": b, "new": n, "H": harmonic_mean(b, n)} for kind, (b, n) in pairs.items()}


def _frozen(cache: caches.Cache, base: Any, new: Any, table: str) -> dict[str, Any] | None:
    if len({cache.table(name).dim for name in (table, *asking(cache).values())}) > 1:
        return None
    return _joined(*(_accuracies(Frozen(), half, table) for half in (base, new)))
