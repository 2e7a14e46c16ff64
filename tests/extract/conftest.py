"""Small inputs, made once: a CLIP of a few thousand numbers, and folders of tiny pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY: dict[str, Any] = {
    "embed_dim": 23,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 19, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CLASSES = ("red_fox", "sea", "wall_clock")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip model configuration."""
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def picture(seed: int, size: tuple[int, int] = (41, 37)) -> Image.Image:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill_folder(folder: Path, count: int, seed: int) -> None:
    """`count` JPEG files 0.jpg …"""
    folder.mkdir(parents=True)
    for i in range(count):
        picture(seed + i).save(folder / f"{i}.jpg")


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train: 3 classes x 7, test: 3 classes x 5. Read only."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for s, (split, count) in enumerate({"train": 7, "test": 5}.items()):
        for c, name in enumerate(CLASSES):
            fill_folder(root / split / name, count, 1000 * s + 100 * c)
    return root
