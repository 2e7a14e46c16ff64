"""Facts measured while extracting: does a row depend on its batch, and what did lower precision change?

*Purity*: a few rows, spread over the table, are encoded alone and in other company; the largest relative
difference `|a - b| / |b|` is stored. Rounding makes it some 1e-6 in float32 and some 1e-2 in bfloat16 (8
bits of mantissa through a dozen layers); an encoder that looks at its neighbours gives 0.1 and more. The
limits lie between. *Agreement*: the cosine between rows in lower precision and in float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spaner.cache.cache import Writer
from spaner.errors import EncoderError
from spaner.extract.encoders.encoder import Encoder

LIMITS = {"float32": 1e-3}
LOWER_LIMIT = 3e-2
HALF_STORAGE = 1e-3  # rounding a row to float16 moves it by up to 5e-4 of its length
PROBES = 8
AGREEMENT_ROWS = 24

Probe = Callable[[int], Tensor | str]
"""Row number -> its V prepared views (V, …), or the reason why there are none."""


def spread(rows: int, count: int) -> list[int]:
    """`count` row numbers (or all) evenly over `rows`, first and last among them."""
    return sorted({int(row) for row in np.linspace(0, rows - 1, min(rows, count)).round()})


def difference(rows: np.ndarray, reference: np.ndarray) -> float:
    """Largest `|a - b| / |b|` over pairs of rows; pairs that are both not finite agree."""
    known = np.isfinite(rows).all(axis=-1) | np.isfinite(reference).all(axis=-1)
    rows, reference = rows[known], reference[known]
    rows, reference = rows.astype(np.float64), reference.astype(np.float64)
    norms = np.maximum(np.linalg.norm(reference, axis=-1), np.finfo(np.float32).tiny)
    return float((np.linalg.norm(rows - reference, axis=-1) / norms).max(initial=0.0))


def measure(encoder: Encoder, probes: Tensor) -> tuple[float, np.ndarray]:
    """Largest relative difference of rows alone against in company, and the rows alone (n, D).

    Company is the batch of all probes, once in order and once with each probe's neighbours exchanged.
    """
    alone = np.concatenate([encoder.encode(probe[None]).numpy() for probe in probes])
    together = encoder.encode(probes).numpy()
    order = torch.arange(len(probes)).flip(0)[: max(2, len(probes) // 2)]
    others = encoder.encode(probes[order]).numpy()
    return max(difference(together, alone), difference(others, alone[order.numpy()])), alone


def limit(precision: str) -> float:
    """Largest difference that rounding explains."""
    return LIMITS.get(precision, LOWER_LIMIT)


def check(found: float, encoder: Encoder, table: str, *, allow: bool) -> None:
    """Raise EncoderError if rows depend on their batch and that is not allowed."""
    most = limit(encoder.spec.precision)
    if not found <= most and not allow:
        raise EncoderError(
            f"{table}: rows of {encoder.spec.name} depend on their batch: alone and in company they differ "
            f"by {found:.2g}, expected at most {most:g}; put the encoder in evaluation mode, or type "
            f"`--allow-impure`"
        )


def facts(found: float, stored: float, rows: int, precision: str) -> dict[str, Any]:
    """What the table keeps about purity."""
    most = limit(precision)
    return {
        "max_relative": found,
        "stored_relative": stored,
        "rows": rows,
        "limit": most,
        "pure": found <= most,
    }


def fixed_batch(encoder: Encoder) -> int | None:
    """Rows that the encoder must be given together, in listing order; None where rows are independent."""
    return getattr(encoder, "fixed_batch", None)


def by_design(encoder: Encoder) -> dict[str, Any]:
    """The same for an encoder whose mode, asked for by name, makes rows depend on their batch."""
    return {"pure": False, "mode": encoder.spec.mode}


def check_early(encoder: Encoder, writer: Writer, probe: Probe, *, allow: bool) -> None:
    """Refuse an impure encoder before hours of work, on a few of the rows to do.

    Raises:
        EncoderError: rows depend on their batch and that is not allowed.
    """
    if not writer.pending or fixed_batch(encoder):
        return
    first = writer.rows(writer.pending[0])
    rows = [first.start + row for row in spread(first.stop - first.start, 4)]
    _, probes = _probes(rows, probe, len(writer.manifest.views))
    if len(probes) > 1:
        found, _ = measure(encoder, probes)
        check(found, encoder, writer.manifest.table, allow=allow)


def of_table(
    encoder: Encoder,
    reference: Callable[[], Encoder],
    writer: Writer,
    probe: Probe,
    failed: Sequence[int],
    *,
    allow: bool,
) -> dict[str, Any]:
    """Purity over the whole table, stored rows included; for lower precision, agreement with float32.

    Args:
        reference: gives the same encoder in float32; asked for lower precision only.
        failed: rows that have no embedding.

    Raises:
        EncoderError: rows depend on their batch and that is not allowed.
    """
    if fixed_batch(encoder):
        return {"purity": by_design(encoder), "failed": len(failed)}
    manifest, without = writer.manifest, set(failed)
    views = len(manifest.views)
    rows = [row for row in spread(manifest.rows, PROBES) if row not in without]
    kept, probes = _probes(rows, probe, views)
    if not len(probes):
        return {}
    found, alone = measure(encoder, probes)
    seen = [_view(i, views) for i in range(len(kept))]
    stored = difference(writer.read(np.array(kept))[np.arange(len(kept)), seen], alone)
    worst = max(found, stored - (HALF_STORAGE if manifest.dtype == "float16" else 0.0))
    check(worst, encoder, manifest.table, allow=allow)
    precision = encoder.spec.precision
    measured = {"purity": facts(worst, stored, len(kept), precision), "failed": len(failed)}
    if precision != "float32":
        rows = [row for row in spread(manifest.rows, AGREEMENT_ROWS) if row not in without]
        twin = reference()
        measured["agreement"] = agreement(encoder, twin, _probes(rows, probe, views)[1])
    return measured


def _view(position: int, views: int) -> int:
    """Probes take turns through the views."""
    return position % views


def _probes(rows: list[int], probe: Probe, views: int) -> tuple[list[int], Tensor]:
    """Rows that can be opened, and one prepared view of each (n, …)."""
    loaded = {row: probe(row) for row in rows}
    good = {row: item for row, item in loaded.items() if isinstance(item, Tensor)}
    items = [item[_view(i, views)] for i, item in enumerate(good.values())]
    return list(good), torch.stack(items) if items else torch.empty(0)


def agreement(encoder: Encoder, reference: Encoder, probes: Tensor) -> dict[str, Any]:
    """Cosines between the encoder's rows and those of its float32 twin."""
    a, b = (each.encode(probes).double() for each in (encoder, reference))
    cosines = torch.nn.functional.cosine_similarity(a, b)
    return {"rows": len(probes), "min_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}
