"""Images and their captions: recall@k both ways, by image and not by class.

A cache may hold captions beside its images (`caption/SPLIT`, row "IMAGE#k" is caption k of an image). An
image finds its caption where any of its captions is among the best k; a caption has one right image. These
are the conventions of COCO and Flickr30k. Chance is what a blind draw gives at the same k, which is more for
an image with five captions than for a caption with one image.

A method with a space embeds captions as it embeds texts (or as captions, where it was trained with them);
another must say how (`Captioning`), and one that cannot has no number. Images without a good caption and
captions without a good image are left out and counted. It reads sealed tables and trains nothing.
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.align.score.metrics import unit
from spaner.align.score.retrieval import retrieval
from spaner.align.score.tables import opened_cache, tested_table
from spaner.errors import CacheError

MODALITY = "caption"
KS = (1, 5, 10)


@runtime_checkable
class Captioning(Protocol):
    """A method without a space that makes vectors of captions all the same, to compare images with."""

    def caption_rows(self, t: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Unit text embeddings of the frozen encoder -> unit vectors beside unit image embeddings."""
        ...


def table_of(cache: Any, images: str) -> str | None:
    """The table of captions beside a table of images; None where there is none."""
    name = f"{MODALITY}/{images.partition('/')[2]}"
    return name if images.partition("/")[0] == "image" and cache.has(name) else None


def caption_retrieval(space: Any, cache: caches.Cache, images: str) -> dict[str, Any] | None:
    """Recall both ways between a table of images and its captions.

    Args:
        space: a trained run, or `evaluate.Frozen`.

    Returns:
        `image_to_caption` and `caption_to_image`: the numbers of `retrieval.retrieval`, and `chance@k`;
        `images`, `captions` and `left_out` (how many of both had no partner); None where the cache has no
        captions or the method makes nothing of them.

    Raises:
        Mismatch: captions of another encoder than the run's. CacheError: no caption has its image.
    """
    name = table_of(cache, images)
    if name is None or not (space.has_space or isinstance(getattr(space, "model", None), Captioning)):
        return None
    pictures, said = cache.table(images), cache.table(name)
    if hasattr(space, "check"):
        space.check(said.manifest, side_of(space))
    rows, captions, about = _paired(pictures, said)
    x = _embedded(space, "image", pictures, rows)
    y = _embedded(space, side_of(space), said, captions)
    number = np.arange(len(rows))
    ways = {
        "image_to_caption": retrieval(x, y, number, about, KS) | _chance(np.bincount(about), len(y)),
        "caption_to_image": retrieval(y, x, about, number, KS) | _chance(np.ones(1, int), len(x)),
    }
    left_out = pictures.rows - len(rows) + said.rows - len(captions)
    return ways | {"images": len(rows), "captions": len(captions), "left_out": left_out}


def evaluate_captions(run: Any, cache: caches.Cache | str | Path, split: str | None = None) -> dict[str, Any]:
    """`caption_retrieval` of a run on a cache whose images may have no classes.

    Raises:
        Mismatch: another encoder. CacheError: no captions, or no table of images.
    """
    with opened_cache(cache) as opened:
        images = tested_table(opened, split)
        if table_of(opened, images) is None:
            raise CacheError(
                f"{opened.path} has one class and no captions of {images}; "
                "expected two classes or more, or captions; type `spaner extract --caption-column NAME`"
            )
        run.check(opened.table(images).manifest)
        return {"captions": caption_retrieval(run, opened, images)}


def side_of(space: Any) -> str:
    """As what captions are embedded."""
    return MODALITY if MODALITY in getattr(space, "widths", ()) else "text"


def _paired(
    pictures: caches.Table, said: caches.Table
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Rows of images and of captions that have each other, and each caption's place among the images."""
    place = {str(name): row for row, name in enumerate(pictures.ids) if pictures.ok[row]}
    image = np.array([place.get(str(name).rpartition("#")[0], -1) for name in said.ids])
    captions = np.flatnonzero(said.ok & (image >= 0))
    if not len(captions):
        raise CacheError(
            f"no caption of {said.name} has its image in {pictures.name}: "
            f"found {str(said.ids[0])!r} beside {str(pictures.ids[0])!r}; expected ids IMAGE#0; "
            "extract both from one list"
        )
    rows, about = np.unique(image[captions], return_inverse=True)
    return rows, captions, about


def _embedded(space: Any, modality: str, table: caches.Table, rows: np.ndarray) -> np.ndarray:
    features = table.read(rows)[:, 0].astype(np.float32)
    if space.has_space:
        return space.embed(modality, features)
    found = unit(features, table.name)
    if modality == "image":
        return found
    with torch.inference_mode():
        return space.model.caption_rows(torch.from_numpy(found)).numpy()


def _chance(relevant: Int[np.ndarray, " N"], targets: int) -> dict[str, float]:
    """Recall@k of a blind draw: 1 - C(M - c, k) / C(M, k), mean over queries with c relevant targets of M."""
    found = {}
    for k in KS:
        draws = np.arange(min(k, targets))
        missed = np.maximum(targets - relevant[:, None] - draws, 0) / (targets - draws)
        found[f"chance@{k}"] = float((1 - missed.prod(axis=1)).mean())
    return found
