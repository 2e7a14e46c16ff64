"""A synthetic cache of ImageNet's size and CLIP's geometry: what the speed benchmarks train and evaluate on.

    python benchmarks/synthetic.py cache/synthetic16
    python benchmarks/synthetic.py cache/falling16 --spectrum 0.5    noise that falls along directions

Every vector is made up, from one seed, in seconds; the manifest says so (`synthetic`), and no number got from
it says anything about images. What is CLIP's: class vectors lie in a low-rank subspace; images and texts
share a common direction and stand apart by one offset each (the modality gap, Liang et al.,
arXiv:2203.02053); templates shift all classes alike and each class a little; a bare class name is a poorer
description than a template.
Strengths below are calibrated at full size, seed 0, so that the frozen space scores as CLIP ViT-B/16 does on
ImageNet (66.7 / 64.1, cosine 0.329 / 0.305).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

import spaner.cache as caches
from spaner.align.score.evaluate import zero_shot
from spaner.cache.manifest import EncoderSpec, digest
from spaner.extract.templates import templates

# Measured at 1,000 classes, 50,000 test rows, seed 0:
# text 66.7 %, semantic 64.0 %, positive cosine 0.331 / 0.313, margin to the hardest negative 0.017 / 0.013
GEOMETRY = {
    "rank": 48,  # dimensions of the subspace of class vectors
    "common": 0.32,  # one direction that every vector shares
    "gap": 0.40,  # one further direction per modality
    "image_class": 0.36,  # how far an image follows its class
    "image_inside": 0.48,  # noise of an image inside the classes' subspace: what makes it hard
    "image_outside": 0.60,  # noise in all directions
    "view": 0.15,  # further noise of a random view, inside
    "text_class": 0.36,  # how far a text follows its class
    "text_inside": 0.20,  # error of all texts of a class
    "name_inside": 0.11,  # further error of the bare class name
    "name": 0.35,  # offset of the bare name, alike for all classes
    "template": 0.25,  # offset of a template, alike for all classes
    "template_inside": 0.08,  # and its error for each class
}
NORM = 10.0
"""Length of a raw embedding; CLIP's images have about ten."""

Noise = Callable[[int], Float[np.ndarray, "n D"]]


class Space:
    """Directions and class vectors; text and image rows are drawn around them."""

    def __init__(self, classes: int, dim: int, seed: int, spectrum: float = 0.0) -> None:
        self.draw = np.random.default_rng(seed)
        rank = min(GEOMETRY["rank"], dim - 3)
        directions = np.linalg.qr(self.draw.standard_normal((dim, rank + 3)))[0].T.astype(np.float32)
        self.frame = directions
        self.common, self.image_offset, self.text_offset = directions[:3]
        self.basis = directions[3:]
        fall = np.arange(1, rank + 1, dtype=np.float32) ** np.float32(-spectrum)
        self.fall = fall * np.float32(np.sqrt(rank / (fall**2).sum()))
        self.classes = self.inside(classes)
        self.classes /= np.linalg.norm(self.classes, axis=1, keepdims=True)

    def inside(self, count: int, fall: np.ndarray | None = None) -> Float[np.ndarray, "n D"]:
        """Random vectors of expected length 1 in the subspace of class vectors, along each direction alike or
        as `fall` says."""
        rank = len(self.basis)
        drawn = self.draw.standard_normal((count, rank), dtype=np.float32)
        return (drawn if fall is None else drawn * fall) @ self.basis / np.float32(np.sqrt(rank))

    def outside(self, count: int) -> Float[np.ndarray, "n D"]:
        """Random vectors of expected length 1 in all directions."""
        dim = self.basis.shape[1]
        return self.draw.standard_normal((count, dim), dtype=np.float32) / np.float32(np.sqrt(dim))

    def images(self, labels: np.ndarray, views: int) -> Float[np.ndarray, "N V D"]:
        """Raw rows: class, noise of the image, noise of each view above 0."""
        g, count = GEOMETRY, len(labels)
        rows = g["image_class"] * self.classes[labels]
        rows += g["image_inside"] * self.inside(count, self.fall) + g["image_outside"] * self.outside(count)
        rows += g["common"] * self.common + g["gap"] * self.image_offset
        shifted = [rows + g["view"] * self.inside(count) for _ in range(views - 1)]
        return np.float32(NORM) * np.stack([rows, *shifted], axis=1)

    def texts(self, count: int) -> tuple[Float[np.ndarray, "C T D"], Float[np.ndarray, "C 1 D"]]:
        """Raw rows of all classes: in `count` templates, and as bare names."""
        g, classes = GEOMETRY, len(self.classes)
        core = g["text_class"] * self.classes + g["text_inside"] * self.inside(classes)
        core += g["common"] * self.common + g["gap"] * self.text_offset
        offsets = self.outside(count + 1)
        offsets -= offsets @ self.frame.T @ self.frame
        offsets *= np.array([g["name"]] + [g["template"]] * count, dtype=np.float32)[:, None]
        filled = [core + offset + g["template_inside"] * self.inside(classes) for offset in offsets[1:]]
        name = core + offsets[0] + g["name_inside"] * self.inside(classes)
        return np.float32(NORM) * np.stack(filled, axis=1), np.float32(NORM) * name[:, None]


