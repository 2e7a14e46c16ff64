"""From samples to stored chunks, everything at once: files are decoded ahead in threads, the next batch is
stacked, the encoder runs, and the chunk before is written.

A batch never crosses a chunk, so the bits of a chunk depend on that chunk alone and an interrupted table
continues bit-identical. Memory holds a few batches and two chunks, whatever the table's length. A sample that
cannot be opened, or whose row is not finite, becomes a failed row with its reason.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spaner.cache.manifest import Manifest
from spaner.errors import EncoderError, SpanerError
from spaner.extract.datasets.dataset import Split
from spaner.extract.encoders.encoder import Encoder
from spaner.extract.purity import fixed_batch

NOT_FINITE = "features are not finite"


@dataclass(frozen=True)
class Batch:
    """Samples of one chunk, ready for the encoder.

    Attributes:
        chunk: its number.
        places: rows within the chunk that could be opened.
        inputs: their len(places) * V views, row by row; None where no sample could be opened.
        reasons: row within the chunk -> why it could not.
        last: whether the chunk ends here.
    """

    chunk: int
    places: list[int]
    inputs: Any
    reasons: dict[int, str]
    last: bool


class Sink(Protocol):
    """Where rows go, chunk by chunk: a table's `Writer`, or memory."""

    manifest: Manifest
    pending: list[int]

    def rows(self, chunk: int, /) -> slice: ...

    def write(self, chunk: int, features: np.ndarray, /, *, reasons: dict[int, str]) -> None: ...


@dataclass(frozen=True)
class Pace:
    """How to work, without any effect on a row: views per encoder call, decoding threads, and a card.

    `card`: batches are joined in pinned memory, and two are under way on that CUDA device.
    """

    batch_size: int
    workers: int
    card: torch.device | None = None


@dataclass(frozen=True)
class Feed:
    """How the rows of one table come about.

    Attributes:
        probe: row number -> its V prepared views (V, …), or the reason why there are none.
        load: row number -> what `join` takes of it, or the reason (a str); called in threads.
        join: what was loaded, row by row -> inputs of a batch; called in a thread, a batch ahead.
        encode: inputs -> rows (n * V, D), float32.
        size: rows per batch.
        workers: threads that load.
        card: a CUDA device on which two batches are encoded at a time; None: one after another.
    """

    probe: Callable[[int], Tensor | str]
    load: Callable[[int], Any]
    join: Callable[[list[Any]], Any]
    encode: Callable[[Any], np.ndarray]
    size: int
    workers: int
    card: torch.device | None = None


def feed(split: Split, encoder: Encoder, views: int, seed: int, pace: Pace) -> Feed:
    """Samples whose views are prepared one by one and stacked."""
    together = fixed_batch(encoder) or 1
    size = max(together, pace.batch_size // views // together * together)
    load = opened(split, encoder, views, seed)

    def join(items: list[Tensor]) -> Tensor:
        inputs = torch.cat(items)
        return inputs.pin_memory() if pace.card else inputs

    def encode(inputs: Tensor) -> np.ndarray:
        return encoder.encode(inputs).numpy()

    return Feed(load, load, join, encode, size, pace.workers, pace.card)


def opened(split: Split, encoder: Encoder, views: int, seed: int) -> Callable[[int], Tensor | str]:
    """Row number -> its V prepared views (V, …), or the reason why there are none."""

    def load(row: int) -> Tensor | str:
        key = split.ids[row]
        try:
            payload = split.open(key)
            return torch.stack([encoder.prepare(payload, view, key, seed) for view in range(views)])
        except SpanerError:
            raise
        except Exception as error:  # whatever a decoder raises is the failure of that row only
            return (str(error).splitlines() or [type(error).__name__])[0]

    return load


def fill(writer: Sink, feed: Feed, tick: Callable[[int], None]) -> None:
    """Encode and write every pending chunk. `tick` is told the rows of each finished batch.

    Raises:
        EncoderError: a value too large for the stored type.
        CacheError: the disk is full, or another of the writer's complaints.
    """
    with ThreadPoolExecutor(feed.workers) as pool, closing(Saver(writer)) as saver:
        with closing(_ahead(_batches(writer, feed, pool))) as ready, closing(_encoded(ready, feed)) as done:
            for batch, rows in done:
                saver.take(batch, rows)
                tick(len(batch.places) + len(batch.reasons))
        saver.finish()


def _encoded(batches: Iterable[Batch], feed: Feed) -> Generator[tuple[Batch, np.ndarray | None], None, None]:
    """Every batch and its rows. On a card two threads take turns, each with a stream of its own: while one
    batch computes, the other's inputs go up from pinned memory, or its rows come back."""

    def encode(batch: Batch) -> tuple[Batch, np.ndarray | None]:
        return batch, None if batch.inputs is None else feed.encode(batch.inputs)

    if feed.card is None:
        yield from map(encode, batches)
        return
    with ThreadPoolExecutor(2, initializer=_own_stream, initargs=(feed.card,)) as lanes:
        yield from _mapped(lanes, encode, batches, 1)


def _own_stream(card: torch.device) -> None:
    if card.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(card))


