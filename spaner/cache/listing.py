"""Text as fixed-width bytes: ids and failure reasons, stored the same way in both formats.

A text is its UTF-8 bytes padded with zeros to the width of the widest, which reads fast in any language
and needs no string type. A file name that is not valid UTF-8 keeps its bytes (surrogateescape).
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from spaner.errors import CacheError

REASON_BYTES = 160


def encode(text: str) -> bytes:
    """UTF-8 of one id.

    Raises:
        CacheError: the text is empty, holds NUL or cannot be written as UTF-8.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise CacheError(f"id {text!r} cannot be written as UTF-8; rename the sample") from None
    if not data or b"\0" in data:
        raise CacheError(f"id {text!r} is empty or holds a NUL character; give every sample a printable id")
    return data


def pack(texts: Iterable[str]) -> UInt8[np.ndarray, "N L"]:
    """Ids as zero-padded rows of bytes."""
    packed = np.array([encode(text) for text in texts], dtype=np.bytes_)
    return packed.view(np.uint8).reshape(len(packed), -1)


def unpack(rows: UInt8[np.ndarray, "N L"]) -> np.ndarray:
    """The texts of `pack`, as a NumPy array of str."""
    rows = np.ascontiguousarray(rows)
    packed = rows.view(f"S{rows.shape[1]}")[:, 0]
    if rows.max(initial=0) < 128:  # ASCII needs no decoder, which is 30 times slower
        return packed.astype(np.str_)
    return np.char.decode(packed, "utf-8", "surrogateescape")


def pack_reason(text: str) -> UInt8[np.ndarray, " R"]:
    """One failure reason: a single line, cut at a character border to 160 bytes."""
    line = " ".join(text.replace("\0", " ").split()) or "no reason given"
    data = line.encode("utf-8", "replace")[:REASON_BYTES].decode("utf-8", "ignore").encode()
    return np.frombuffer(data.ljust(REASON_BYTES, b"\0"), np.uint8)


def ids_sha256(ids: Iterable[str]) -> str:
    """SHA-256 over the ids in order, each as UTF-8 followed by one NUL."""
    state = hashlib.sha256()
    for text in ids:
        state.update(encode(text) + b"\0")
    return state.hexdigest()


def drawn_sha256(ids: Sequence[str] | np.ndarray, rows: Int[np.ndarray, " K"]) -> str:
    """The hash that a manifest keeps of a draw: `ids_sha256` of the drawn ids."""
    return ids_sha256(str(ids[row]) for row in np.asarray(rows).tolist())