def make(
    path: Path,
    classes: int = 1_000,
    shots: int = 16,
    views: int = 2,
    dim: int = 512,
    test_rows: int = 50_000,
    seed: int = 0,
    spectrum: float = 0.0,
) -> None:
    """Write image/train, image/test, text/mined, text/vanilla and text/classname, all float16.

    Args:
        spectrum: how fast the noise of images falls along the directions of the classes' subspace; 0: not.

    Raises:
        Mismatch: another cache is there.
    """
    space = Space(classes, dim, seed, spectrum)
    mined = templates("mined")
    filled, name = space.texts(len(mined))
    vanilla = templates("vanilla")
    names = [f"class {label:04d}" for label in range(classes)]
    everything = np.arange(classes, dtype=np.int32)
    train, test = np.repeat(everything, shots), np.resize(everything, test_rows)
    with caches.create(path, "synthetic-imagenet", names) as cache:
        image, text = (_spec(modality, dim, seed, spectrum) for modality in ("image", "text"))
        cache.add("text", "mined", filled, everything, encoder=text, views=mined, dtype="float16")
        one = filled[:, [mined.index(vanilla[0])]]
        cache.add("text", "vanilla", one, everything, encoder=text, views=vanilla, dtype="float16")
        cache.add("text", "classname", name, everything, encoder=text, views=["{}"], dtype="float16")
        for split, labels, count in (("train", train, views), ("test", test, 1)):
            ids = [f"{split}/{row:06d}" for row in range(len(labels))]
            rows = space.images(labels, count).astype(np.float16)
            named = ["centre", *(f"random {i}" for i in range(1, count))]
            cache.add("image", split, rows, labels, ids, encoder=image, views=named)


def _spec(modality: str, dim: int, seed: int, spectrum: float) -> EncoderSpec:
    recipe: dict[str, Any] = {"geometry": GEOMETRY, "norm": NORM, "seed": seed, "dim": dim}
    recipe |= {"spectrum": spectrum} if spectrum else {}
    return EncoderSpec(
        name="synthetic-clip",
        weights=f"seed:{seed}",
        weights_sha256=digest(recipe),
        modality=modality,
        dim=dim,
        preprocessing={"made up": True},
        precision="float32",
        logit_scale=100.0,
        synthetic=True,
    )


def main() -> None:
    """Make a cache and say how its frozen space scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    defaults = {"classes": 1_000, "shots": 16, "views": 2, "dim": 512, "test_rows": 50_000, "seed": 0}
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--spectrum", type=float, default=0.0, help="see `make`; default 0")
    options = vars(parser.parse_args())
    started = time.perf_counter()
    make(**options)
    print(f"{options['path']}: made in {time.perf_counter() - started:.1f} s; every vector is synthetic")
    scores = zero_shot(options["path"])
    assert scores is not None, "images and texts have one width"
    for query in ("text", "semantic"):
        found = scores[query]
        print(
            f"{query:>8}: accuracy {100 * found['accuracy']:.1f} %, "
            f"positive cosine {found['positive_cosine']:.3f}, margin {found['margin']:.3f}"
        )


if __name__ == "__main__":
    main()
