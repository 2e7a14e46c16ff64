"""Small caches whose towers are at hand: pictures that a random CLIP can tell apart, and a few digits.

The pictures are of five classes, each a coarse pattern of its own under noise. Their model has random
weights: nothing here is a result, only something that can be learned.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spaner import cache as caches
from spaner.cli.towers import Towers
from spaner.extract.config import ExtractConfig
from spaner.extract.extract import extract

CLASSES = ("red_fox", "sea", "wall clock", "t-shirt", "tench")
MODEL: dict[str, Any] = {
    "embed_dim": 23,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 19, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
}


def pictures(root: Path, per_class: int = 6) -> Path:
    """train and test folders of PNG files."""
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            pattern = np.random.default_rng(c).integers(0, 256, (2, 2, 3))
            for i in range(per_class):
                noise = np.random.default_rng((s, c, i)).normal(0, 20, (16, 16, 3))
                pixels = np.kron(pattern, np.ones((8, 8, 1))) + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    return root


def build(folder: Path, model_config: dict[str, Any] | None = None, **options: Any) -> Path:
    """The cache `folder/cache` of the pictures in `folder/photos`, by the model `folder/tiny.json`."""
    model = folder / "tiny.json"
    model.write_text(json.dumps(model_config or MODEL))
    told: dict[str, Any] = {"dataset": f"folder:{pictures(folder / 'photos')}", "cache": folder / "cache"}
    told |= {"model": str(model), "pretrained": "random", "device": "cpu", "precision": "float32"}
    told |= {"dtype": "float32", "seed": 3}
    extract(ExtractConfig(**told | options))
    return folder / "cache"


def tokens(folder: Path, block: int, **options: Any) -> None:
    """A token table beside the images of `build`."""
    told: dict[str, Any] = {"dataset": f"folder:{folder / 'photos'}", "cache": folder / "cache"}
    told |= {"model": str(folder / "tiny.json"), "pretrained": "random", "device": "cpu", "seed": 3}
    told |= {"precision": "float32", "dtype": "float32", "tokens": block}
    extract(ExtractConfig(**told | options))


def towers(folder: Path) -> Towers:
    """The towers of that model, and where its pictures are."""
    return Towers(str(folder / "tiny.json"), pixels=f"folder:{folder / 'photos'}")


def digits(folder: Path) -> Path:
    """The embedded digits with 80 training and 60 test rows."""
    for modality in ("image", "text"):
        extract(ExtractConfig(dataset="digits", cache=folder / "whole", modality=modality, device="cpu"))
    return some_of(folder / "whole", folder / "digits")


def some_of(whole: Path, path: Path) -> Path:
    """A cache with the first rows of another."""
    with caches.open(whole) as source, caches.create(path, source.dataset, source.class_names) as cache:
        for name in source.tables():
            table, (modality, split) = source.table(name), name.split("/")
            few = {"image/train": 80, "image/test": 60}.get(name, table.rows)
            told: Any = {"views": table.views, "encoder": table.manifest.encoder}
            ids = table.ids[:few].tolist()
            cache.add(modality, split, table.read(slice(0, few)), table.labels[:few], ids, **told)
    return path