def _batches(writer: Sink, feed: Feed, pool: ThreadPoolExecutor) -> Iterator[Batch]:
    spans = [(chunk, writer.rows(chunk)) for chunk in writer.pending]
    rows = (row for _, span in spans for row in range(span.start, span.stop))
    loaded = _mapped(pool, feed.load, rows, 2 * feed.size + 2)
    for chunk, span in spans:
        count = span.stop - span.start
        for start in range(0, count, feed.size):
            places = range(start, min(start + feed.size, count))
            found = {place: next(loaded) for place in places}
            good = {place: item for place, item in found.items() if not isinstance(item, str)}
            inputs = feed.join(list(good.values())) if good else None
            reasons = {place: item for place, item in found.items() if isinstance(item, str)}
            yield Batch(chunk, list(good), inputs, reasons, last=places.stop == count)


def _mapped(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
    """`map` over threads, in order, at most `depth` results ahead of the reader."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ahead(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """The same batches, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = thread.submit(next, batches, None)
            yield batch


class Saver:
    """Gathers the batches of a chunk and writes it in a thread, one chunk at a time."""

    def __init__(self, writer: Sink) -> None:
        self.writer = writer
        self.thread = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.rows = np.empty(0, np.float32)
        self.reasons: dict[int, str] = {}
        self.chunk = -1

    def take(self, batch: Batch, features: np.ndarray | None) -> None:
        """Add a batch's rows (len(places) * V, D) to its chunk; write the chunk when it is full."""
        manifest = self.writer.manifest
        if batch.chunk != self.chunk:
            span = self.writer.rows(batch.chunk)
            self.rows = np.zeros((span.stop - span.start, len(manifest.views), manifest.dim), np.float32)
            self.reasons, self.chunk = {}, batch.chunk
        self.reasons |= batch.reasons
        if features is not None:
            self._place(batch.places, features.reshape(len(batch.places), len(manifest.views), -1))
        if batch.last:
            self.save(batch.chunk, self.rows, self.reasons)

    def _place(self, places: list[int], rows: np.ndarray) -> None:
        finite = np.isfinite(rows.reshape(len(places), -1)).all(axis=1)
        bad = np.flatnonzero(~finite)
        self.reasons |= {places[int(row)]: NOT_FINITE for row in bad}
        rows[bad] = 0
        self.rows[places] = rows

    def save(self, chunk: int, rows: np.ndarray, reasons: dict[int, str]) -> None:
        """Hand one chunk to the writing thread, after the chunk before is on disk."""
        check_range(rows, self.writer.manifest.dtype, self.writer.manifest.table)
        self.finish()
        self.writing = self.thread.submit(self.writer.write, chunk, rows, reasons=reasons)

    def finish(self) -> None:
        """Wait for the chunk being written; raises what went wrong there."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def close(self) -> None:
        """End the thread, after the chunk it is writing."""
        self.thread.shutdown()


def check_range(rows: np.ndarray, dtype: str, table: str) -> None:
    """Raise EncoderError if a value does not fit the stored type."""
    largest, end = float(np.abs(rows).max(initial=0)), float(np.finfo(dtype).max)
    if largest > end:
        raise EncoderError(
            f"{table}: the encoder gives values up to {largest:.3g}; {dtype} ends at "
            f"{end:.0f}; type `--dtype float32`"
        )
