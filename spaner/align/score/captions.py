"""Images and their captions: recall@k both ways, by image and not by class.

A cache may hold captions beside its images (`caption/SPLIT`, row "IMAGE#k" is caption k of an image). An
image finds its caption where any of its captions is among the best k; a caption has one right image. These
are the conventions of COCO and Flickr30k. Chance is what a blind draw gives at the same k, which is more for
an image with five captions than for a caption with one image.

A method with a space embeds captions as it embeds texts (or as captions, where it was trained with them);
another must say how, from their frozen embeddings (`Captioning`) or from their words (`Reader`), and one that
cannot has no number. Where captions have negated forms, it is counted how often an image is nearer to its
caption than to the negated form of it: chance is 1/2, and a tie is no answer. Images without a good caption
and captions without a good image are left out and counted. It reads sealed tables and trains nothing.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spaner import cache as caches
from spaner.align.score.metrics import unit
from spaner.align.score.retrieval import retrieval
from spaner.errors import CacheError

MODALITY = "caption"
NEGATED = "negated"
KS = (1, 5, 10)


@runtime_checkable
class Captioning(Protocol):
    """A method without a space that makes vectors of captions all the same, to compare images with."""

    def caption_rows(self, t: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Unit text embeddings of the frozen encoder -> unit vectors beside unit image embeddings."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A method that reads the words of captions, where it was trained on captions (`texts`).

    Attributes:
        tower: through which it reads; None in a loaded run.
        sentences: (table, cache) -> a sentence for each row; None in a loaded run.
    """

    tower: Any
    sentences: Any

    def word_rows(self, words: list[str]) -> Float[Tensor, "N D"]:
        """Sentences -> unit vectors beside unit image embeddings."""
        ...


def reads(space: Any) -> bool:
    """Whether a run makes vectors of captions."""
    model = getattr(space, "model", None)
    if isinstance(model, Reader):
        return space.config.texts == MODALITY
    return space.has_space or isinstance(model, Captioning)


def table_of(cache: Any, images: str, modality: str = MODALITY) -> str | None:
    """The table of captions, or of their negated forms, beside a table of images; None without one."""
    name = f"{modality}/{images.partition('/')[2]}"
    return name if images.partition("/")[0] == "image" and cache.has(name) else None


def caption_retrieval(space: Any, cache: caches.Cache, images: str) -> dict[str, Any] | None:
    """Recall both ways between a table of images and its captions.

    Args:
        space: a trained run, or `evaluate.Frozen`.

    Returns:
        `image_to_caption` and `caption_to_image`: the numbers of `retrieval.retrieval`, and `chance@k`;
        `images`, `captions` and `left_out` (how many of both had no partner); where captions have negated
        forms `negation`, the share told from them, and `negated`, of how many; None where the cache has no
        captions or the method makes nothing of them.

    Raises:
        Mismatch: captions of another encoder than the run's. CacheError: no caption has its image.
    """
    name = table_of(cache, images)
    if name is None or not reads(space):
        return None
    if (towers := getattr(space, "towers", None)) is not None:
        towers.put_beside(space, cache, images)
    pictures, said = cache.table(images), cache.table(name)
    if hasattr(space, "check"):
        space.check(said.manifest, side_of(space))
    rows, captions, about = _paired(pictures, said)
    x = _embedded(space, "image", pictures, rows, cache)
    y = _embedded(space, side_of(space), said, captions, cache)
    number = np.arange(len(rows))
    ways = {
        "image_to_caption": retrieval(x, y, number, about, KS) | _chance(np.bincount(about), len(y)),
        "caption_to_image": retrieval(y, x, about, number, KS) | _chance(np.ones(1, int), len(x)),
    }
    left_out = pictures.rows - len(rows) + said.rows - len(captions)
    counts = {"images": len(rows), "captions": len(captions), "left_out": left_out}
    negated = table_of(cache, images, NEGATED)
    if negated is None:
        return ways | counts
    ids = [str(name) for name in said.ids[captions]]
    return ways | counts | _told_apart(space, cache, cache.table(negated), ids, x[about], y)


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


def _told_apart(
    space: Any, cache: caches.Cache, table: caches.Table, ids: list[str], x: np.ndarray, y: np.ndarray
) -> dict[str, Any]:
    """`negation` and `negated` of captions `y` and their images `x`, by the ids of the captions."""
    place = {str(name): row for row, name in enumerate(table.ids) if table.ok[row]}
    there = np.array([name in place for name in ids])
    if not there.any():
        return {}
    rows = np.array([place[name] for name in ids if name in place])
    if hasattr(space, "check"):
        space.check(table.manifest, side_of(space))
    forms = _embedded(space, side_of(space), table, rows, cache)
    right = (x[there] * (y[there] - forms)).sum(1) > 0
    return {"negation": float(right.mean()), "negated": len(rows)}


def _embedded(
    space: Any, modality: str, table: caches.Table, rows: np.ndarray, cache: caches.Cache
) -> np.ndarray:
    model = getattr(space, "model", None)
    if modality != "image" and isinstance(model, Reader):
        said = model.sentences(table.name, cache)
        return model.word_rows([said[row] for row in rows]).numpy()
    features = table.read(rows)[:, 0].astype(np.float32)
    if space.has_space:
        return space.embed(modality, features)
    found = unit(features, table.name)
    if modality == "image":
        return found
    with torch.inference_mode():
        return space.model.caption_rows(torch.from_numpy(found).to(space.device)).cpu().numpy()


def _chance(relevant: Int[np.ndarray, " N"], targets: int) -> dict[str, float]:
    """Recall@k of a blind draw: 1 - C(M - c, k) / C(M, k), mean over queries with c relevant targets of M."""
    found = {}
    for k in KS:
        draws = np.arange(min(k, targets))
        missed = np.maximum(targets - relevant[:, None] - draws, 0) / (targets - draws)
        found[f"chance@{k}"] = float((1 - missed.prod(axis=1)).mean())
    return found
