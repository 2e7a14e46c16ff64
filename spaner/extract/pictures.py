"""The images of a cache as tokens of a tower, and as rows of a tower that a method has changed inside.

Tokens are read from a token table of the cache (the nearest one below the block that is asked for; the blocks
between are run), else made from pixels, which the data set of the cache still has to have. Rows of a changed
tower are a table like any other, in a cache of its own beside the one that is scored: filled by the same
pipeline, with the same progress, resumed after an interruption, checked for purity, and found again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.cache.cache import Cache
from spaner.cache.manifest import Manifest
from spaner.cache.table import Table
from spaner.errors import DatasetError, Mismatch
from spaner.extract.config import ExtractConfig
from spaner.extract.datasets.dataset import Dataset, Split
from spaner.extract.encoders import tokens as token_tables
from spaner.extract.encoders.image_tower import BlockTower
from spaner.extract.encoders.rebuilt import rebuild
from spaner.extract.extraction import Extraction
from spaner.extract.listing import Origin, listed
from spaner.extract.plan import TablePlan
from spaner.progress import Progress, no_progress

Rows = Callable[[Float[Tensor, "B T W"]], Float[Tensor, "B D"]]
"""From tokens to embeddings, as a method changed the tower."""

OPENERS = 4
"""Threads that decode the pictures of a training batch."""


class CachedPictures:
    """The images of one cache.

    Args:
        path: of the cache.
        images: its image encoder, whose tower this opens block by block.
        origin: where pixels are.
        batch_size: images at once where rows of a changed tower are made.

    Raises:
        EncoderError: an image tower whose blocks cannot be entered.
    """

    def __init__(
        self,
        path: str | Path,
        images: Any,
        origin: Origin | None = None,
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        self.path, self.images, self.origin = Path(path), images, origin or Origin()
        self.batch_size, self.progress = batch_size, progress or no_progress
        self.tower = BlockTower(images.tower, images.spec.name, images.spec.weights_sha256)
        self.cache = caches.open(self.path)
        self._kept: dict[tuple[str, int], tuple[Table, int] | None] = {}
        self._splits: dict[str, Split] = {}

    def tokens(
        self, name: str, rows: Int[Tensor, " B"], views: Int[Tensor, " B"], block: int
    ) -> Float[Tensor, "B T W"]:
        """Tokens after `block` blocks of rows of the image table `name`, each in one of its views.

        Raises:
            Mismatch: a token table of other rows, views or weights. DatasetError: neither tokens nor pixels.
        """
        chosen, seen = rows.cpu().numpy(), views.cpu().numpy()
        if (kept := self.kept(name, block)) is not None:
            table, first = kept
            flat = torch.from_numpy(table.read(chosen)[np.arange(len(chosen)), seen])
            return self.onward(flat, first, block)
        table, split = self.cache.table(name), self.pixels(name, block)
        keys, seed = [str(table.ids[row]) for row in chosen], table.manifest.seed
        with ThreadPoolExecutor(OPENERS) as pool:
            opened = [pool.submit(self._picture, split, *each, seed) for each in zip(keys, seen, strict=True)]
            pictures = [each.result() for each in opened]
        return self.tower.tokens(torch.stack(pictures), block)

    def _picture(self, split: Split, key: str, view: int, seed: int) -> Tensor:
        try:
            return self.images.prepare(split.open(key), int(view), key, seed)
        except Exception as error:  # whatever a file makes its decoder raise
            raise DatasetError(
                f"{key!r} was read when {self.path} was made, and cannot be now: {error}; expected the same "
                "files; put it back, or extract again"
            ) from None

    @torch.no_grad()
    def onward(self, flat: Float[Tensor, "B F"], first: int, block: int) -> Float[Tensor, "B T W"]:
        """Flat tokens after `first` blocks -> tokens after `block` blocks."""
        tower = self.tower
        return tower.between(flat.unflatten(1, (tower.length, tower.width)), first, block)

    def kept(self, name: str, block: int) -> tuple[Table, int] | None:
        """The token table to read, and its block; None where there is none at or below `block`.

        Raises:
            Mismatch: it holds other rows, views or weights than the image table.
        """
        if (name, block) not in self._kept:
            split = name.partition("/")[2]
            for first in range(block, -1, -1):
                if self.cache.has(f"{token_tables.modality(first)}/{split}"):
                    table = self.cache.table(f"{token_tables.modality(first)}/{split}")
                    check_same_rows(self.cache.table(name).manifest, table.manifest)
                    self._kept[name, block] = table, first
                    break
            else:
                self._kept[name, block] = None
        return self._kept[name, block]

    def pixels(self, name: str, block: int) -> Split:
        """Where the images of a table are opened.

        Raises:
            DatasetError: nowhere; the line names the token table that would do, and those that do not.
        """
        if name not in self._splits:
            table = self.cache.table(name)
            try:
                self._splits[name] = listed(self.cache, table.manifest, self.origin).source
            except DatasetError as error:
                wanted, split = token_tables.modality(block), name.partition("/")[2]
                found = [n for n in self.cache.tables() if n.startswith(token_tables.PREFIX)]
                raise DatasetError(
                    f"{self.path} holds {', '.join(found) or 'no tokens'}; expected {wanted}/{split}, or a "
                    "lower block's; "
                    f"type `spaner extract --tokens {block} --cache {self.path}` with the options of its "
                    f"images, or name the pixels with --pixels and --data-root ({error})"
                ) from None
        return self._splits[name]

    def of(self, cache: Cache) -> "CachedPictures":
        """The same tower on another cache."""
        if cache.path.resolve() == self.path.resolve():
            return self
        return CachedPictures(cache.path, self.images, batch_size=self.batch_size, progress=self.progress)

    def adapted(self, cache: Cache, name: str, place: Path, modality: str, block: int, rows: Rows) -> Table:
        """Rows of a changed tower for an image table of `cache`, in the cache at `place`; continued where an
        earlier call stopped.

        Args:
            modality: of the table to fill; it tells one changed tower from another.
            block: after which block `rows` takes tokens.

        Raises:
            EncoderError: a row depends on its batch.
        """
        here, table = self.of(cache), cache.table(name)
        split, encoder = here.source(name, block, rows, modality)
        plan = TablePlan(modality, table.manifest.split, split, table.views[:1])
        config = ExtractConfig(
            dataset=cache.dataset,
            dtype="float32",
            seed=table.manifest.seed,
            batch_size=self.batch_size,
            max_failed=1.0,
        )
        dataset = Dataset(cache.dataset, list(cache.class_names), {modality: {plan.split: split}})
        with caches.create(place, cache.dataset, cache.class_names) as made:
            Extraction(config, dataset, modality, self.progress, encoder).table(made, plan)
        return caches.open(place).table(plan.name)

    def source(self, name: str, block: int, rows: Rows, adapted: str) -> "tuple[Split, AdaptedImages]":
        """What is opened for the rows of a table, and what makes embeddings of it."""
        table, kept = self.cache.table(name), self.kept(name, block)
        told = {"adapted": adapted, "rows of": table.manifest.sha256, "after block": block}
        spec = replace(self.images.spec, preprocessing=self.images.spec.preprocessing | told)
        ids, labels = table.ids.tolist(), table.labels
        if kept is None:
            pixels = self.pixels(name, block)
            encoder = AdaptedImages(spec, self.tower.device, lambda x: rows(self.tower.tokens(x, block)))
            encoder.prepare = self.images.prepare
            return Split(ids, labels, pixels.open), encoder
        place, failures = {key: row for row, key in enumerate(ids)}, kept[0].failures()

        def opened(key: str) -> Tensor:
            if key in failures:
                raise ValueError(failures[key])
            return torch.from_numpy(np.array(kept[0].read(slice(place[key], place[key] + 1))[0, 0]))

        return Split(ids, labels, opened), AdaptedImages(
            spec, self.tower.device, lambda x: rows(self.onward(x, kept[1], block))
        )


class AdaptedImages:
    """A changed tower as an encoder: what is opened -> (B, D)."""

    def __init__(self, spec: Any, device: torch.device, rows: Callable[[Tensor], Tensor]) -> None:
        self.spec, self.device, self.rows = spec, device, rows

    def prepare(self, payload: Tensor, view: int, key: str, seed: int) -> Tensor:
        """Tokens as they are stored."""
        return payload

    @torch.inference_mode()
    def encode(self, batch: Tensor) -> Float[Tensor, "B D"]:
        """Rows in float32 on the CPU."""
        return self.rows(batch).float().cpu()


def check_same_rows(images: Manifest, tokens: Manifest) -> None:
    """Mismatch, naming what differs, unless tokens are those of the images' rows and views."""
    differing = {
        name: (getattr(images, name), getattr(tokens, name))
        for name in ("rows_sha256", "views", "seed")
        if getattr(images, name) != getattr(tokens, name)
    }
    spec = {n: v for n, v in tokens.encoder.preprocessing.items() if n != "tokens"}
    alike = replace(tokens.encoder, dim=images.encoder.dim, preprocessing=spec)
    differing |= images.encoder.same_encoder(alike)
    if differing:
        field, (there, here) = next(iter(differing.items()))
        raise Mismatch(
            f"{tokens.table} holds tokens of other images than {images.table}: {field} is {here!r}, expected "
            f"{there!r}; extract the tokens with the options of the images, and `--overwrite`"
        )


def pictures_of(
    path: str | Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    origin: Origin | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> CachedPictures:
    """The images of a cache, with the tower that made its image rows.

    Args:
        model, weights: where the encoder came from a config or checkpoint file.

    Raises:
        DatasetError: a cache without images. EncoderError: weights that are not here, or another kind of
        tower. Mismatch: other weights than the cache's.
    """
    with caches.open(path) as cache:
        name = next((n for n in cache.tables() if n.startswith("image/")), None)
        if name is None:
            raise DatasetError(f"{path} holds no table of images; expected image/...; type `spaner extract`")
        manifest = cache.table(name).manifest
    told = {"model": model, "weights": weights, "precision": precision, "device": device}
    images = rebuild(manifest.encoder, name, **told, seed=manifest.seed)
    return CachedPictures(path, images, origin, batch_size=batch_size, progress=progress)
