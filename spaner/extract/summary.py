"""What an extraction did, table by table: plain values, ready for a terminal or for JSON."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TableSummary:
    """One table.

    Attributes:
        name: "modality/split".
        rows: N.
        resumed: rows that an earlier run had finished.
        bytes: size of the features.
        failures: id -> reason.
        rows_per_second: of this run; None where nothing was encoded.
        purity: largest relative difference of a row encoded alone and in company; None where not measured.
        agreement: smallest cosine to float32 rows; None at full precision.
    """

    name: str
    rows: int
    resumed: int
    bytes: int
    failures: dict[str, str] = field(default_factory=dict)
    rows_per_second: float | None = None
    purity: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Summary:
    """A whole run.

    Attributes:
        path: where its tables are.
        repaired: chunks, if that was asked for.
        left_out: what lies under the data root and is no row: kind -> how many, and the first of them.
        complete: whether every table is sealed, which other processes may still have to do.
        notes: what else happened to rows, a line each.
    """

    path: Path
    tables: list[TableSummary]
    dry_run: bool = False
    complete: bool = True
    repaired: int = 0
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"path": str(self.path)}
