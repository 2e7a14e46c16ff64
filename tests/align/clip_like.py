"""Synthetic features with CLIP's geometry, small: what the tests of training learn from."""

import numpy as np

from spaner import cache as caches

CLASSES, DIM, VIEWS, TEMPLATES = 11, 24, 2, 5


def spec(modality, **changes):
    facts = {"name": "synthetic", "weights": "none", "weights_sha256": "", "modality": modality, "dim": DIM}
    facts |= {"preprocessing": {}, "precision": "float32", "logit_scale": 30.0, "synthetic": True}
    return caches.EncoderSpec(**facts | changes)


def geometry(seed=0):
    """Class directions in a subspace, one offset per modality, and a rotation between images and texts.

    The rotation is what the frozen space gets wrong and training can learn.
    """
    generator = np.random.default_rng(seed)
    classes = generator.normal(size=(CLASSES, 9)) @ generator.normal(size=(9, DIM)) / 3
    offsets = {"image": generator.normal(size=DIM), "text": generator.normal(size=DIM)}
    skew, signs = np.linalg.qr(np.eye(DIM) + 0.16 * generator.normal(size=(DIM, DIM)))
    skew *= np.sign(np.diag(signs))  # near the identity, not near its mirror image
    return classes, offsets, skew


def images(per_class, seed, noise=0.8):
    """(features (N, V, D), labels), classes interleaved."""
    classes, offsets, skew = geometry()
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(CLASSES), per_class)
    centres = (classes @ skew)[labels][:, None] + offsets["image"]
    return centres + noise * generator.normal(size=(len(labels), VIEWS, DIM)), labels


def texts(count, seed):
    """(C, T, D)."""
    classes, offsets, _ = geometry()
    generator = np.random.default_rng(seed)
    style = 0.3 * generator.normal(size=(count, DIM))
    return classes[:, None] + offsets["text"] + style


def build(path, *, per_class=16, skip=()):
    """A cache with train and test images and three template sets."""
    with caches.create(path, "synthetic", [f"class {i}" for i in range(CLASSES)]) as cache:
        for split, rows, seed in (("train", per_class, 1), ("test", 23, 2)):
            features, labels = images(rows, seed)
            cache.add("image", split, features.astype(np.float32), labels, encoder=spec("image"))
        for name, count, seed in (("mined", TEMPLATES, 3), ("vanilla", 1, 4), ("classname", 1, 5)):
            if f"text/{name}" not in skip:
                features = texts(count, seed).astype(np.float32)
                cache.add("text", name, features, np.arange(CLASSES), encoder=spec("text"))
    return path
