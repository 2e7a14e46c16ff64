"""Encoders and whole extractions on a device that is not the CPU (`tests.second_device`): the same rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_clap
import torch
from test_encoder_contract import BUILDS, CASES, payload

from spaner import cache as caches
from spaner.extract.config import ExtractConfig
from spaner.extract.encoders import encoder as encoders
from spaner.extract.extract import extract
from tests import second_device

DEVICES = ("cpu", str(second_device.SECOND))
folder = test_clap.folder


def rows_on(device: str, name: str, modality: str, **options: Any) -> torch.Tensor:
    with second_device.without_float64():
        loaded = encoders.load(name, modality, device=device, precision="float32", **options)
        inputs = [loaded.prepare(payload(name, modality, i), 0, f"k{i}", 0) for i in range(3)]
        return loaded.encode(torch.stack(inputs))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_an_encoder_gives_the_same_rows_there(case: tuple[str, str], tiny_model: Path) -> None:
    name, modality = case
    options = BUILDS[name] | ({"model": str(tiny_model)} if name == "open_clip" else {})
    here, there = (rows_on(device, name, modality, **options) for device in DEVICES)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_esresnext_gives_the_same_rows_there() -> None:
    here, there = (rows_on(device, "esresnext", "audio", weights="random") for device in DEVICES)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)  # fused on the CPU alone


def test_clap_gives_the_same_rows_there(folder: Path) -> None:
    here, there = (rows_on(d, "clap", "audio", model=str(folder), weights=str(folder)) for d in DEVICES)
    torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


def test_an_extraction_there_gives_the_same_tables(
    tmp_path: Path, tiny_model: Path, sample_data: Path
) -> None:
    for photo in sorted((sample_data / "photos").glob("*/*/*.jpg"))[::9]:
        place = tmp_path / "few" / photo.relative_to(sample_data / "photos")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(photo)
    told: dict[str, Any] = {"dataset": f"folder:{tmp_path / 'few'}", "model": str(tiny_model)}
    for device in DEVICES:
        place = tmp_path / device.partition(":")[0]
        extract(ExtractConfig(**told, pretrained="random", precision="float32", cache=place, device=device))
    one, other = (caches.open(tmp_path / name) for name in ("cpu", "elsewhere"))
    assert one.tables() == other.tables()
    for name in one.tables():
        np.testing.assert_allclose(other.table(name).read(), one.table(name).read(), atol=1e-3)
