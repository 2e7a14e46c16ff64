"""What a table holds and what made it: two frozen records that travel as JSON.

A record has one canonical JSON text (sorted keys, no spaces), whose SHA-256 is its identity. Nothing in it
depends on time, machine or path, so that a resumed table ends bit-identical to an undisturbed one.
It does not hold facts that are measured while extracting; those are stored beside it when a table is sealed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self

from spaner.errors import CacheError

FIRST, SCHEMA = "spaner-cache/1", "spaner-cache/2"
SCHEMAS = (FIRST, SCHEMA)  # all are read and continued; a new cache has the last
DTYPES = {"float16": 2, "float32": 4}  # bytes of a number


def canonical(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, text as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON text, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("utf-8", "surrogatepass")).hexdigest()


def _differences(mine: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    pairs = ((item.name, getattr(mine, item.name), getattr(other, item.name)) for item in fields(mine))
    return {name: (a, b) for name, a, b in pairs if a != b}


def _construct(cls: type, values: Any) -> Any:
    known = {item.name for item in fields(cls)}
    if not isinstance(values, Mapping):
        raise CacheError(f"{cls.__name__} must be a JSON object, found {type(values).__name__}")
    if unknown := sorted(set(values) - known):
        raise CacheError(
            f"{cls.__name__} holds unknown fields {', '.join(unknown)}; upgrade spaner to read it"
        )
    try:
        return cls(**values)
    except TypeError as error:
        raise CacheError(f"{cls.__name__} is incomplete: {error}; create the table again") from error


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that can change a row besides the sample itself.

    Attributes:
        name: which encoder, e.g. "open_clip/ViT-B-16"; "arrays" for vectors that the user brought.
        weights: what was asked for: "openai", "random", "file:name.safetensors".
        weights_sha256: hash of the weights that were loaded; "" where there are none.
        modality: "image", "text" or "audio".
        dim: width D of a row.
        preprocessing: every number of the way from file to network input.
        precision: arithmetic that made the rows, e.g. "float32", "bf16".
        mode: "eval", or "batch_stats" where a row depends on its batch.
        logit_scale: the encoder's own learned scale (1 / temperature), if it has one.
        synthetic: random weights or made-up vectors; never to be compared with published numbers.
    """

    name: str
    weights: str
    weights_sha256: str
    modality: str
    dim: int
    preprocessing: dict[str, Any]
    precision: str
    mode: str = "eval"
    logit_scale: float | None = None
    synthetic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", json.loads(canonical(self.preprocessing)))

    def differences(self, other: "EncoderSpec") -> dict[str, tuple[Any, Any]]:
        """Every field that differs, as name -> (mine, other's)."""
        return _differences(self, other)

    def same_encoder(self, other: "EncoderSpec") -> dict[str, tuple[Any, Any]]:
        """Fields that make two encoders incomparable; empty where rows of both may be mixed.

        Precision is left out: rows of the same weights agree across precisions to the agreement measured
        at extraction. So are the logit scale, which no row depends on, and how the weights were asked for.
        """
        ignored = {"weights", "precision", "logit_scale", "synthetic"}
        return {name: pair for name, pair in self.differences(other).items() if name not in ignored}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `dataclasses.asdict`."""
        return _construct(cls, values)


CHUNK_BYTES, CHUNK_ROWS = 1 << 22, 4096


def default_chunk_rows(views: int, dim: int, dtype: str) -> int:
    """Rows of a chunk of 4 MiB, at most 4,096.

    Opening a file costs as much as copying half a megabyte, so smaller chunks would stream slower than a
    mapped .npy file; a larger one is more work to lose when a process is killed.
    """
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // (views * dim * DTYPES[dtype])))


@dataclass(frozen=True)
class Manifest:
    """Identity of one table: one modality of one split of one dataset, encoded one way.

    Attributes:
        split: for text, the name of the template set.
        rows: N. For text, the number of classes.
        views: names of the V views of a row. For text, the templates.
        dim: D, the width of a row.
        dtype: "float16" or "float32".
        chunk_rows: rows that are written, checked and repaired together.
        seed: seed of the random views.
        rows_sha256: `ids_sha256` of the ids, in row order.
        complete: False where the table holds only the rows that its draws need.
        options: further settings that changed the listing or the rows.
        draws: name of each stored draw, e.g. "16-shot-seed-1" -> `ids_sha256` of the drawn ids.
        schema: of the cache that it lies in.
    """

    dataset: str
    modality: str
    split: str
    rows: int
    views: tuple[str, ...]
    dim: int
    dtype: str
    chunk_rows: int
    encoder: EncoderSpec
    seed: int
    rows_sha256: str
    complete: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, str] = field(default_factory=dict)
    schema: str = SCHEMA

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        object.__setattr__(self, "options", json.loads(canonical(self.options)))
        object.__setattr__(self, "draws", dict(self.draws))

    @property
    def table(self) -> str:
        """Where the table lives in its cache: "modality/split"."""
        return f"{self.modality}/{self.split}"

    @property
    def chunk(self) -> int:
        """Rows per chunk on disk: a table shorter than `chunk_rows` is one chunk of its own length."""
        return min(self.chunk_rows, self.rows)

    @property
    def chunks(self) -> int:
        """Number of chunks; the last one may be short."""
        return -(-self.rows // self.chunk)

    def rows_of(self, chunk: int) -> slice:
        """Rows of one chunk."""
        return slice(chunk * self.chunk, min((chunk + 1) * self.chunk, self.rows))

    @cached_property
    def sha256(self) -> str:
        """The table's identity."""
        return digest(self.to_json())

    def differences(self, other: "Manifest") -> dict[str, tuple[Any, Any]]:
        """Every field that differs, the encoder's as "encoder.field"."""
        found = _differences(self, other)
        if found.pop("encoder", None):
            inner = self.encoder.differences(other.encoder)
            found |= {f"encoder.{name}": pair for name, pair in inner.items()}
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return json.loads(canonical(asdict(self)))

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `to_json`.

        Raises:
            CacheError: a field is missing or unknown.
        """
        encoder = EncoderSpec.from_json(values.get("encoder") if isinstance(values, Mapping) else None)
        manifest = _construct(cls, dict(values) | {"encoder": encoder})
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise CacheError if the sizes or the dtype cannot be those of a table."""
        if self.dtype not in DTYPES:
            raise CacheError(f"{self.table} has dtype {self.dtype!r}; expected {' or '.join(DTYPES)}")
        sizes = {"rows": self.rows, "views": len(self.views), "dim": self.dim, "chunk_rows": self.chunk_rows}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise CacheError(f"{self.table} has {size!r} {name}; expected at least 1")
